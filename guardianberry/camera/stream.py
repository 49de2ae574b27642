"""The camera's video as it arrives: a reader thread, a ring of the last seconds, taps for clips, the newest frame.

The reader takes every byte at once, because a camera whose reader is slow loses frames: it never decodes, and never
waits for another thread. Frames are decoded in the thread that asks for them (`newest_frame`).
"""

import contextlib
import fcntl
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from guardianberry.camera.decoder import Decoder, Frame
from guardianberry.camera.h264 import AccessUnit, Guess, Splitter
from guardianberry.camera.ring import Ring, Tap

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
# The kernel's buffer: carries the camera over a moment in which this process gets no CPU.
PIPE_BYTES = 1024 * 1024
# A camera writes an access unit in one go. Silence of this length after a whole NAL unit means that it is complete.
QUIET_MS = 20
CLOSE_TIMEOUT_S = 2.0  # the reader waits for nothing but the pipe: never needed so far
# The ring is longer than the pre-roll by this: the first frame with a person is decoded a little after its arrival, and
# the event starts some frames later still.
RING_SLACK_S = 5.0


class Stream:
    """Reads H.264 from a pipe or socket, whose descriptor it closes at the end.

    All methods may be called from any thread, `newest_frame` from one only. The last unit before the end of the data
    goes into taps only if `newest_frame` has decoded it whole: a camera that dies may leave half of one.
    """

    def __init__(
        self, fd: int, *, pre_roll_s: float, clock: Callable[[], float] = time.monotonic, first_number: int = 0
    ) -> None:
        self.ended = False
        self.end_reason = ""  # why reading ended, if not with the end of the data
        self.next_number = first_number
        self.started_s = self.last_byte_s = self.last_unit_s = self.last_key_s = clock()
        self.received_bytes = 0
        self.size = (0, 0)
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
        self._wake_fd, self._waker_fd = os.pipe()
        os.set_blocking(fd, False)
        with contextlib.suppress(OSError):  # a socket, or a kernel that allows no more
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._thread = threading.Thread(target=self._run, name="camera-reader", daemon=True)
        self._thread.start()

    @property
    def failing_since_s(self) -> float | None:
        """Since when no frame could be decoded although one was asked for; None while decoding works."""
        return self._decoder.failing_since_s

    def newest_frame(self, after_number: int = -1, timeout_s: float = 0) -> Frame | None:
        """The newest frame, decoded here and now, if it is newer than after_number; waits for one.

        With after_number as the last one's number it never returns a frame twice; without, a frame that was decoded
        before its end was certain may come again. None on time-out, at the end of the stream, and for damaged data.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not (way := self._decoder.plan(after_number, self._ring.units, self._guess)):
                left_s = deadline_s - time.monotonic()
                if self.ended or left_s <= 0:
                    return None
                self._changed.wait(left_s)
        return self._decoder.decode(way, after_number)

    def open_tap(self, at_s: float) -> Tap:
        """A tap that begins with the last key unit before the pre-roll of a frame of `at_s`, or with the oldest one."""
        with self._changed:
            start = self._ring.start_of_clip(at_s, self._pre_roll_s)
            units = [] if start is None else [unit for unit in self._ring.units if unit.number >= start.number]
            tap = Tap(self._changed, units)
            if self.ended:
                tap.close()
            else:
                self._taps.append(tap)
            return tap

    def close(self) -> None:
        """Ends the reader and closes the descriptor. Units already in taps stay there."""
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
                self.ended = True
                for tap in self._taps:
                    tap.close()
                self._changed.notify_all()

    def _read_to_the_end(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while not self.end_reason:
            ready = poller.poll(QUIET_MS if self._guess_is_due else None)
            if any(fd == self._wake_fd for fd, _ in ready):
                return
            if not ready:
                self._offer_guess()
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
        self.end_reason = self._splitter.fault

    def _offer_guess(self) -> None:
        self._guess_is_due = False
        guess = self._splitter.guess()
        with self._changed:
            self._guess = guess
            self._changed.notify_all()

    def _give_out(self, unit: AccessUnit) -> None:
        self.next_number = unit.number + 1
        self.last_unit_s = unit.arrival_s
        self.size = (unit.width, unit.height)
        if unit.is_key:
            self.last_key_s = unit.arrival_s
        self._ring.append(unit)
        for tap in self._taps:
            tap.feed(unit)
        self._taps = [tap for tap in self._taps if tap.is_open]
