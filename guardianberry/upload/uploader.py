"""Uploads the finished event files to S3, and removes each from the disk once S3 has confirmed it.

There are three lanes. An alert image is uploaded at once, from memory and in a thread of its own (alert_lane.py); other
uploads pause meanwhile. A clip is uploaded in parts while it is recorded (live.py). The sweep uploads the queued files
one by one: the newest image, the other images, best pictures, then the videos, oldest first. It also repeats uploads
that failed. The queue is on the disk, so that no crash, no power cut and no week without network loses a file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from guardianberry.filenames import ImageName, VideoName, parse
from guardianberry.upload.alert_lane import Alert, AlertLane
from guardianberry.upload.error_log import UploadErrorLog
from guardianberry.upload.errors import FailureScope, Interrupted, UploadError
from guardianberry.upload.live import LiveLane
from guardianberry.upload.pauses import Gate, backoff_s
from guardianberry.upload.queue import MediaType, Pending, Queue, QueuedFile
from guardianberry.upload.s3 import S3
from guardianberry.upload.sender import Sender
from guardianberry.upload.upload_file import Body, OpenFile, Source, UnfitError

log = logging.getLogger(__name__)

_CRASH_PAUSE_S = 60.0
_CLOCK_PAUSE_S = 1.0  # until `may_upload` is asked again
_MIN_PAUSE_S = 0.5  # between two sweeps, however often another one is asked for
_MAX_FAILURES_IN_A_ROW = 3  # of single files; when one more fails, S3 is at fault and not the files


class Uploader:
    """No method but `put_heartbeat` waits for the network in the caller's thread.

    Nothing is uploaded while `may_upload` returns False (the clock is not set yet). Call `sweep_soon` when that
    changes, when a clip is finished, and whenever there may be a new file in the folders. `counters`,
    `take_worst_alert_latency_s`, `set_video_metadata` and `camera_name` are the sender's (sender.py).
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
        camera_name: str = "",
        video_metadata: Mapping[str, str],
        may_upload: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._images = MediaType("image", images_folder, images_bucket, ImageName)
        self._videos = MediaType("video", videos_folder, videos_bucket, VideoName)
        self._sender = sender = Sender(
            S3(server_side_encryption=server_side_encryption),
            videos_bucket=videos_bucket,
            rpi_serial_no=rpi_serial_no,
            camera_name=camera_name,
            video_metadata=video_metadata,
            clock=clock,
            wall_clock=wall_clock,
        )
        self.camera_name, self.set_video_metadata = sender.camera_name, sender.set_video_metadata
        self.counters, self.take_worst_alert_latency_s = sender.counters, sender.take_worst_alert_latency_s
        self._may_upload, self._pause = may_upload, pause
        self._queue = Queue(self._images, self._videos, clock)
        self._error_log, self._backoff = UploadErrorLog(), backoff_s()
        self._alert_gate = Gate()
        self._live_gate = Gate(above=self._alert_gate)
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._alerts = AlertLane(send=self._send_alert, may_upload=may_upload, wake=self._wake.set)
        self.live = LiveLane(self._put_part, may_upload=self.may_upload_now)
        self._sweeper = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._current: Path | None = None  # the sweep's

    # Called from outside

    def start(self) -> None:
        self._sweeper.start()
        self.live.thread.start()

    def offer_alert(
        self, file_name: str, jpeg: bytes, *, frame_arrival_s: float, stored: Callable[[], None] = lambda: None
    ) -> None:
        """Upload this alert image from memory now. The name is the one that its file has or will have in `images/`.

        `frame_arrival_s`: when its frame's last byte arrived, on the monotonic clock. `stored` is called in another
        thread once S3 has confirmed the image. Until then, or until `alert_saved`, it is kept and tried again: the
        newest 20 MB of such images. Raises ValueError for a name that is not an image's.
        """
        name = parse(file_name)
        if not isinstance(name, ImageName):
            raise ValueError(f"{file_name!r} is not the name of an alert image")
        self._backoff = backoff_s()  # a new alert is tried again within seconds
        alert = Alert(QueuedFile(self._images, file_name, name), jpeg, stored)
        self._sender.note_arrival(alert.queued, frame_arrival_s)
        self._alerts.offer(alert)

    def alert_saved(self, file_name: str) -> None:
        """The image is in `images/` now, durable. Once S3 has it, it is deleted, if `stored` was not called before."""
        self._alerts.saved(file_name)

    def is_uploading(self, path: Path) -> bool:
        """Whether the sweep is at this file."""
        return path == self._current

    def sweep_soon(self) -> None:
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Break off the sweep, and give an alert that is being uploaded at most `timeout_s`. The files stay queued."""
        deadline_s = time.monotonic() + timeout_s
        self._stopped.set()
        self._wake.set()
        for part in (self._alert_gate, self._live_gate, self._alerts, self.live):
            part.stop()
        for thread in (self._sweeper, *self._alerts.threads(), self.live.thread):
            if thread.is_alive():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    def pending(self) -> Pending:
        """What is queued, and alert images that only memory has. Waits for the disks, 20 s at most."""
        pending = self._queue.pending()
        return pending._replace(images=pending.images + len(self._alerts.unsaved()))

    def may_upload_now(self) -> bool:
        """Not before the clock is set, nor while an alert is being uploaded."""
        return self._may_upload() and not self._alert_gate.is_closed

    def put_heartbeat(self, at: int, content: bytes) -> None:
        """Upload the camera's heartbeat of this Unix second, JSON, with one try. Raises UploadError, Interrupted."""
        self._sender.put_heartbeat(at, Body.of(content, self._alert_gate.wait))

    # The lanes

    def _put_part(self, event_id: int, number: int, suffix: str, content: bytes) -> None:
        with self._live_gate.closed():
            self._sender.put_part(event_id, number, suffix, Body.of(content, self._alert_gate.wait))

    def _send_alert(self, alert: Alert) -> None:
        with self._alert_gate.closed():
            self._send(alert, before_block=lambda: None)

    # The sweep

    def _run(self) -> None:
        try:
            self._sender.s3.prepare(self._images.bucket, self._videos.bucket)
        except UploadError as error:  # missing credentials are told before the first event
            self._error_log.failed(self._images, error)
        except Exception:
            log.exception("S3 cannot be prepared; it is tried again at the first upload")
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

    def _sweep(self) -> float:
        """Try each alert image that only memory has, and each queued file, once; the seconds until the next sweep."""
        self._wake.clear()
        failed, in_a_row = False, 0
        closed: set[MediaType] = set()
        for queued, send in self._to_send(closed):
            if not self._may_upload():
                return _CLOCK_PAUSE_S
            self._live_gate.wait()
            try:
                if send():
                    in_a_row = 0
            except UploadError as error:
                failed = True
                in_a_row += 1
                if error.cause.scope is FailureScope.EVERYTHING:
                    break
                if error.cause.scope is FailureScope.BUCKET or in_a_row > _MAX_FAILURES_IN_A_ROW:
                    self._error_log.bucket_is_down(queued.media_type.bucket)
                    closed.add(queued.media_type)
                    in_a_row = 0
        if failed or self._queue.unreadable or self._alerts.unsaved():
            return next(self._backoff)
        self._backoff = backoff_s()
        if not self._queue.has_failures:
            self._error_log.nothing_failed()
        return self._queue.next_try_in_s()

    def _to_send(self, closed: set[MediaType]) -> Iterator[tuple[QueuedFile, Callable[[], bool]]]:
        """What the sweep should upload, and how: it returns False where there was nothing to do."""
        for alert in self._alerts.unsaved():
            if self._images not in closed:
                yield alert.queued, partial(self._alerts.try_once, alert)
        for queued in self._queue.files(closed, self._wake):
            if not queued.media_type.disk.hangs and not self._alerts.has_in_hand(queued.file_name):
                yield queued, partial(self._send_file, queued)

    def _send_file(self, queued: QueuedFile) -> bool:
        """True: S3 has the file. False: it is gone or unfit. Raises UploadError."""
        self._current = queued.path
        try:
            with queued.media_type.disk.call(OpenFile, queued) as file:
                self._send(file, before_block=self._live_gate.wait)
                return True
        except FileNotFoundError:
            pass
        except UnfitError as error:
            self._queue.report(queued, str(error))
        except OSError as error:
            self._queue.report(queued, f"it cannot be read: {error.strerror or error}")
        finally:
            self._current = None
        return False

    def _send(self, source: Source, *, before_block: Callable[[], None]) -> None:
        """Raises UploadError, and OSError where the source cannot be read."""
        queued = source.queued
        try:
            self._sender.send(source, before_block)
        except UploadError as error:
            if self._stopped.is_set():
                raise Interrupted from error
            log.debug("%s %s: %s", queued.media_type.word, queued.file_name, error)
            if error.cause.scope is FailureScope.FILE:
                self._queue.failed(queued, passes=error.cause.passes)
            self._error_log.failed(queued.media_type, error, queued.file_name)
            self._sender.count_failure()
            raise
        self._backoff = backoff_s()
        self._queue.succeeded(queued, recovered=self._error_log.succeeded(queued.media_type, self.pending))
        try:
            if not source.delete():
                log.debug("%s was changed during its upload; the new version is uploaded, too", queued.file_name)
                self._wake.set()
        except OSError as error:
            self._queue.set_aside(queued, f"it is uploaded but cannot be deleted: {error.strerror}")
