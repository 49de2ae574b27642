"""Raw H.264 (Annex B): from bytes to access units with the time they arrived, and from access units to pictures.

No threads and no clock here. `Splitter` belongs to the thread that reads the camera, `Decoder` to the one that looks.
"""

import logging
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import av
import av.error
import numpy as np

log = logging.getLogger(__name__)

# An access unit larger than this is not video (a 1080p key frame is below 1 MiB): the parser starts afresh.
MAX_UNIT_BYTES = 4 * 2**20
# A picture guessed complete that was not costs the way from the last key frame again. After so many in a row guessing
# stops, and each good picture forgives a little: a writer that often pauses within pictures is seldom tried again.
MAX_WRONG_GUESSES = 3
FORGIVEN_PER_PICTURE = 0.005
# Damage that comes back within this time belongs to the same spell: one line in the log.
SPELL_S = 10.0

_START_CODE = b"\x00\x00\x01"
_NAL = re.compile(_START_CODE + b"(.)", re.DOTALL)
_SLICE, _KEY_SLICE, _SPS, _PPS = 1, 5, 7, 8
_PLANAR_YUV = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True)
class AccessUnit:
    """One coded picture with everything that goes with it. A key unit carries its parameter sets."""

    number: int
    arrival_s: float  # monotonic time at which its last byte was read
    is_key: bool
    data: bytes
    width: int = 0  # 0 where no parameter set has been seen yet
    height: int = 0


class Guess(AccessUnit):
    """An access unit whose end is not certain: good for a look, never for a clip."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture. Converted only when looked at, and then once; a frame left alone costs nothing more."""

    number: int
    arrival_s: float
    picture: av.VideoFrame

    @property
    def width(self) -> int:
        return self.picture.width

    @property
    def height(self) -> int:
        return self.picture.height

    @cached_property
    def bgr(self) -> np.ndarray:
        """(H, W, 3) uint8, contiguous."""
        return np.ascontiguousarray(self._converted("bgr24"))

    def luma(self) -> np.ndarray:
        """(H, W) uint8, brightness alone. A read-only view of the decoder's own picture: costs nothing to get."""
        if self.picture.format.name not in _PLANAR_YUV:
            return self._converted("gray")
        plane = self.picture.planes[0]
        return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: self.height, : self.width]

    def _converted(self, pixel_format: str) -> np.ndarray:
        # One thread: left to itself swscale starts a pool of a thread per core for every single frame.
        return self.picture.reformat(format=pixel_format, threads=1).to_ndarray()


class Splitter:
    """Cuts a byte stream into access units, whatever the sizes of the chunks, and loses no byte between two units.

    The parser knows where a unit ends only when the next one begins, so the newest picture is always held back.
    `guess()` offers it, for the eye only, once the line has gone quiet.
    """

    def __init__(self, first_number: int = 0) -> None:
        self._next_number = first_number
        self._parameter_sets = b""
        self._size = (0, 0)
        self._parser = new_context()
        self._pending = bytearray()  # what the parser holds back
        self._fed_bytes = 0
        self._cut_bytes = 0
        self._arrivals: deque[tuple[int, float]] = deque()  # (bytes fed up to here, when)

    def feed(self, chunk: bytes, now_s: float) -> list[AccessUnit]:
        """The units that this chunk, read at now_s, completes."""
        self._fed_bytes += len(chunk)
        self._arrivals.append((self._fed_bytes, now_s))
        self._pending += chunk
        try:
            packets = self._parser.parse(chunk)
        except av.error.FFmpegError as error:
            log.debug("parser gave up (%s): starting afresh", error)
            self._restart()
            return []
        units = [unit for packet in packets if (unit := self._cut(packet)) is not None]
        if len(self._pending) > MAX_UNIT_BYTES:
            log.debug("%d bytes without the start of a picture: dropped", len(self._pending))
            self._restart()
        return units

    def guess(self) -> Guess | None:
        """The unit held back, as far as it is here; None where its last piece is no part of a picture.

        Nothing in H.264 says that a picture is complete, so this may be cut short: it has the number of the unit to
        come, and is to be compared with it.
        """
        at = self._pending.rfind(_START_CODE) + len(_START_CODE)
        if at < len(_START_CODE) or at + 1 >= len(self._pending):
            return None
        kind = self._pending[at] & 31
        if kind not in (_SLICE, _KEY_SLICE):
            return None
        unit = self._unit(bytes(self._pending), is_key=kind == _KEY_SLICE, arrival_s=self._arrivals[-1][1])
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
        data = data[start:]  # junk before the first picture
        if is_key:
            data = self._with_parameter_sets(data)
        return AccessUnit(self._next_number, arrival_s, is_key, data, *self._size)

    def _with_parameter_sets(self, data: bytes) -> bytes:
        """A clip may begin at any key frame; a camera started without --inline sends the sets only once."""
        sets_start = sets_end = -1
        for nal in _NAL.finditer(data):
            kind = nal[1][0] & 31
            if kind == _SPS and sets_start < 0:
                sets_start = nal.start()
            elif sets_start >= 0 and sets_end < 0 and kind not in (_SPS, _PPS):
                sets_end = nal.start()
            if kind in (_SLICE, _KEY_SLICE):
                break
        if sets_start < 0:
            return b"\x00" + self._parameter_sets + data if self._parameter_sets else data
        sets = data[sets_start:sets_end].rstrip(b"\x00")
        if sets != self._parameter_sets:
            self._parameter_sets = sets
            self._size = picture_size(data)
        return data


