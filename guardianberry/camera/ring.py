"""The last seconds of access units in memory, and the queues that clips are written from. No threads, no clock."""

import logging
import threading
from collections import deque
from collections.abc import Iterable

from guardianberry.camera.h264 import AccessUnit

log = logging.getLogger(__name__)

# Bounds for a camera that sends no key frames, or ignores the bit rate (rpicam-vid's own default is 10 Mbit/s).
MAX_RING_GOP_S = 15.0
MAX_RING_BYTES = 24 * 2**20
MAX_RING_UNITS = 2000  # pre-roll and slack at 120 frames/s; each unit costs some 300 bytes beside its data
# A tap that nobody reads ends here: half a minute at 8 Mbit/s on top of a full ring.
MAX_TAP_BYTES = 48 * 2**20
MAX_TAP_UNITS = 8000


class Ring:
    """The last access units, without a gap. Begins with a key unit, unless one GOP alone exceeds the bounds."""

    def __init__(self, span_s: float, max_bytes: int = MAX_RING_BYTES) -> None:
        self.units: deque[AccessUnit] = deque()
        self.size_bytes = 0
        self._keys: deque[AccessUnit] = deque()
        self._span_s = span_s
        self._max_bytes = max_bytes

    def append(self, unit: AccessUnit) -> None:
        if not self.units and not unit.is_key:
            return  # nothing can be decoded before the first key unit
        self.units.append(unit)
        self.size_bytes += len(unit.data)
        if unit.is_key:
            self._keys.append(unit)
        while len(self._keys) > 1 and (self._keys[1].arrival_s <= unit.arrival_s - self._span_s or self._is_over()):
            self._drop_first()
            while not self.units[0].is_key:
                self._drop_first()
        while self._is_over():
            self._drop_first()

    def start_of_clip(self, at_s: float, pre_roll_s: float) -> AccessUnit | None:
        """The newest key unit at least pre_roll_s older than at_s, else the oldest one."""
        old_enough = [key for key in self._keys if key.arrival_s <= at_s - pre_roll_s]
        return old_enough[-1] if old_enough else next(iter(self._keys), None)

    def _is_over(self) -> bool:
        span_s = self.units[-1].arrival_s - self.units[0].arrival_s
        is_long = span_s > self._span_s + MAX_RING_GOP_S or len(self.units) > MAX_RING_UNITS
        return len(self.units) > 1 and (is_long or self.size_bytes > self._max_bytes)

    def _drop_first(self) -> None:
        unit = self.units.popleft()
        self.size_bytes -= len(unit.data)
        if unit.is_key:
            self._keys.popleft()


class Tap:
    """One reader's own queue of access units: begins with a key unit, no unit lost, none twice.

    Left unread beyond `MAX_TAP_BYTES` or `MAX_TAP_UNITS` it takes no more units, as after `close`; those queued can
    still be read.
    """

    def __init__(self, changed: threading.Condition, units: Iterable[AccessUnit] = ()) -> None:
        self.is_open = True  # more units may be queued
        self._changed = changed
        self._units = deque(units)
        self._size_bytes = sum(len(unit.data) for unit in self._units)
        self._waits_for_key = not self._units

    @property
    def ended(self) -> bool:
        """No unit will come any more."""
        return not self.is_open and not self._units

    def get(self, timeout_s: float) -> AccessUnit | None:
        """The next unit; None if none came in time or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._units or not self.is_open, timeout_s)
            if not self._units:
                return None
            unit = self._units.popleft()
            self._size_bytes -= len(unit.data)
            return unit

    def close(self) -> None:
        with self._changed:
            self.is_open = False
            self._changed.notify_all()

    def feed(self, unit: AccessUnit) -> None:
        """The stream's side, with the lock held."""
        if not self.is_open or (self._waits_for_key and not unit.is_key):
            return
        self._waits_for_key = False
        if self._size_bytes + len(unit.data) > MAX_TAP_BYTES or len(self._units) >= MAX_TAP_UNITS:
            size_mb = self._size_bytes // 2**20
            log.warning("clip: %d MB (%d frames) behind the camera; it ends here", size_mb, len(self._units))
            self.is_open = False
            return
        self._units.append(unit)
        self._size_bytes += len(unit.data)
