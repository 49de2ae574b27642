"""The alert lane: uploads each alert image from memory at once, before the disk is asked for anything."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from guardianberry.machine import started
from guardianberry.upload.errors import Interrupted, UploadError
from guardianberry.upload.queue import QueuedFile
from guardianberry.upload.upload_file import Source, slices

log = logging.getLogger(__name__)

_PAUSES_S = (0.0, 1.0, 3.0)  # before each try of an alert; after the last one the sweep tries
_MAX_THREADS = 8
_CONFIRMED_S = 60.0  # by then whoever saved an image that S3 has already has deleted the file, on a slow card too
_MAX_BYTES = 20_000_000  # of images in memory: some 300, when the disk takes none of them


class Alert(Source):
    """An alert image in memory. `stored` is called once S3 has it."""

    def __init__(self, queued: QueuedFile, jpeg: bytes, stored: Callable[[], None]) -> None:
        super().__init__(queued, len(jpeg), slices(jpeg))
        self._stored = stored
        self.is_trying = False  # a thread is uploading it
        self.is_saved = False  # it is a queued file, too

    def delete(self) -> bool:
        self._stored()
        if self.is_saved:  # asked last: whoever saves it after this sees that it is stored
            self.queued.media_type.disk.call(partial(self.queued.path.unlink, missing_ok=True))
        return True


class AlertLane:
    """The alert images in memory. Each has a thread that tries three times; then the sweep goes on. For any thread.

    `send` returns once S3 has the image, and raises UploadError; `wake` makes the sweep start.
    """

    def __init__(
        self, *, send: Callable[[Alert], None], may_upload: Callable[[], bool], wake: Callable[[], None]
    ) -> None:
        self._send, self._may_upload, self._wake = send, may_upload, wake
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # guards what follows, and the flags of the alerts
        self._alerts: dict[str, Alert] = {}  # by file name, the oldest one first
        self._confirmed_s: dict[str, float] = {}  # by file name: when S3 confirmed it, the oldest one first
        self._threads: list[threading.Thread] = []

    def offer(self, alert: Alert) -> None:
        """Upload it now, or leave it to the sweep where eight others are under way or no thread can be started."""
        thread = threading.Thread(target=self._run, args=(alert,), name="alert", daemon=True)
        with self._lock:
            self._alerts[alert.queued.file_name] = alert
            self._drop_oldest()
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            alert.is_trying = len(self._threads) < _MAX_THREADS and started(thread)
            if alert.is_trying:
                self._threads.append(thread)
                return
        self._wake()

    def saved(self, file_name: str) -> None:
        """It is a queued file now: the sweep can take it from there, and memory is free again."""
        with self._lock:
            if alert := self._alerts.get(file_name):
                alert.is_saved = True
                self._forget_if_saved(alert)
        self._wake()

    def has_in_hand(self, file_name: str) -> bool:
        """Whether the sweep is to leave the file alone: the image is being uploaded, or S3 has just confirmed it."""
        with self._lock:
            alert = self._alerts.get(file_name)
            return file_name in self._confirmed_s or (alert is not None and alert.is_trying)

    def unsaved(self) -> list[Alert]:
        """Those that only memory has and that nobody is uploading, the newest one first."""
        with self._lock:
            return [alert for alert in reversed(self._alerts.values()) if not alert.is_trying]

    def try_once(self, alert: Alert) -> bool:
        """For the sweep: as `send`. False, and nothing done, where it is not needed any more."""
        with self._lock:
            if alert.is_trying or self._alerts.get(alert.queued.file_name) is not alert:
                return False
            alert.is_trying = True
        try:
            self._upload(alert)
        finally:
            self._tried(alert)
        return True

    def stop(self) -> None:
        """No further tries."""
        self._stopped.set()

    def threads(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._threads)

    def _run(self, alert: Alert) -> None:
        try:
            for pause_s in _PAUSES_S:
                if self._stopped.wait(pause_s) or not self._may_upload():
                    break
                try:
                    self._upload(alert)
                    break
                except UploadError as error:
                    if not error.cause.passes:
                        break
        except Interrupted:
            return
        except Exception:
            log.exception("the sweep tries to upload the alert image %s", alert.queued.file_name)
        finally:
            self._tried(alert)
        self._wake()

    def _upload(self, alert: Alert) -> None:
        self._send(alert)
        now_s = time.monotonic()
        with self._lock:
            self._alerts.pop(alert.queued.file_name, None)
            self._confirmed_s[alert.queued.file_name] = now_s
            while next(iter(self._confirmed_s.values())) < now_s - _CONFIRMED_S:
                del self._confirmed_s[next(iter(self._confirmed_s))]

    def _tried(self, alert: Alert) -> None:
        with self._lock:
            alert.is_trying = False
            self._forget_if_saved(alert)

    def _forget_if_saved(self, alert: Alert) -> None:
        if alert.is_saved and not alert.is_trying:
            self._alerts.pop(alert.queued.file_name, None)

    def _drop_oldest(self) -> None:
        total_bytes = sum(alert.size_bytes for alert in self._alerts.values())
        for file_name, alert in list(self._alerts.items()):
            if total_bytes <= _MAX_BYTES:
                return
            if not alert.is_trying:
                del self._alerts[file_name]
                total_bytes -= alert.size_bytes
                text = "alert image %s is dropped: neither S3 nor the disk takes it, and %d MB of images wait in memory"
                log.warning(text, file_name, round(_MAX_BYTES / 1e6))
