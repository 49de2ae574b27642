"""What the two lanes of the uploader share: who waits for whom, how long, and what is said about it."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from guardianberry.upload.errors import Cause, FailureScope, Interrupted, UploadError
from guardianberry.upload.queue import MediaType

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0  # the most that a network that is back goes unused
# While an alert is under way the backlog sends one block in this time: often enough that no server hangs up.
_TRICKLE_S = 8.0


class Pending(NamedTuple):
    """Files on the disk that wait for their upload."""

    images: int
    videos: int


class Gate:
    """Holds the backlog's uploads up while an alert is under way, so that the alert has the uplink to itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._alerts = 0
        self._stopping = False

    @contextmanager
    def alert(self) -> Iterator[None]:
        with self._changed:
            self._alerts += 1
        try:
            yield
        finally:
            with self._changed:
                self._alerts -= 1
                self._changed.notify_all()

    def wait_for_alerts(self) -> None:
        """Returns when no alert is under way, at the latest after `_TRICKLE_S`. Raises Interrupted at shutdown."""
        with self._changed:
            self._changed.wait_for(lambda: self._alerts == 0 or self._stopping, _TRICKLE_S)
            if self._stopping:
                raise Interrupted

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()


class Backoff:
    """Pauses that grow from one second to five minutes, each with a jitter, so that a fleet does not come in step."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._failures = 0

    def next_pause_s(self) -> float:
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures, 20))
        self._failures += 1
        return pause_s * self._uniform(0.5, 1.0)

    def reset(self) -> None:
        self._failures = 0


class UploadErrorLog:
    """Says each cause once, and once that it is over, however many tries that took. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], Cause] = {}
        self._down: set[str] = set()  # buckets that nothing goes into; "" stands for all of S3

    def refused(self, kind: MediaType, refused: UploadError) -> None:
        cause = refused.cause
        where = kind.bucket if cause.scope is FailureScope.BUCKET else ""
        with self._lock:
            if cause.scope in (FailureScope.EVERYTHING, FailureScope.BUCKET):
                self._down.add(where)
            if (cause.name, where) in self._told:
                return
            self._told[cause.name, where] = cause
        which = {FailureScope.EVERYTHING: "all files", FailureScope.BUCKET: f"{kind.word}s"}.get(
            cause.scope, "some files"
        )
        log.warning("uploads of %s fail: %s; nothing is lost", which, refused)

    def nothing_goes(self, kind: MediaType) -> None:
        """Several files of this kind failed one after the other, so its recovery will be worth a line."""
        with self._lock:
            self._down.add(kind.bucket)

    def went_through(self, kind: MediaType, pending: Callable[[], Pending]) -> None:
        with self._lock:
            over = self._down & {"", kind.bucket}
            self._down -= over
            for (name, where), cause in list(self._told.items()):
                if cause.scope is FailureScope.EVERYTHING or where == kind.bucket:
                    del self._told[name, where]
        if over:
            left = pending()
            log.info("uploads work again; still waiting: %d images, %d videos", left.images, left.videos)

    def all_clear(self) -> None:
        """Nothing that failed is left, so that a cause that concerned single files may be said again."""
        with self._lock:
            self._told = {key: cause for key, cause in self._told.items() if key[1]}
