"""Uploads the finished event files to S3, and removes each from the disk once S3 has confirmed it.

There are two lanes. An alert image is uploaded at once, in a thread of its own; other uploads pause meanwhile. The
sweep uploads the queued files one by one: the newest image, then the other images, then the videos, oldest first. It
also repeats uploads that failed. The queue is on the disk, so that no crash, no power cut and no week without network
loses a file.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from guardianberry.filenames import ImageName, parse
from guardianberry.upload.errors import FailureScope, Interrupted, UploadError, UploadErrorLog
from guardianberry.upload.queue import (
    SET_ASIDE_S,
    MediaType,
    Pending,
    Queue,
    QueuedFile,
    image_media_type,
    video_media_type,
)
from guardianberry.upload.s3 import S3
from guardianberry.upload.upload_file import Gate, OpenFile, UnfitError, header_value, metadata

log = logging.getLogger(__name__)
_Value = TypeVar("_Value")

_IDLE_PAUSE_S = SET_ASIDE_S  # then files that were set aside, or put there by hand, are found
_CRASH_PAUSE_S = 60.0
_CLOCK_PAUSE_S = 1.0  # until `may_upload` is asked again
_MIN_PAUSE_S = 0.5  # between two sweeps, however often another one is asked for
_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 300.0  # a network that is back is noticed after this time at most
_ALERT_PAUSES_S = (0.0, 1.0, 3.0)  # before each try of an alert; after the last one the sweep tries
_MAX_ALERT_THREADS = 8
_MAX_FAILURES_IN_A_ROW = 3  # of single files; when one more fails, S3 is at fault and not the files
_MAX_ARRIVALS = 1000


class Counters(NamedTuple):
    """Since the start of the process."""

    images: int = 0  # confirmed by S3
    videos: int = 0
    failed_tries: int = 0
    worst_alert_latency_s: float = 0.0  # from the arrival of the frame to S3's confirmation


class Backoff:
    """Pauses that grow from one second to five minutes, each with a jitter, so that many cameras do not try at once."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._failures = 0

    def next_pause_s(self) -> float:
        pause_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(self._failures, 20))
        self._failures += 1
        return pause_s * self._uniform(0.5, 1.0)

    def reset(self) -> None:
        self._failures = 0


