"""Once a day one line with the totals since the start: the daemon is alive, and this is how it does."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from guardianberry.disk import free_bytes
from guardianberry.machine import started

if TYPE_CHECKING:
    from guardianberry.upload.uploader import Uploader

log = logging.getLogger(__name__)

DAY_S = 24 * 3600.0


class DailySummary:
    """Logs the line once a day, counted from the start. Until it is due, a call costs nothing."""

    def __init__(self, folder: Path, uploader: Uploader, now_s: float) -> None:
        self._folder, self._uploader = folder, uploader
        self._start_s = now_s
        self._days = 0

    def log_if_due(self, now_s: float, events: int, relaunches: int, still_things: int) -> None:
        """`now_s` on the monotonic clock; the counts since the start of the process."""
        days = int((now_s - self._start_s) / DAY_S)
        if days <= self._days:
            return
        self._days = days
        # In a thread, because it counts files: the disk may hang, the loop must not.
        facts = days, events, relaunches, still_things
        started(threading.Thread(target=self._log, args=facts, name="summary", daemon=True))

    def _log(self, days: int, events: int, relaunches: int, still_things: int) -> None:
        counters, queued = self._uploader.counters(), self._uploader.pending()
        worst_s, free = counters.worst_alert_latency_s, free_bytes(self._folder)
        alert = f"slowest alert {worst_s:.1f} s after its frame" if worst_s else "no alert"
        log.info(
            "since the start, %s ago: %s; %s and %s uploaded, %d and %d queued, %s; %s; camera relaunched %s; "
            "%s that look like people; %s free",
            _count(days, "day"),
            _count(events, "event"),
            _count(counters.images, "image"),
            _count(counters.videos, "video"),
            queued.images,
            queued.videos,
            _count(counters.failed_tries, "failed try", "failed tries"),
            alert,
            _count(relaunches, "time"),
            _count(still_things, "still thing"),
            "unknown" if free is None else f"{free / 1e9:.1f} GB",
        )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
