"""From access units to frames: decodes what the main loop asks for, in its thread."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import av
import av.error
import numpy as np

from guardianberry.camera.h264 import AccessUnit, Guess, new_context

log = logging.getLogger(__name__)

# A wrong guess costs decoding again from the last key frame. A camera that pauses within access units causes many.
MAX_WRONG_GUESSES = 3
# Decoding errors less than this apart are logged as one.
SPELL_S = 10.0
# The frames of one call are a few seconds of video at most, and a Pi decodes faster than it records. Whatever takes
# longer (thousands of huge empty frames) was made to stop the main loop.
MAX_DECODE_S = 5.0


class UnusableStreamError(Exception):
    """The camera's video cannot be used, and more of it would not help."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture."""

    number: int
    arrival_s: float
    picture: av.VideoFrame

    @property
    def bgr(self) -> np.ndarray:
        """(H, W, 3) uint8, contiguous. Converted at each use: it takes twice the memory of a frame that is kept."""
        # One thread: by default swscale starts one thread per core for every single frame.
        return np.ascontiguousarray(self.picture.reformat(format="bgr24", threads=1).to_ndarray())

    def luma(self) -> np.ndarray:
        """(H, W) uint8, brightness. A read-only view of the decoder's memory, without a copy."""
        plane = self.picture.planes[0]  # of 8 bits in 4:2:0 and in grey, and `Splitter` lets nothing else pass
        return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


class Decoder:
    """Decodes the newest frame for one consumer. Errors in the data are logged once a spell, and not raised."""

    def __init__(self) -> None:
        self.wrong_guesses = 0
        self.failing_since_s: float | None = None  # arrival of the first unit since which none could be decoded
        self._context = new_context()
        self._needs_key = True
        self._fed_number = -1  # the last unit that was decoded
        self._guess: AccessUnit | None = None  # decoded although its end was not certain
        self._refused_guess = -1
        self._arrivals_s: deque[tuple[int, float]] = deque(maxlen=32)  # of what was fed; H.264 reorders 16 at most
        self._last_error_s = float("-inf")

    @property
    def may_guess(self) -> bool:
        return self.wrong_guesses < MAX_WRONG_GUESSES

    def saw_whole(self, guess: Guess) -> bool:
        """Whether this guess has been decoded without a missing part."""
        return self._guess is guess

    def plan(self, after_number: int, units: Sequence[AccessUnit], guess: AccessUnit | None) -> list[AccessUnit]:
        """What to decode, in order, to get the newest frame; empty if there is none newer than after_number.

        `units` are numbered without a gap. Decoding continues from the last unit decoded, or starts at the newest key
        frame where that is nearer.
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
        continues = not self._needs_key and way[-1].number == self._fed_number + 1
        return way[::-1] if way[-1].is_key or continues else []

    def decode(self, way: Sequence[AccessUnit], after_number: int) -> Frame | None:
        """The newest frame of a way that `plan` gave; None if it is damaged or no newer than after_number.

        Raises UnusableStreamError where decoding takes longer than MAX_DECODE_S.
        """
        newest: Frame | None = None
        give_up_s = time.monotonic() + MAX_DECODE_S
        self._fed_number = way[-1].number
        self._guess = None
        if self._needs_key:
            self._context = new_context()
            self._needs_key = False
        for count, unit in enumerate(way):
            if time.monotonic() > give_up_s:
                raise UnusableStreamError(f"decoding {count} of {len(way)} frames took {MAX_DECODE_S:.0f} s")
            try:
                newest = self._decode_one(unit) or newest
            except av.error.FFmpegError as error:
                self._needs_key = True
                self._damaged(unit, str(error))
                break
        if isinstance(way[-1], Guess) and not self._needs_key:
            self._guess = way[-1]
        return newest if newest is not None and newest.number > after_number else None

    def _decode_one(self, unit: AccessUnit) -> Frame | None:
        packet = av.Packet(unit.data)
        packet.pts = unit.number  # comes back with the picture, even from a camera that reorders
        self._arrivals_s.append((unit.number, unit.arrival_s))
        newest: Frame | None = None
        for picture in self._context.decode(packet):
            if picture.is_corrupt:
                self._damaged(unit, "part of the picture is missing")
                continue
            number, arrival_s = next((fed for fed in self._arrivals_s if fed[0] == picture.pts), self._arrivals_s[-1])
            newest = Frame(number, arrival_s, picture)
            self.failing_since_s = None
        return newest

    def _check_guess(self, units: Sequence[AccessUnit]) -> None:
        guess = self._guess
        if guess is None or not units or units[-1].number < guess.number:
            return
        self._guess = None
        index = guess.number - units[0].number
        if index >= 0 and units[index].data.rstrip(b"\x00") != guess.data.rstrip(b"\x00"):
            self._guessed_wrong(guess.number)

    def _guessed_wrong(self, number: int) -> None:
        """The decoder was fed an incomplete unit: it must go back to the newest key frame."""
        self.wrong_guesses += 1
        self._guess = None
        self._refused_guess = number
        self._fed_number = -1
        self._needs_key = True
        log.debug("access unit %d was not complete when the camera fell silent", number)
        if self.wrong_guesses == MAX_WRONG_GUESSES:
            log.info("camera pauses within access units: each is decoded only when the next one begins")

    def _damaged(self, unit: AccessUnit, why: str) -> None:
        if isinstance(unit, Guess):
            self._guessed_wrong(unit.number)
            return
        self.failing_since_s = unit.arrival_s if self.failing_since_s is None else self.failing_since_s
        if unit.arrival_s - self._last_error_s > SPELL_S:
            log.warning("camera frame %d cannot be decoded (%s): continuing with the next key frame", unit.number, why)
        self._last_error_s = unit.arrival_s
