"""Monotonic time for intervals, wall time for event ids, and the files that are held until the wall clock is set.

A Raspberry Pi has no battery-backed clock: after a power cut it starts hours or years in the past, and NTP sets it some
time later, in one step. Intervals therefore use the monotonic clock alone. An event from before the clock was set gets
its event id afterwards: the wall time then, less the monotonic time that has passed since.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from guardianberry.filenames import EventName, HeldName, free_path, parse_held, with_event_id

log = logging.getLogger(__name__)

TIMESYNCD_MARKER = Path("/run/systemd/timesync/synchronized")
CLOCK_WAIT_S = 120.0  # after the boot, for NTP to set the clock
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_TIME_ERROR = 5  # adjtimex(2): the kernel's clock is not synchronised


def system_clock_is_synchronised() -> bool:
    """What systemd-timesyncd or, for chrony and ntpd, the kernel says."""
    if TIMESYNCD_MARKER.exists():
        return True
    timex = ctypes.create_string_buffer(512)  # struct timex, all zero: modes = 0 only reads
    state = ctypes.CDLL(None).adjtimex(timex)
    return 0 <= state < _TIME_ERROR


class Clock:
    """The wall time for event ids.

    The clock counts as set, from then on for ever, once `is_synchronised` returns True, or `wait_s` after the boot: a
    wrong date is better than an event that never leaves the house.
    """

    def __init__(
        self,
        *,
        wait_s: float,
        is_synchronised: Callable[[], bool] = system_clock_is_synchronised,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        since_boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.monotonic = monotonic  # seconds for intervals: never set, never steps
        self._wait_s, self._is_synchronised = wait_s, is_synchronised
        self._wall, self._since_boot, self._pause = wall, since_boot, pause
        self._lock = threading.Lock()
        self._is_set = False
        self._used_event_ids: set[int] = set()
        self._event_ids_of_held: dict[int, int] = {}  # by the monotonic millisecond of the event
        self._begun_s = monotonic()
        self.boot = _BOOT_ID_FILE.read_text(encoding="ascii")[:8] if _BOOT_ID_FILE.exists() else "00000000"

    def is_set(self) -> bool:
        """Whether event ids are true from now on. The change is logged once."""
        with self._lock:
            if self._is_set:
                return True
            if self._is_synchronised():
                self._is_set = True
                log.info("clock: synchronised, it is %s", self._now_text())
            elif self._since_boot() >= self._wait_s:
                self._is_set = True
                text = "clock: not synchronised %.0f s after the boot, events are dated as it stands: %s"
                log.warning(text, self._since_boot(), self._now_text())
            return self._is_set

    def event_id(self, monotonic_s: float) -> int:
        """Unix seconds of a moment on the monotonic clock, by the wall clock as it stands now."""
        return max(0, round(self._wall() - (self.monotonic() - monotonic_s)))

    def new_event_id(self, monotonic_s: float) -> int:
        """As `event_id`, but never one given before: a clock that is set back an hour repeats its seconds.

        Nor one that a run killed just now can have given, whose image may be in the bucket: the second in which a run
        begins belongs to the run before. A run that began at 100.2 gives its event of 100.4 the id 101, and only once
        it is 101.2: if it were killed with that id at 100.45, the next run could begin at 100.46 and give 101 again.
        """
        event_id, first_of_our_own = self.event_id(monotonic_s), self.event_id(self._begun_s) + 1
        if event_id < first_of_our_own:
            event_id = first_of_our_own
            self._pause(max(0.0, self._begun_s + 1 - self.monotonic()))
        while event_id in self._used_event_ids:
            event_id += 1
        self._used_event_ids.add(event_id)
        return event_id

    def hold(self, name: EventName, monotonic_s: float) -> str:
        """The file name under which an event from `monotonic_s` is held until the clock is set."""
        return HeldName(self.boot, round(monotonic_s * 1000), name).encode()

    def event_id_of_held(self, monotonic_ms: int) -> int:
        """The true event id of an event that was held in this run; the same one at each call."""
        return self._event_ids_of_held.setdefault(monotonic_ms, self.event_id(monotonic_ms / 1000))

    def release_held(self, folder: Path) -> int:
        """Give the held files in `folder` their true times, oldest first; returns how many. Call it once `is_set()`.

        Image and clip of an event get one id, even where the clock is set between them. A file that was held before a
        reboot keeps its event id: its monotonic clock is gone. Raises OSError where the disk takes no renaming; a
        single file that cannot be renamed (one with the attribute "immutable", say) does not hold up the others.
        """
        released, fault = 0, None
        held = sorted((h.monotonic_ms, path, h) for path in folder.iterdir() if (h := parse_held(path.name)))
        for monotonic_ms, path, held_name in held:
            name = held_name.name
            if held_name.boot == self.boot:
                name = with_event_id(name, self.event_id_of_held(monotonic_ms))
            try:
                target = path.rename(free_path(folder, name))
            except OSError as error:
                fault = error
                continue
            released += 1
            log.info("clock: %s is now %s", path.name, target.name)
        if fault is not None and not released:
            raise fault
        return released

    def _now_text(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._wall()))
