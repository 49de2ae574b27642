"""Raw H.264 (Annex B): from bytes to access units with their arrival times. No threads and no clock here."""

import logging
from collections import deque
from dataclasses import dataclass

import av
import av.error

log = logging.getLogger(__name__)

# An access unit larger than this is not video (a 1080p key frame is below 1 MiB): the parser starts again.
MAX_UNIT_BYTES = 4 * 2**20

_START_CODE = b"\x00\x00\x01"
_SLICE, _KEY_SLICE, _SPS, _PPS = 1, 5, 7, 8  # NAL unit types


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

    A stream has one picture size: after a unit with another sequence parameter set, `fault` says so and nothing more is
    cut. The camera's restart gives a new stream.
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
        data = self._with_parameter_sets(data[start:], is_key=is_key)  # without junk before the first start code
        return None if self.fault else AccessUnit(self._next_number, arrival_s, is_key, data, *self._size)

    def _with_parameter_sets(self, data: bytes, *, is_key: bool) -> bytes:
        """A clip may begin at any key frame, but a camera without --inline sends the parameter sets only once."""
        sets = [nal.rstrip(b"\x00") for nal in data.split(_START_CODE) if nal and nal[0] & 31 in (_SPS, _PPS)]
        for sps in (nal for nal in sets if nal[0] & 31 == _SPS):
            if not self._sps:
                self._sps, self._size = sps, picture_size(data)
            elif sps != self._sps:
                before, now = self._size, picture_size(data)
                self.fault = self.fault or f"the picture size changed from {before[0]}x{before[1]} to {now[0]}x{now[1]}"
        if any(nal[0] & 31 == _SPS for nal in sets):
            self._parameter_sets = b"".join(b"\x00" + _START_CODE + nal for nal in sets)
            return data
        return self._parameter_sets + data if is_key else data


def new_context() -> av.VideoCodecContext:
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_type = "SLICE"  # FRAME and AUTO delay the frames
    context.thread_count = 1
    return context


def picture_size(key_unit: bytes) -> tuple[int, int]:
    """Width and height by a unit's parameter sets, (0, 0) if unreadable. A parser keeps the first size it saw."""
    parser = new_context()
    try:
        parser.parse(key_unit)
        parser.parse(b"")
    except av.error.FFmpegError:
        return (0, 0)
    return (parser.width, parser.height)
