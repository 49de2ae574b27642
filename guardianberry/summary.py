"""Once a day one line that says that all is well, or how well: silence then means something."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

DAY_S = 24 * 3600.0


class UploadCounts(Protocol):
    """Since the start of the process; `uploader.Counters` is one."""

    @property
    def images(self) -> int: ...
    @property
    def videos(self) -> int: ...
    @property
    def failed_tries(self) -> int: ...
    @property
    def worst_alert_latency_s(self) -> float: ...


class Waiting(Protocol):
    """Files on the disk; `queue.Pending` is one."""

    @property
    def images(self) -> int: ...
    @property
    def videos(self) -> int: ...


class Uploads(Protocol):
    """Who knows; `uploader.Uploader` does."""

    def counters(self) -> UploadCounts: ...
    def pending(self) -> Waiting: ...


class Tally(NamedTuple):
    """What there has been since the start of the process."""

    events: int = 0
    images: int = 0
    videos: int = 0
    failed_tries: int = 0
    relaunches: int = 0
    worst_alert_latency_s: float = 0.0


def summary(before: Tally, now: Tally, waiting: Waiting, free_bytes: int | None) -> str:
    """The line for the time from `before` to `now`."""
    images, videos = now.images - before.images, now.videos - before.videos
    return (
        f"the last 24 hours: {_count(now.events - before.events, 'event')};"
        f" {_count(images, 'image')} and {_count(videos, 'video')} uploaded,"
        f" {waiting.images} and {waiting.videos} waiting,"
        f" {_count(now.failed_tries - before.failed_tries, 'failed try', 'failed tries')};"
        f" {_latency(before, now)}; camera relaunched {_count(now.relaunches - before.relaunches, 'time')};"
        f" {'unknown' if free_bytes is None else f'{free_bytes / 1e9:.1f} GB'} free"
    )


def _latency(before: Tally, now: Tally) -> str:
    """The worst of the day if it is the worst of all, else a bound: the count goes on since the start."""
    if now.worst_alert_latency_s > before.worst_alert_latency_s:
        return f"slowest alert {now.worst_alert_latency_s:.1f} s after its frame"
    if now.images == before.images or not now.worst_alert_latency_s:
        return "no alert"
    return f"no alert later than {now.worst_alert_latency_s:.1f} s after its frame"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


class DailySummary:
    """Tells the line once a day, counted from the start. For the loop: between the days a call costs nothing."""

    def __init__(
        self,
        folder: Path,
        uploads: Uploads,
        now_s: float,
        *,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._folder, self._uploads, self._free_bytes = folder, uploads, free_bytes
        self._due_s = now_s + DAY_S
        self._before = Tally()

    def log_if_due(self, now_s: float, *, events: int, relaunches: int) -> None:
        """`now_s` on the monotonic clock; the counts since the start of the process."""
        if now_s < self._due_s:
            return
        while self._due_s <= now_s:  # one line, however long the loop was away
            self._due_s += DAY_S
        counts = self._uploads.counters()
        now = Tally(events, counts.images, counts.videos, counts.failed_tries, relaunches, counts.worst_alert_latency_s)
        log.info("%s", summary(self._before, now, self._uploads.pending(), self._free()))
        self._before = now

    def _free(self) -> int | None:
        try:
            return self._free_bytes(self._folder)
        except OSError:
            return None
