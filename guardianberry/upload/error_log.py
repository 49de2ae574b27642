"""What the log says of uploads that fail: each cause once, and once that uploads work again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from guardianberry.logs import OncePerCause
from guardianberry.upload.errors import FailureScope, UploadError
from guardianberry.upload.queue import MediaType, Pending

log = logging.getLogger(__name__)


class UploadErrorLog:
    """However many tries it takes. For any thread."""

    def __init__(self) -> None:
        self._once = OncePerCause()  # a cause is (Cause, bucket), the bucket empty unless it alone is concerned
        self._lock = threading.Lock()
        self._down: set[str] = set()  # buckets that accept nothing; "" stands for all of S3

    def failed(self, media_type: MediaType, error: UploadError, file_name: str = "") -> None:
        cause = error.cause
        bucket = media_type.bucket if cause.scope is FailureScope.BUCKET else ""
        if cause.scope in (FailureScope.EVERYTHING, FailureScope.BUCKET):
            self.bucket_is_down(bucket)
        if self._once.is_new((cause, bucket)):
            which = f"{media_type.word}s" if bucket else cause.scope.value
            if cause.scope is FailureScope.FILE:
                which += f" (such as {file_name})"
            log.warning("uploads of %s fail: %s", which, error)

    def bucket_is_down(self, bucket: str) -> None:
        """From now on nothing is expected to go through, so that the next success is worth a line."""
        with self._lock:
            self._down.add(bucket)

    def succeeded(self, media_type: MediaType, pending: Callable[[], Pending]) -> bool:
        """True when nothing went through before this."""
        bucket = media_type.bucket
        with self._lock:
            over = self._down & {"", bucket}
            self._down -= over
        self._once.forget(lambda told: told[0].scope is FailureScope.EVERYTHING or told[1] == bucket)
        if over:
            left = pending()
            log.info("uploads work again; still queued: %d images, %d videos", left.images, left.videos)
        return bool(over)

    def nothing_failed(self) -> None:
        """A whole sweep went well, so that causes that concern single files are logged again when they come back."""
        self._once.forget(lambda told: told[0].scope is FailureScope.FILE)
