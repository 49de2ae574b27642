"""Uploads the finished event files to S3, and removes each from the disk once S3 has confirmed it.

There are two lanes. An alert image is uploaded at once, from memory and in a thread of its own (alert_lane.py); other
uploads pause meanwhile. The sweep uploads the queued files one by one: the newest image, then the other images, then
the videos, oldest first. It also repeats uploads that failed. The queue is on the disk, so that no crash, no power cut
and no week without network loses a file.
"""

from __future__ import annotations

import base64
import logging
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from guardianberry.filenames import ImageName, parse
from guardianberry.upload.alert_lane import Alert, AlertLane
from guardianberry.upload.errors import FailureScope, Interrupted, UploadError, UploadErrorLog
from guardianberry.upload.live import LiveLane
from guardianberry.upload.queue import MediaType, Pending, Queue, QueuedFile, image_media_type, video_media_type
from guardianberry.upload.s3 import S3
from guardianberry.upload.upload_file import (
    Body,
    Gate,
    OpenFile,
    Source,
    UnfitError,
    camera_uuid,
    event_uuid,
    header_value,
    metadata,
)

log = logging.getLogger(__name__)
_Value = TypeVar("_Value")

_CRASH_PAUSE_S = 60.0
_CLOCK_PAUSE_S = 1.0  # until `may_upload` is asked again
_MIN_PAUSE_S = 0.5  # between two sweeps, however often another one is asked for
_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 300.0  # a network that is back is noticed after this time at most
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
        camera_name: str = "",
        video_metadata: Mapping[str, str],
        may_upload: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        pause: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._images = image_media_type(images_folder, images_bucket)
        self._videos = video_media_type(videos_folder, videos_bucket)
        self._serial = header_value(rpi_serial_no)
        self.camera_name = header_value(camera_name) or self._serial[-4:]
        self._video_metadata = {name: header_value(value) for name, value in video_metadata.items()}
        self._may_upload = may_upload
        self._clock, self._wall_clock, self._pause = clock, wall_clock, pause
        self._queue = Queue(self._images, self._videos, clock)
        self._s3 = S3(server_side_encryption=server_side_encryption)
        self._gate, self._live_gate, self._backoff, self._error_log = Gate(), Gate(), Backoff(), UploadErrorLog()
        self.live = LiveLane(self._put_part, may_upload=self.may_upload_now)
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._sweeper = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._alerts = AlertLane(send=self._send_alert, may_upload=may_upload, wake=self._wake.set)
        self._lock = threading.Lock()  # guards what follows
        self._arrivals_s: dict[Path, float] = {}
        self._latencies_ms: dict[Path, int] = {}
        self._counters = Counters()
        self._worst_latency_s = 0.0  # since `take_worst_alert_latency_s`
        self._current: Path | None = None  # the sweep's

    # Called from outside

    def start(self) -> None:
        self._sweeper.start()
        self.live.start()

    def set_video_metadata(self, name: str, value: str) -> None:
        """For videos whose upload starts from now on."""
        self._video_metadata[name] = header_value(value)

    def offer_alert(
        self, file_name: str, jpeg: bytes, *, frame_arrival_s: float, stored: Callable[[], None] = lambda: None
    ) -> None:
        """Upload this alert image from memory now. The name is the one that its file has or will have in `images/`.

        `frame_arrival_s`: when its frame's last byte arrived, on the monotonic clock. `stored` is called in another
        thread once S3 has confirmed the image. Until then it is kept, and tried again by the sweep after the first
        tries; `alert_saved` ends that where it succeeds, 20 MB of such images where it does not. Raises ValueError for
        a name that is not an image's.
        """
        name = parse(file_name)
        if not isinstance(name, ImageName):
            raise ValueError(f"{file_name!r} is not the name of an alert image")
        self._backoff.reset()  # a new alert is tried again within seconds
        alert = Alert(QueuedFile(self._images, file_name, name), jpeg, stored)
        with self._lock:
            _remember(self._arrivals_s, alert.queued.path, frame_arrival_s)
        self._alerts.offer(alert)

    def alert_saved(self, file_name: str) -> None:
        """The alert image is in `images/` under that name now and stays there after a power cut."""
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
        for gate in (self._gate, self._live_gate):
            gate.stop()
        for thread in (self._sweeper, *self._alerts.stop(), *self.live.stop()):
            if thread.is_alive():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    def pending(self) -> Pending:
        """The number of queued files, and of alert images that only memory has."""
        images, videos = self._queue.pending()
        return Pending(images + len(self._alerts.unsaved()), videos)

    def counters(self) -> Counters:
        with self._lock:
            return self._counters

    def take_worst_alert_latency_s(self) -> float:
        """As in `counters`, but since the last call."""
        with self._lock:
            worst_s, self._worst_latency_s = self._worst_latency_s, 0.0
            return worst_s

    def oldest_start(self) -> int | None:
        """`recording_start_time` of the oldest queued file."""
        return self._queue.oldest_start()

    def may_upload_now(self) -> bool:
        """Not before the clock is set, nor while an alert is being uploaded."""
        return self._may_upload() and not self._gate.is_closed

    def put_heartbeat(self, at: int, content: bytes) -> None:
        """Upload the camera's heartbeat of this Unix second, JSON, in the caller's thread.

        Raises UploadError, Interrupted.
        """
        key = f"alive/{camera_uuid(self._serial)}/{at}"
        self._put_bytes(key, content, content_type="application/json", metadata={})

    def _put_part(self, event_id: int, name: str, content: bytes, *, number: int, content_type: str) -> None:
        """Of a clip that is being recorded, or a picture in its place. Raises UploadError, Interrupted."""
        event = str(event_uuid(self._serial, event_id))
        with self._live_gate.alert():
            self._put_bytes(
                f"live/{event}/{name}",
                content,
                content_type=content_type,
                metadata={
                    "event": event,
                    "part": str(number),
                    "recording_start_time": str(event_id),
                    "camera_name": self.camera_name,
                },
            )

    def _put_bytes(self, key: str, content: bytes, *, content_type: str, metadata: dict[str, str]) -> None:
        """Into the videos bucket, below the alerts."""
        self._s3.put(
            self._videos.bucket,
            key,
            Body(lambda size, offset: content[offset : offset + size], len(content), self._gate.wait_for_alerts),
            crc32_base64=base64.b64encode(zlib.crc32(content).to_bytes(4)).decode(),
            content_type=content_type,
            metadata=metadata,
        )

    def _wait_for_alerts_and_parts(self) -> None:
        self._gate.wait_for_alerts()
        self._live_gate.wait_for_alerts()

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
            self._s3.prepare(self._images.bucket, self._videos.bucket)
        except UploadError as error:  # missing credentials are told before the first event
            self._error_log.failed(self._images, error)
        except Exception:
            log.exception("S3 cannot be prepared; it is tried again at the first upload")

    def _sweep(self) -> float:
        """Try each alert image that only memory has, and each queued file, once; the seconds until the next sweep."""
        self._wake.clear()
        failed, in_a_row = False, 0
        closed: set[MediaType] = set()
        for queued, send in self._to_send(closed):
            if not self._may_upload():
                return _CLOCK_PAUSE_S
            self._wait_for_alerts_and_parts()
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
            return self._backoff.next_pause_s()
        self._backoff.reset()
        if not self._queue.has_failures:
            self._error_log.nothing_failed()
        return self._queue.next_try_in_s()

    def _to_send(self, closed: set[MediaType]) -> Iterator[tuple[QueuedFile, Callable[[], bool]]]:
        """What the sweep should upload, and how: it returns False where there was nothing to do."""
        for alert in self._alerts.unsaved():
            if self._images not in closed:
                yield alert.queued, partial(self._alerts.try_once, alert)
        for queued in self._queue.files(closed, self._wake):
            if not queued.media_type.disk.hangs and not self._alerts.is_trying(queued.file_name):
                yield queued, partial(self._send_file, queued)

    # One file, from either lane

    def _send_alert(self, alert: Alert) -> bool:
        """Raises UploadError."""
        with self._gate.alert():
            return self._send(alert, before_block=lambda: None)

    def _send_file(self, queued: QueuedFile) -> bool:
        """True: S3 has the file. False: it is gone or unfit. Raises UploadError."""
        self._current = queued.path
        try:
            with queued.media_type.disk.call(OpenFile, queued) as file:
                return self._send(file, before_block=self._wait_for_alerts_and_parts)
        except FileNotFoundError:
            return False
        except UnfitError as error:
            self._queue.report(queued, str(error))
        except OSError as error:
            self._queue.report(queued, f"it cannot be read: {error.strerror or error}")
        finally:
            self._current = None
        return False

    def _send(self, source: Source, *, before_block: Callable[[], None]) -> bool:
        """Always True. Raises UploadError, and OSError where the source cannot be read."""
        try:
            self._put(source, before_block)
        except UploadError as error:
            self._note_error(source.queued, error)
            raise
        return True

    def _put(self, file: Source, before_block: Callable[[], None]) -> None:
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
        common = {"rpi_serial_no": self._serial, "camera_name": self.camera_name}
        if queued.media_type is self._videos:
            common |= self._video_metadata
        elif queued.media_type is self._images and (latency_ms := self._latency_ms(queued)) >= 0:
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

    def _note_success(self, file: Source, *, stored: bool, took_s: float) -> None:
        media_type, path = file.queued.media_type, file.queued.path
        with self._lock:
            counters = self._counters
            arrival_s = self._arrivals_s.pop(path, None)
            self._latencies_ms.pop(path, None)
            latency_s = 0.0 if arrival_s is None else self._clock() - arrival_s
            self._worst_latency_s = max(self._worst_latency_s, latency_s)
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
        self._queue.succeeded(file.queued, recovered=self._error_log.succeeded(media_type, self.pending))

    def _note_error(self, queued: QueuedFile, error: UploadError) -> None:
        if self._stopped.is_set():
            raise Interrupted from error
        log.debug("%s %s: %s", queued.media_type.word, queued.file_name, error)
        if error.cause.scope is FailureScope.FILE:
            self._queue.failed(queued, passes=error.cause.passes)
        self._error_log.failed(queued.media_type, error, queued.file_name)
        with self._lock:
            self._counters = self._counters._replace(failed_tries=self._counters.failed_tries + 1)


def _remember(what: dict[Path, _Value], path: Path, value: _Value) -> _Value:
    """Keep the last `_MAX_ARRIVALS` values."""
    what[path] = value
    if len(what) > _MAX_ARRIVALS:
        del what[next(iter(what))]
    return value
