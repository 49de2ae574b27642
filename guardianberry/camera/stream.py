"""The camera's video as it comes in: a reader thread, a ring of the last seconds, taps for clips, the newest picture.

The reader takes every byte at once, because a camera whose reader is slow loses frames: it never decodes, and never
waits for anybody. Whoever wants to see a picture decodes it in a thread of its own (`newest_frame`).

Glossary: an access unit is one coded picture; a key unit starts afresh, so that a clip or a decoder can begin there;
the ring holds the last units; a tap is one reader's queue of units, filled from the ring and then live.
"""

import fcntl
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from guardianberry.camera.h264 import AccessUnit, Decoder, Frame, Guess, Splitter

__all__ = ["AccessUnit", "Frame", "Ring", "Stream", "Tap"]

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
# The kernel's own buffer: carries the camera over a moment in which this process gets no CPU.
PIPE_BYTES = 1024 * 1024
# A camera writes a picture in one go. Silence of this length after a whole NAL unit means that the picture is complete.
QUIET_MS = 20
CLOSE_TIMEOUT_S = 2.0  # the reader waits for nothing but the pipe: never needed so far
# The ring is this much longer than the pre-roll, which counts back from the first picture with a person in it: that one
# is looked at a little later, and the event is certain only some pictures later still.
RING_SLACK_S = 5.0
# Bounds for a camera that sends no key frames, or ignores the bit rate (rpicam-vid's own default is 10 Mbit/s).
MAX_RING_GOP_S = 15.0
MAX_RING_BYTES = 24 * 2**20
# A tap that nobody reads ends here: half a minute at 8 Mbit/s on top of a full ring.
MAX_TAP_BYTES = 48 * 2**20


class Ring:
    """The last access units, without a gap. Begins with a key unit, unless one GOP alone is beyond the bounds."""

    def __init__(self, span_s: float, max_bytes: int = MAX_RING_BYTES) -> None:
        self.units: deque[AccessUnit] = deque()
        self.size_bytes = 0
        self._keys: deque[AccessUnit] = deque()
        self._span_s = span_s
        self._max_bytes = max_bytes

    def append(self, unit: AccessUnit) -> None:
        if not self.units and not unit.is_key:
            return  # nothing can be done with it
        self.units.append(unit)
        self.size_bytes += len(unit.data)
        if unit.is_key:
            self._keys.append(unit)
        while len(self._keys) > 1 and (self._keys[1].arrival_s <= unit.arrival_s - self._span_s or self._is_over()):
            self._drop_first_gop()
        while self._is_over():
            self._drop_first()

    def start_of_clip(self, at_s: float, pre_roll_s: float) -> AccessUnit | None:
        """The newest key unit at least pre_roll_s older than at_s, else the oldest one."""
        old_enough = [key for key in self._keys if key.arrival_s <= at_s - pre_roll_s]
        if old_enough:
            return old_enough[-1]
        return self._keys[0] if self._keys else None

    def _is_over(self) -> bool:
        span_s = self.units[-1].arrival_s - self.units[0].arrival_s
        return len(self.units) > 1 and (self.size_bytes > self._max_bytes or span_s > self._span_s + MAX_RING_GOP_S)

    def _drop_first_gop(self) -> None:
        self._drop_first()
        while not self.units[0].is_key:
            self._drop_first()

    def _drop_first(self) -> None:
        unit = self.units.popleft()
        self.size_bytes -= len(unit.data)
        if unit.is_key:
            self._keys.popleft()


