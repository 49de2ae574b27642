"""Stand-ins for what a test cannot wait for. The clock advances when somebody sleeps on it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class FakeClock:
    """Monotonic and wall time in one. `clock()` and `clock.monotonic()` are seconds since its start.

    `sleep` and `pause` return at once and advance both times. `step_wall` sets the wall clock alone, as NTP does.
    After `length_s` of pauses `over` is set, and the next `pause` blocks until its event is set: the run is over.
    For any thread.
    """

    def __init__(self, now_s: float = 0.0, *, wall_s: float = 1_700_000_000.0, length_s: float = float("inf")) -> None:
        self._lock = threading.Lock()
        self._now_s = now_s
        self._wall_offset_s = wall_s - now_s
        self._length_s = length_s
        self._alarms: list[tuple[float, Callable[[], None]]] = []
        self.over = threading.Event()

    def __call__(self) -> float:
        with self._lock:
            return self._now_s

    def monotonic(self) -> float:
        return self()

    def wall(self) -> float:
        with self._lock:
            return self._now_s + self._wall_offset_s

    def step_wall(self, by_s: float) -> None:
        with self._lock:
            self._wall_offset_s += by_s

    def at(self, now_s: float, action: Callable[[], None]) -> None:
        """Call `action` once, in the thread that sleeps, as soon as the clock reaches `now_s`."""
        with self._lock:
            self._alarms.append((now_s, action))

    def sleep(self, duration_s: float) -> None:
        with self._lock:
            self._now_s += max(0.0, duration_s)
            due = [action for at_s, action in self._alarms if at_s <= self._now_s]
            self._alarms = [alarm for alarm in self._alarms if alarm[0] > self._now_s]
        for action in due:
            action()

    def pause(self, event: threading.Event, timeout_s: float) -> bool:
        """As `event.wait(timeout_s)`, but time passes at once; whether the event was set meanwhile."""
        if event.is_set():
            return True
        self.sleep(timeout_s)
        if self() > self._length_s:
            self.over.set()
            event.wait(60)
        return event.is_set()
