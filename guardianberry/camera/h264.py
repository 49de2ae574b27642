"""Raw H.264 (Annex B): from bytes to access units with their arrival times. No threads and no clock here."""

import logging
from collections import deque
from dataclasses import dataclass

import av
import av.error

log = logging.getLogger(__name__)

# An access unit larger than this is not video (a 1080p key frame is below 1 MiB): the parser starts again.
MAX_UNIT_BYTES = 4 * 2**20

# Beyond these bounds the stream is garbage: a frame of 16000 x 16000 took 3.5 GB, one of 16000 x 2 broke the detector.
MIN_SIDE_PX, MAX_SIDE_PX = 64, 4096
MAX_PICTURE_PX = 4096 * 2304  # as H.264's level 5.2 allows; the decoder may keep 17 of them

_START_CODE = b"\x00\x00\x01"
_SLICE, _KEY_SLICE, _SPS, _PPS = 1, 5, 7, 8  # NAL unit types
_B_SLICES = {1, 6}  # slice types
_SLICE_HEAD_BYTES = 13  # hold a slice's type
_PROFILES_WITH_PIXELS = {44, 83, 86, 100, 110, 118, 122, 128, 138, 144, 244}  # whose SPS says what pixels are


@dataclass(frozen=True)
class AccessUnit:
    """One coded picture with everything that belongs to it. A key unit includes its parameter sets."""

    number: int
    arrival_s: float  # monotonic time at which its last byte was read
    is_key: bool
    data: bytes
    width: int = 0  # 0 until the first parameter sets have come
    height: int = 0


class Guess(AccessUnit):
    """An access unit whose end is not certain: it may be decoded, but goes into no clip."""


class Splitter:
    """Cuts a byte stream into access units, whatever the sizes of the chunks, and loses no byte between two units.

    The parser finds the end of a unit only when the next one begins, so it always holds back the newest one. `guess()`
    returns that one, for the detector only, once the camera has been silent for a moment.

    A stream has one picture size, within bounds, and no B-frames, whose times are not those of their arrival. After a
    unit that breaks this `fault` says why, and nothing more is cut. The camera's restart gives a new stream.
    """

    def __init__(self, first_number: int = 0) -> None:
        self.fault = ""  # why no more units come out
        self._next_number = first_number
        self._sps = b""
        self._parameter_sets = b""
        self._size = (0, 0)
        self._parser = new_context()
        self._pending = bytearray()  # what the parser holds back
        self._fed_bytes = 0
        self._cut_bytes = 0
        self._arrivals: deque[tuple[int, float]] = deque()  # (bytes fed up to here, time)

    def feed(self, chunk: bytes, now_s: float) -> list[AccessUnit]:
        """The units that this chunk, read at now_s, completes."""
        self._fed_bytes += len(chunk)
        self._arrivals.append((self._fed_bytes, now_s))
        self._pending += chunk
        try:
            packets = self._parser.parse(chunk)
        except av.error.FFmpegError as error:
            log.debug("parser error (%s): starting again", error)
            self._restart()
            return []
        units = [unit for packet in packets if (unit := self._cut(packet)) is not None]
        if len(self._pending) > MAX_UNIT_BYTES:
            log.debug("%d bytes without the start of an access unit: dropped", len(self._pending))
            self._restart()
        return units

    def guess(self) -> Guess | None:
        """The unit held back, as far as it has arrived; None if its last NAL unit is no part of a picture.

        Nothing in H.264 marks the end of a picture, so this may be incomplete. It has the number of the unit to come,
        and must be compared with it.
        """
        at = self._pending.rfind(_START_CODE) + len(_START_CODE)
        if at < len(_START_CODE) or at + 1 >= len(self._pending):
            return None
        nal_type = self._pending[at] & 31
        if nal_type not in (_SLICE, _KEY_SLICE):
            return None
        unit = self._unit(bytes(self._pending), is_key=nal_type == _KEY_SLICE, arrival_s=self._arrivals[-1][1])
        self.fault = ""  # half a picture proves nothing
        return None if unit is None else Guess(**vars(unit))

    def _restart(self) -> None:
        self._parser = new_context()
        self._pending.clear()
        self._cut_bytes = self._fed_bytes
        self._arrivals.clear()

    def _cut(self, packet: av.Packet) -> AccessUnit | None:
        self._cut_bytes += packet.size
        del self._pending[: packet.size]
        while self._arrivals[0][0] < self._cut_bytes:
            self._arrivals.popleft()
        unit = self._unit(bytes(packet), is_key=packet.is_keyframe, arrival_s=self._arrivals[0][1])
        self._next_number += unit is not None
        return unit

    def _unit(self, data: bytes, *, is_key: bool, arrival_s: float) -> AccessUnit | None:
        start = data.find(_START_CODE)
        if start < 0:
            return None
        start -= start > 0 and data[start - 1] == 0  # the four-byte form
        data = data[start:]  # without junk before the first start code
        sets, first_slice = head(data)
        self.fault = self.fault or self._fault_of(data, sets, first_slice)
        if self.fault:
            return None
        if any(nal[0] & 31 == _SPS for nal in sets):
            self._parameter_sets = b"".join(b"\x00" + _START_CODE + nal for nal in sets)
        elif is_key:  # a clip may begin at any key frame, but a camera without --inline sends the sets only once
            data = self._parameter_sets + data
        return AccessUnit(self._next_number, arrival_s, is_key, data, *self._size)

    def _fault_of(self, data: bytes, sets: list[bytes], first_slice: bytes) -> str:
        if slice_type(first_slice) in _B_SLICES:
            return "its stream has B-frames: start it with --low-latency, or leave it to the daemon"
        for sps in (nal for nal in sets if nal[0] & 31 == _SPS):
            if sps == self._sps:
                continue
            size, coded_size = picture_sizes(data)
            if self._sps:
                before, now = self._size, size
                return f"the picture size changed from {before[0]}x{before[1]} to {now[0]}x{now[1]}"
            sides = size + coded_size
            if min(sides) < MIN_SIDE_PX or max(sides) > MAX_SIDE_PX or coded_size[0] * coded_size[1] > MAX_PICTURE_PX:
                return f"its pictures have {size[0]}x{size[1]} pixels, coded as {coded_size[0]}x{coded_size[1]}"
            if not has_small_pixels(sps):
                return "its pixels have more than 8 bits, or more colour than 4:2:0"
            self._sps, self._size = sps, size
        return ""


