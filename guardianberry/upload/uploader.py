"""Takes the finished event files to S3, and off the disk once S3 has confirmed them.

Two lanes. An alert image goes up at once, in a thread of its own, while uploads of the backlog hold their breath. The
sweep takes what is on the disk, one file at a time: the newest image, then the other images, then the videos, oldest
first. It is the only place where a failed upload is tried again for long; its queue is the disk, so nothing is lost
by a crash, a power cut or a week without network.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from guardianberry.filenames import ImageName, parse
from guardianberry.upload.backlog import SET_ASIDE_S, Backlog
from guardianberry.upload.errors import FailureScope, Interrupted, UploadError
from guardianberry.upload.lanes import Backoff, Gate, Pending, UploadErrorLog
from guardianberry.upload.queue import (
    Identity,
    MediaType,
    OpenFile,
    QueuedFile,
    UnfitError,
    header_value,
    image_media_type,
    metadata,
    video_media_type,
)
from guardianberry.upload.s3 import S3

log = logging.getLogger(__name__)

_IDLE_PAUSE_S = SET_ASIDE_S  # files that somebody put there by hand, and those set aside, get another look
_CRASH_PAUSE_S = 60.0
_CLOCK_PAUSE_S = 1.0  # between two looks at `may_upload`
_LEAST_PAUSE_S = 0.5  # between two sweeps, however often another one is asked for
_ALERT_PAUSES_S = (0.0, 1.0, 3.0)  # before each try of an alert; after the last one it is the sweep's
_MOST_ALERT_THREADS = 8
_MOST_SUSPECTS = 3  # files that fail in a row; if any other one fails too, S3 is at fault and not they
_MOST_ARRIVALS = 1000


class Counters(NamedTuple):
    """Since the start of the process."""

    images: int = 0  # confirmed by S3
    videos: int = 0
    failed_tries: int = 0
    worst_alert_latency_s: float = 0.0  # from the arrival of the frame to S3's confirmation


class Uploader:
    """Nothing here ever waits for the network in the caller's thread.

    `may_upload` holds everything back while it is False (the clock is not set yet). Call `sweep_soon` when that
    changes, when a clip is finished, and whenever else there may be something new in the folders.
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
        self._backlog = Backlog(self._images, self._videos, clock)
        self._s3 = S3(server_side_encryption=server_side_encryption)
        self._gate, self._backoff, self._troubles = Gate(), Backoff(), UploadErrorLog()
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._sweeper = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._lock = threading.Lock()  # guards what follows
        self._alert_threads: list[threading.Thread] = []
        self._claims: set[Identity] = set()
        self._arrivals_s: dict[Identity, float] = {}
        self._latencies_ms: dict[Identity, int] = {}
        self._counters = Counters()

    # Called from outside

    def start(self) -> None:
        self._sweeper.start()

    def offer_alert(self, path: Path, frame_arrival_s: float) -> None:
        """Upload this image now. `frame_arrival_s`: when its frame's last byte arrived, on the monotonic clock."""
        try:
            status = path.stat(follow_symlinks=False)
        except OSError as error:
            log.warning("the alert image %s cannot be uploaded: %s", ascii(path.name), error.strerror)
            return
        name, identity = parse(path.name), (status.st_dev, status.st_ino)
        self._backoff.reset()  # a fresh alert is worth a try every few seconds again
        with self._lock:
            self._arrivals_s[identity] = frame_arrival_s
            self._latencies_ms.pop(identity, None)  # of a file that had this inode before
            if len(self._arrivals_s) > _MOST_ARRIVALS:
                del self._arrivals_s[next(iter(self._arrivals_s))]
            self._alert_threads = [thread for thread in self._alert_threads if thread.is_alive()]
            has_room = len(self._alert_threads) < _MOST_ALERT_THREADS
            if isinstance(name, ImageName) and has_room and identity not in self._claims:
                self._claims.add(identity)  # already now, so that the sweep does not take it for one of its own
                alert = (QueuedFile(self._images, path.name, name), identity)
                thread = threading.Thread(target=self._run_alert, args=alert, name="alert", daemon=True)
                self._alert_threads.append(thread)
                thread.start()
                return
        self.sweep_soon()

    def sweep_soon(self) -> None:
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Drop the backlog's upload, and give an alert under way at most `timeout_s`. What is unfinished stays."""
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
        return self._backlog.pending()

    def counters(self) -> Counters:
        with self._lock:
            return self._counters

    # The alert lane

    def _run_alert(self, waiting: QueuedFile, claimed: Identity) -> None:
        try:
            for pause_s in _ALERT_PAUSES_S:
                if self._stopped.wait(pause_s) or not self._may_upload() or self._alert_is_over(waiting, claimed):
                    break
        except Interrupted:
            return
        except Exception:
            log.exception("the alert image %s is left to the sweep", waiting.file_name)
        finally:
            with self._lock:
                self._claims.discard(claimed)
        self.sweep_soon()

    def _alert_is_over(self, waiting: QueuedFile, claimed: Identity) -> bool:
        try:
            with self._gate.alert():
                self._send(waiting, before_block=lambda: None, claimed=claimed)
        except UploadError as refused:
            return not refused.cause.passes
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
            self._pause(self._stopped, _LEAST_PAUSE_S)
            self._pause(self._wake, max(0.0, pause_s - _LEAST_PAUSE_S))

    def _prepare(self) -> None:
        try:
            self._s3.prepare()
        except UploadError as refused:  # a novice hears of missing credentials before the first event
            self._troubles.refused(self._images, refused)
        except Exception:
            log.exception("S3 cannot be prepared; it is tried again at the first upload")

    def _sweep(self) -> float:
        """Offer every waiting file to S3 once; how long to wait for the next sweep."""
        failed, in_a_row = False, 0
        closed: set[MediaType] = set()
        for waiting in self._backlog.queue(closed, self._wake):
            if not self._may_upload():
                return _CLOCK_PAUSE_S
            self._gate.wait_for_alerts()
            try:
                if self._send(waiting, before_block=self._gate.wait_for_alerts):
                    in_a_row = 0
            except UploadError as refused:
                scope = refused.cause.scope
                in_a_row += 1
                failed = failed or scope is not FailureScope.FILE_FOR_LONG
                if scope is FailureScope.EVERYTHING:
                    break
                if scope is FailureScope.BUCKET or in_a_row > _MOST_SUSPECTS:
                    self._troubles.nothing_goes(waiting.kind)
                    closed.add(waiting.kind)
                    failed, in_a_row = True, 0
                elif in_a_row == _MOST_SUSPECTS:
                    self._backlog.jump()
        if failed or self._backlog.unreadable:
            return self._backoff.next_pause_s()
        self._backoff.reset()
        self._troubles.all_clear()
        return _IDLE_PAUSE_S

    # One file, from either lane

    def _send(self, waiting: QueuedFile, *, before_block: Callable[[], None], claimed: Identity | None = None) -> bool:
        """True: S3 has the file. False: it is gone, unfit, or in the other lane's hands. Raises UploadError."""
        try:
            with OpenFile(waiting) as file, self._claim(file, claimed) as mine:
                if mine:
                    self._put(file, before_block)
                return mine
        except FileNotFoundError:
            return False
        except UnfitError as error:
            self._backlog.report(waiting, str(error))
        except OSError as error:
            self._backlog.report(waiting, f"it cannot be read: {error.strerror or error}")
        except UploadError as refused:
            self._note_refusal(waiting, refused)
            raise
        return False

    @contextmanager
    def _claim(self, file: OpenFile, claimed: Identity | None) -> Iterator[bool]:
        """Whether this thread may upload the file: the other lane may be at it. `claimed` is the caller's already."""
        if file.identity == claimed:
            yield True
            return
        with self._lock:
            mine = file.identity not in self._claims
            self._claims.add(file.identity)
        try:
            yield mine
        finally:
            if mine:
                with self._lock:
                    self._claims.discard(file.identity)

    def _put(self, file: OpenFile, before_block: Callable[[], None]) -> None:
        kind, started_s = file.waiting.kind, self._clock()
        key, crc32_base64 = file.key_and_crc32(self._serial)
        stored = self._s3.put(
            kind.bucket,
            key,
            file.body(before_block),
            crc32_base64=crc32_base64,
            content_type=kind.content_type,
            metadata=self._metadata(file),
        )
        self._note_success(file, stored=stored, took_s=self._clock() - started_s)
        try:
            deleted = file.delete()
        except OSError as error:
            self._backlog.set_aside(file.waiting, f"it is uploaded but cannot be deleted: {error.strerror}")
        else:
            if not deleted:
                log.debug("%s was changed during its upload; the new version goes up, too", file.waiting.file_name)
                self._wake.set()

    def _metadata(self, file: OpenFile) -> dict[str, str]:
        common = {"rpi_serial_no": self._serial}
        if file.waiting.kind is self._videos:
            return metadata(file.waiting, common | self._video_metadata)
        latency_ms = self._latency_ms(file)
        return metadata(file.waiting, common | ({"alert_latency_ms": str(latency_ms)} if latency_ms >= 0 else {}))

    def _latency_ms(self, file: OpenFile) -> int:
        """From the arrival of the image's frame to the start of its first upload try; negative when unknown.

        Of an image that an earlier process left behind, the time since the start that its name tells: the delay with
        which its owner hears of it, which is what the figure is for.
        """
        with self._lock:
            known_ms = self._latencies_ms.get(file.identity)
            arrival_s = self._arrivals_s.get(file.identity)
            if known_ms is None and arrival_s is not None:
                known_ms = max(0, round(1000 * (self._clock() - arrival_s)))
            if known_ms is None:
                known_ms = round(1000 * (self._wall_clock() - file.waiting.name.recording_start_time))
            self._latencies_ms[file.identity] = known_ms
            if len(self._latencies_ms) > _MOST_ARRIVALS:
                del self._latencies_ms[next(iter(self._latencies_ms))]
            return known_ms

    def _note_success(self, file: OpenFile, *, stored: bool, took_s: float) -> None:
        kind = file.waiting.kind
        with self._lock:
            counters = self._counters
            arrival_s = self._arrivals_s.pop(file.identity, None)
            self._latencies_ms.pop(file.identity, None)
            latency_s = 0.0 if arrival_s is None else self._clock() - arrival_s
            self._counters = counters._replace(
                images=counters.images + (kind is self._images),
                videos=counters.videos + (kind is self._videos),
                worst_alert_latency_s=max(counters.worst_alert_latency_s, latency_s),
            )
        self._backoff.reset()
        log.info(
            "%s %s: %s, %d kB in %.1f s%s",
            kind.word,
            file.waiting.file_name,
            "uploaded" if stored else "was in the bucket already",
            round(file.size_bytes / 1000),
            took_s,
            "" if arrival_s is None else f", {latency_s:.1f} s after its frame",
        )
        self._troubles.went_through(kind, self._backlog.pending)

    def _note_refusal(self, waiting: QueuedFile, refused: UploadError) -> None:
        if self._stopped.is_set():
            raise Interrupted from refused
        with self._lock:
            self._counters = self._counters._replace(failed_tries=self._counters.failed_tries + 1)
        log.debug("%s %s: %s", waiting.kind.word, waiting.file_name, refused)
        scope = refused.cause.scope
        if scope is FailureScope.FILE_FOR_LONG:
            self._backlog.set_aside(waiting, str(refused))
            return
        self._troubles.refused(waiting.kind, refused)