class Tap:
    """One reader's own queue of access units: begins with a key unit, no unit lost, none twice.

    Left unread beyond `MAX_TAP_BYTES` it takes no more units, as after `close`; those queued can still be had.
    """

    def __init__(self, changed: threading.Condition, units: Iterable[AccessUnit] = ()) -> None:
        self._changed = changed
        self._units = deque(units)
        self._size_bytes = sum(len(unit.data) for unit in self._units)
        self._waits_for_key = not self._units
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """More units may be queued."""
        return self._is_open

    @property
    def ended(self) -> bool:
        """No unit will ever be had any more."""
        return not self._is_open and not self._units

    def get(self, timeout_s: float) -> AccessUnit | None:
        """The next unit; None if none came in time or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._units or not self._is_open, timeout_s)
            if not self._units:
                return None
            unit = self._units.popleft()
            self._size_bytes -= len(unit.data)
            return unit

    def close(self) -> None:
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    def feed(self, unit: AccessUnit) -> None:
        """The stream's side, with the lock held."""
        if not self._is_open or (self._waits_for_key and not unit.is_key):
            return
        self._waits_for_key = False
        if self._size_bytes + len(unit.data) > MAX_TAP_BYTES:
            log.warning("clip: %d MB behind the camera; it ends here", self._size_bytes // 2**20)
            self._is_open = False
            return
        self._units.append(unit)
        self._size_bytes += len(unit.data)


class Stream:
    """Reads H.264 from a pipe or socket, of which it takes possession (it closes the descriptor).

    All methods may be called from any thread, `newest_frame` from one only. The last unit before the end of the data
    is given out only if `newest_frame` has found it to be whole: a camera that dies may leave half of one.
    """

    def __init__(
        self, fd: int, *, pre_roll_s: float, clock: Callable[[], float] = time.monotonic, first_number: int = 0
    ) -> None:
        self.end_reason = ""  # why the reading ended, where it was not the end of the data
        self.next_number = first_number
        self.started_s = self.last_byte_s = self.last_unit_s = self.last_key_s = clock()
        self.received_bytes = 0
        self._seen_s = self.started_s  # arrival of the picture looked at last
        self.size: tuple[int, int] | None = None
        self._fd = fd
        self._clock = clock
        self._pre_roll_s = pre_roll_s
        self._splitter = Splitter(first_number)
        self._decoder = Decoder()
        self._changed = threading.Condition()
        self._ring = Ring(pre_roll_s + RING_SLACK_S)
        self._taps: list[Tap] = []
        self._guess: Guess | None = None
        self._guess_is_due = False
        self._ended = False
        self._wake_fd, self._waker_fd = os.pipe()
        os.set_blocking(fd, False)
        _enlarge(fd)
        self._thread = threading.Thread(target=self._run, name="camera-reader", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def failing_since_s(self) -> float | None:
        """Since when no picture could be decoded although somebody tried; None while all is well."""
        return self._decoder.failing_since_s

    def newest_frame(self, after_number: int = -1, timeout_s: float = 0) -> Frame | None:
        """The newest picture, decoded here and now, if it is newer than after_number; waits for one.

        Asked for newer ones than the last, it never gives the same picture twice; one that was seen before it was whole
        comes again to those who ask for any. None on time-out, at the end of the stream, and for damaged data.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not (way := self._decoder.plan(after_number, self._ring.units, self._guess)):
                left_s = deadline_s - time.monotonic()
                if self._ended or left_s <= 0:
                    return None
                self._changed.wait(left_s)
        frame = self._decoder.decode(way, after_number)
        if frame is not None:
            self._seen_s = frame.arrival_s
        return frame

    def clip_start_s(self, at_s: float | None = None) -> float | None:
        """When the first unit arrived that a tap opened now would give; None while there is no key unit."""
        with self._changed:
            start = self._start_of_clip(at_s)
            return None if start is None else start.arrival_s

    def open_tap(self, at_s: float | None = None) -> Tap:
        """A tap that begins the pre-roll or a little more before at_s, as far as there is video.

        at_s is the arrival of a picture, by default the one that `newest_frame` gave last.
        """
        with self._changed:
            start = self._start_of_clip(at_s)
            units = [] if start is None else [unit for unit in self._ring.units if unit.number >= start.number]
            tap = Tap(self._changed, units)
            if self._ended:
                tap.close()
            else:
                self._taps.append(tap)
            return tap

    def close(self) -> None:
        """Ends the reader and gives back the descriptor. Units already in taps stay there."""
        with self._changed:
            if self._fd < 0:
                return
            os.write(self._waker_fd, b"x")
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("camera reader does not end: its descriptors stay open")
            return
        with self._changed:
            for fd in (self._fd, self._wake_fd, self._waker_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._wake_fd = self._waker_fd = -1

    def _start_of_clip(self, at_s: float | None) -> AccessUnit | None:
        return self._ring.start_of_clip(self._seen_s if at_s is None else at_s, self._pre_roll_s)

    def _run(self) -> None:
        try:
            self._read_to_the_end()
        except Exception as error:
            self.end_reason = f"{type(error).__name__}: {error}"
            log.exception("camera reader failed")
        finally:
            with self._changed:
                if self._guess is not None and self._decoder.saw_whole(self._guess):
                    self._give_out(AccessUnit(**vars(self._guess)))
                self._ended = True
                for tap in self._taps:
                    tap.close()
                self._changed.notify_all()

    def _read_to_the_end(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while True:
            ready = poller.poll(QUIET_MS if self._guess_is_due else None)
            if any(fd == self._wake_fd for fd, _ in ready):
                return
            if not ready:
                self._line_is_quiet()
                continue
            try:
                chunk = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self.end_reason = error.strerror or str(error)
                return
            if not chunk:
                return
            self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        now_s = self._clock()
        units = self._splitter.feed(chunk, now_s)
        self._guess_is_due = self._decoder.may_guess
        with self._changed:
            self.last_byte_s = now_s
            self.received_bytes += len(chunk)
            self._guess = None
            for unit in units:
                self._give_out(unit)
            if units:
                self._changed.notify_all()

    def _line_is_quiet(self) -> None:
        self._guess_is_due = False
        guess = self._splitter.guess()
        with self._changed:
            self._guess = guess
            self._changed.notify_all()

    def _give_out(self, unit: AccessUnit) -> None:
        self.next_number = unit.number + 1
        self.last_unit_s = unit.arrival_s
        self.size = (unit.width, unit.height) if unit.width else None
        if unit.is_key:
            self.last_key_s = unit.arrival_s
        self._ring.append(unit)
        for tap in self._taps:
            tap.feed(unit)
        self._taps = [tap for tap in self._taps if tap.is_open]


def _enlarge(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (AttributeError, OSError) as error:  # a socket, or a kernel that allows no more
        log.debug("pipe keeps its size: %s", error)