def head(unit: bytes) -> tuple[list[bytes], bytes]:
    """The parameter sets of an access unit and the beginning of its first slice; the sets come before that (7.4.1.2.3).

    Most of a unit is its slices: they are neither searched nor copied.
    """
    sets: list[bytes] = []
    at = unit.find(_START_CODE)
    while at >= 0:
        nal = at + len(_START_CODE)
        nal_type = unit[nal] & 31 if nal < len(unit) else 0
        if nal_type in (_SLICE, _KEY_SLICE):
            return sets, unit[nal : nal + _SLICE_HEAD_BYTES]
        at = unit.find(_START_CODE, nal)
        if nal_type in (_SPS, _PPS):
            sets.append(unit[nal : at if at >= 0 else len(unit)].rstrip(b"\x00"))
    return sets, b""


def new_context() -> av.VideoCodecContext:
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_type = "SLICE"  # FRAME and AUTO delay the frames
    context.thread_count = 1
    return context


def picture_sizes(unit: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height by a unit's parameter sets, shown and coded; zeros if unreadable."""
    parser = new_context()  # a parser keeps the first size it saw
    try:
        parser.parse(unit)
        parser.parse(b"")
    except av.error.FFmpegError:
        return (0, 0), (0, 0)
    return (parser.width, parser.height), (parser.coded_width, parser.coded_height)


def has_small_pixels(sps: bytes) -> bool:
    """Whether they have 8 bits and 4:2:0 or grey (ITU-T H.264, 7.3.2.1.1): others take up to four times the memory."""
    plain = sps.replace(b"\x00\x00\x03", b"\x00\x00")
    if plain[1] not in _PROFILES_WITH_PIXELS:
        return True
    return _exp_golomb(plain[4:16], 4)[1:] in ([0, 0, 0], [1, 0, 0])  # chroma_format_idc, luma's bits, chroma's


def slice_type(nal: bytes) -> int:
    """Of a slice (ITU-T H.264, 7.3.3): the second Exp-Golomb code after the NAL unit's header; -1 if it has none."""
    return [*_exp_golomb(nal[1:_SLICE_HEAD_BYTES], 2), -1, -1][1]


def _exp_golomb(data: bytes, count: int) -> list[int]:
    """The first codes in the data (9.1); fewer where it ends before."""
    bits = f"{int.from_bytes(data):0{8 * len(data)}b}"
    values: list[int] = []
    while len(values) < count:
        zeros = bits.find("1")
        code, bits = bits[zeros : 2 * zeros + 1], bits[2 * zeros + 1 :]
        if zeros < 0 or len(code) <= zeros:
            break
        values.append(int(code, 2) - 1)
    return values