class Decoder:
    """Decodes for one consumer who wants the newest picture. Damage is counted, told once a spell, and survived."""

    def __init__(self) -> None:
        self.errors = 0
        self.wrong_guesses = 0
        self.failing_since_s: float | None = None  # arrival of the first unit of the present spell without a picture
        self._context = new_context()
        self._needs_key = True
        self._fed_number = -1  # where the decoder stands
        self._guess: AccessUnit | None = None  # decoded although its end was not certain
        self._refused_guess = -1
        self._doubt = 0.0
        self._doubt_told = False
        self._arrivals_s: deque[tuple[int, float]] = deque(maxlen=32)  # of what was fed; H.264 reorders 16 at most
        self._told = False
        self._last_error_s = 0.0

    @property
    def may_guess(self) -> bool:
        return self._doubt <= MAX_WRONG_GUESSES - 1

    def saw_whole(self, guess: Guess) -> bool:
        """Whether this one has been decoded without a part missing."""
        return self._guess is guess

    def plan(self, after_number: int, units: Sequence[AccessUnit], guess: AccessUnit | None) -> list[AccessUnit]:
        """What to decode, in order, to see the newest picture; empty where none newer than after_number can be had.

        `units` are numbered without a gap. The way goes on from where the decoder stands, or from the newest key frame
        where that is nearer.
        """
        self._check_guess(units)
        way: list[AccessUnit] = []
        if guess is not None and self.may_guess and guess.number > max(self._fed_number, self._refused_guess):
            way.append(guess)
        for unit in reversed(units):
            if unit.number <= self._fed_number or (way and way[-1].is_key):
                break
            way.append(unit)
        if not way or way[0].number <= after_number:
            return []
        joins = not self._needs_key and way[-1].number == self._fed_number + 1
        return way[::-1] if way[-1].is_key or joins else []

    def decode(self, way: Sequence[AccessUnit], after_number: int) -> Frame | None:
        """The newest picture of a way that `plan` gave; None where it is damaged or no newer than after_number."""
        newest: Frame | None = None
        self._fed_number = way[-1].number
        self._guess = None
        if self._needs_key:
            self._context = new_context()
            self._needs_key = False
        for unit in way:
            try:
                newest = self._decode_one(unit) or newest
            except av.error.FFmpegError as error:
                self._needs_key = True
                self._damaged(unit, str(error))
                break
        if isinstance(way[-1], Guess) and not self._needs_key:
            self._guess = way[-1]
        if newest is None or newest.number <= after_number:
            return None
        return newest

    def _decode_one(self, unit: AccessUnit) -> Frame | None:
        packet = av.Packet(unit.data)
        packet.pts = unit.number  # comes back on the picture, even from a camera that reorders
        self._arrivals_s.append((unit.number, unit.arrival_s))
        newest: Frame | None = None
        for picture in self._context.decode(packet):
            if picture.is_corrupt:
                self._damaged(unit, "part of the picture is missing")
                continue
            number, arrival_s = next((fed for fed in self._arrivals_s if fed[0] == picture.pts), self._arrivals_s[-1])
            newest = Frame(number, arrival_s, picture)
        if newest is not None:
            self._good(unit)
        return newest

    def _check_guess(self, units: Sequence[AccessUnit]) -> None:
        guess = self._guess
        if guess is None or not units or units[-1].number < guess.number:
            return
        self._guess = None
        index = guess.number - units[0].number
        if index >= 0 and units[index].data.rstrip(b"\x00") != guess.data.rstrip(b"\x00"):
            self._wrong_guess(guess.number)

    def _wrong_guess(self, number: int) -> None:
        """The decoder has been fed a part for the whole: it goes back to the newest key frame."""
        self.wrong_guesses += 1
        self._guess = None
        self._refused_guess = number
        self._fed_number = -1
        self._needs_key = True
        log.debug("picture %d was not complete when the camera went quiet", number)
        self._doubt += 1
        if not self.may_guess and not self._doubt_told:
            self._doubt_told = True
            log.info("camera pauses within pictures: each is looked at only when the next one begins")

    def _damaged(self, unit: AccessUnit, why: str) -> None:
        if isinstance(unit, Guess):
            self._wrong_guess(unit.number)
            return
        self.errors += 1
        if self.failing_since_s is None:
            self.failing_since_s = unit.arrival_s
        if not self._told:
            log.warning("camera picture %d cannot be decoded (%s): going on as soon as one can", unit.number, why)
        self._told = True
        self._last_error_s = unit.arrival_s

    def _good(self, unit: AccessUnit) -> None:
        self.failing_since_s = None
        self._doubt = max(0.0, self._doubt - FORGIVEN_PER_PICTURE)
        if self._told and unit.arrival_s - self._last_error_s > SPELL_S:
            self._told = False
            log.info("camera pictures are in order again (%d damaged so far)", self.errors)


def new_context() -> av.VideoCodecContext:
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_type = "SLICE"  # FRAME and AUTO hold pictures back
    context.thread_count = 1
    return context


def picture_size(key_unit: bytes) -> tuple[int, int]:
    """Width and height by a key unit's parameter sets, (0, 0) if unreadable. A parser keeps to the first it saw."""
    parser = new_context()
    try:
        parser.parse(key_unit)
        parser.parse(b"")
    except av.error.FFmpegError:
        return (0, 0)
    return (parser.width, parser.height)