class Uploader:
    """No method waits for the network in the caller's thread.

    Nothing is uploaded while `may_upload` returns False (the clock is not set yet). Call `sweep_soon` when that
    changes, when a clip is finished, and whenever there may be a new file in the folders.
    """

    def __init__(
        self,
        *,
        images_folder: Path,
        videos_folder: Path,
        images_bucket: str,
        videos_bucket: str,
        server_side_encryption: str | None,
        rpi_serial_no: str,
        video_metadata: Mapping[str, str],
        may_upload: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._images = image_media_type(images_folder, images_bucket)
        self._videos = video_media_type(videos_folder, videos_bucket)
        self._serial = header_value(rpi_serial_no)
        self._video_metadata = {name: header_value(value) for name, value in video_metadata.items()}
        self._may_upload = may_upload
        self._clock, self._wall_clock, self._pause = clock, wall_clock, pause
        self._queue = Queue(self._images, self._videos, clock)
        self._s3 = S3(server_side_encryption=server_side_encryption)
        self._gate, self._backoff, self._error_log = Gate(), Backoff(), UploadErrorLog()
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._sweeper = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._lock = threading.Lock()  # guards what follows
        self._alert_threads: list[threading.Thread] = []
        self._claims: set[Path] = set()
        self._arrivals_s: dict[Path, float] = {}
        self._latencies_ms: dict[Path, int] = {}
        self._counters = Counters()

    # Called from outside

    def start(self) -> None:
        self._sweeper.start()

    def offer_alert(self, path: Path, frame_arrival_s: float) -> None:
        """Upload this image now. `frame_arrival_s`: when its frame's last byte arrived, on the monotonic clock."""
        name = parse(path.name)
        self._backoff.reset()  # a new alert is tried again within seconds
        with self._lock:
            self._alert_threads = [thread for thread in self._alert_threads if thread.is_alive()]
            has_room = len(self._alert_threads) < _MAX_ALERT_THREADS
            _remember(self._arrivals_s, path, frame_arrival_s)
        if isinstance(name, ImageName) and has_room and self._claim(path):
            queued = QueuedFile(self._images, path.name, name)
            thread = threading.Thread(target=self._run_alert, args=(queued,), name="alert", daemon=True)
            self._alert_threads.append(thread)
            thread.start()
        else:
            self.sweep_soon()

    def sweep_soon(self) -> None:
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Break off the sweep, and give an alert that is being uploaded at most `timeout_s`. The files stay queued."""
        deadline_s = time.monotonic() + timeout_s
        self._stopped.set()
        self._wake.set()
        self._gate.stop()
        with self._lock:
            threads = [self._sweeper, *self._alert_threads]
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    def pending(self) -> Pending:
        return self._queue.pending()

    def counters(self) -> Counters:
        with self._lock:
            return self._counters

    # The alert lane

    def _run_alert(self, queued: QueuedFile) -> None:
        try:
            for pause_s in _ALERT_PAUSES_S:
                if self._stopped.wait(pause_s) or not self._may_upload() or self._alert_is_over(queued):
                    break
        except Interrupted:
            return
        except Exception:
            log.exception("the sweep tries to upload the alert image %s", queued.file_name)
        finally:
            self._release(queued.path)
        self.sweep_soon()

    def _alert_is_over(self, queued: QueuedFile) -> bool:
        try:
            with self._gate.alert():
                self._send(queued, before_block=lambda: None)
        except UploadError as error:
            return not error.cause.passes
        return True

    # The sweep

    def _run(self) -> None:
        self._prepare()
        while not self._stopped.is_set():
            try:
                pause_s = self._sweep()
            except Interrupted:
                return
            except Exception:
                log.exception("the sweep failed; it goes on in a minute")
                pause_s = _CRASH_PAUSE_S
            self._pause(self._stopped, _MIN_PAUSE_S)
            self._pause(self._wake, max(0.0, pause_s - _MIN_PAUSE_S))

    def _prepare(self) -> None:
        try:
            self._s3.prepare()
        except UploadError as error:  # missing credentials are told before the first event
            self._error_log.failed(self._images, error)
        except Exception:
            log.exception("S3 cannot be prepared; it is tried again at the first upload")

    def _sweep(self) -> float:
        """Try every queued file once; the seconds until the next sweep."""
        failed, in_a_row = False, 0
        closed: set[MediaType] = set()
        for queued in self._queue.files(closed, self._wake):
            if not self._may_upload():
                return _CLOCK_PAUSE_S
            self._gate.wait_for_alerts()
            if not self._claim(queued.path):  # the alert lane is uploading it
                continue
            try:
                if self._send(queued, before_block=self._gate.wait_for_alerts):
                    in_a_row = 0
            except UploadError as error:
                scope = error.cause.scope
                in_a_row += 1
                failed = failed or scope is not FailureScope.FILE_FOR_LONG
                if scope is FailureScope.EVERYTHING:
                    break
                if scope is FailureScope.BUCKET or in_a_row > _MAX_FAILURES_IN_A_ROW:
                    self._error_log.bucket_is_down(queued.media_type.bucket)
                    closed.add(queued.media_type)
                    failed, in_a_row = True, 0
            finally:
                self._release(queued.path)
        if failed or self._queue.unreadable:
            return self._backoff.next_pause_s()
        self._backoff.reset()
        self._error_log.nothing_failed()
        return _IDLE_PAUSE_S

    # One file, from either lane

    def _claim(self, path: Path) -> bool:
        """False while the other lane uploads this file."""
        with self._lock:
            free = path not in self._claims
            self._claims.add(path)
            return free

    def _release(self, path: Path) -> None:
        with self._lock:
            self._claims.discard(path)

    def _send(self, queued: QueuedFile, *, before_block: Callable[[], None]) -> bool:
        """True: S3 has the file. False: it is gone or unfit. Raises UploadError."""
        try:
            with OpenFile(queued) as file:
                self._put(file, before_block)
                return True
        except FileNotFoundError:
            return False
        except UnfitError as error:
            self._queue.report(queued, str(error))
        except OSError as error:
            self._queue.report(queued, f"it cannot be read: {error.strerror or error}")
        except UploadError as error:
            self._note_error(queued, error)
            raise
        return False

    def _put(self, file: OpenFile, before_block: Callable[[], None]) -> None:
        media_type, started_s = file.queued.media_type, self._clock()
        key, crc32_base64 = file.key_and_crc32(self._serial)
        stored = self._s3.put(
            media_type.bucket,
            key,
            file.body(before_block),
            crc32_base64=crc32_base64,
            content_type=media_type.content_type,
            metadata=self._metadata(file.queued),
        )
        self._note_success(file, stored=stored, took_s=self._clock() - started_s)
        try:
            deleted = file.delete()
        except OSError as error:
            self._queue.set_aside(file.queued, f"it is uploaded but cannot be deleted: {error.strerror}")
        else:
            if not deleted:
                log.debug("%s was changed during its upload; the new version is uploaded, too", file.queued.file_name)
                self._wake.set()

    def _metadata(self, queued: QueuedFile) -> dict[str, str]:
        common = {"rpi_serial_no": self._serial}
        if queued.media_type is self._videos:
            common |= self._video_metadata
        elif (latency_ms := self._latency_ms(queued)) >= 0:
            common["alert_latency_ms"] = str(latency_ms)
        return metadata(queued, common)

    def _latency_ms(self, queued: QueuedFile) -> int:
        """From the arrival of the image's frame to the start of its first upload try; negative when unknown.

        Of an image of an earlier process, the time since the start of its event: how late the owner is told of it.
        """
        with self._lock:
            arrival_s = self._arrivals_s.get(queued.path)
            if arrival_s is not None:
                latency_s = max(0.0, self._clock() - arrival_s)
            else:
                latency_s = self._wall_clock() - queued.name.recording_start_time
            return _remember(
                self._latencies_ms, queued.path, self._latencies_ms.get(queued.path, round(1000 * latency_s))
            )

    def _note_success(self, file: OpenFile, *, stored: bool, took_s: float) -> None:
        media_type, path = file.queued.media_type, file.queued.path
        with self._lock:
            counters = self._counters
            arrival_s = self._arrivals_s.pop(path, None)
            self._latencies_ms.pop(path, None)
            latency_s = 0.0 if arrival_s is None else self._clock() - arrival_s
            self._counters = counters._replace(
                images=counters.images + (media_type is self._images),
                videos=counters.videos + (media_type is self._videos),
                worst_alert_latency_s=max(counters.worst_alert_latency_s, latency_s),
            )
        self._backoff.reset()
        log.info(
            "%s %s: %s, %d kB in %.1f s%s",
            media_type.word,
            file.queued.file_name,
            "uploaded" if stored else "was in the bucket already",
            round(file.size_bytes / 1000),
            took_s,
            "" if arrival_s is None else f", {latency_s:.1f} s after its frame",
        )
        self._error_log.succeeded(media_type, self._queue.pending)

    def _note_error(self, queued: QueuedFile, error: UploadError) -> None:
        if self._stopped.is_set():
            raise Interrupted from error
        with self._lock:
            self._counters = self._counters._replace(failed_tries=self._counters.failed_tries + 1)
        log.debug("%s %s: %s", queued.media_type.word, queued.file_name, error)
        if error.cause.scope is FailureScope.FILE_FOR_LONG:
            self._queue.set_aside(queued, str(error))
            return
        if error.cause.scope is FailureScope.FILE:
            self._queue.failed(queued)
        self._error_log.failed(queued.media_type, error)


def _remember(what: dict[Path, _Value], path: Path, value: _Value) -> _Value:
    """Keep the last `_MAX_ARRIVALS` values."""
    what[path] = value
    if len(what) > _MAX_ARRIVALS:
        del what[next(iter(what))]
    return value
