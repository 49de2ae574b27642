"""One upload, of an alert image, a queued file or a small object: its metadata, its latency, and the counts of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from guardianberry.filenames import ImageName, VideoName
from guardianberry.upload.queue import QueuedFile
from guardianberry.upload.s3 import S3
from guardianberry.upload.upload_file import CONTENT_TYPE, Body, Source, camera_uuid, event_uuid, header_value, metadata

log = logging.getLogger(__name__)
_Value = TypeVar("_Value")

_MAX_REMEMBERED = 1000  # alert images whose latency is known


class Counters(NamedTuple):
    """Since the start of the process."""

    images: int = 0  # confirmed by S3
    videos: int = 0
    failed_tries: int = 0
    worst_alert_latency_s: float = 0.0  # from the arrival of the frame to S3's confirmation


class Sender:
    """Uploads one thing in the caller's thread. For any thread."""

    def __init__(
        self,
        s3: S3,
        *,
        videos_bucket: str,
        rpi_serial_no: str,
        camera_name: str,
        video_metadata: Mapping[str, str],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.s3, self._videos_bucket = s3, videos_bucket
        self._serial = header_value(rpi_serial_no)
        self.camera_name = header_value(camera_name) or self._serial[-4:]
        self._video_metadata = {name: header_value(value) for name, value in video_metadata.items()}
        self._clock, self._wall_clock = clock, wall_clock
        self._lock = threading.Lock()  # guards what follows
        self._arrivals_s: dict[Path, float] = {}
        self._latencies_ms: dict[Path, int] = {}
        self._counters = Counters()
        self._worst_latency_s = 0.0  # since `take_worst_alert_latency_s`

    def set_video_metadata(self, name: str, value: str) -> None:
        """For videos whose upload starts from now on."""
        self._video_metadata[name] = header_value(value)

    def note_arrival(self, image: QueuedFile, arrival_s: float) -> None:
        """Of the last byte of the image's frame."""
        with self._lock:
            _remember(self._arrivals_s, image.path, arrival_s)

    def counters(self) -> Counters:
        with self._lock:
            return self._counters

    def take_worst_alert_latency_s(self) -> float:
        """As in `counters`, but since the last call."""
        with self._lock:
            worst_s, self._worst_latency_s = self._worst_latency_s, 0.0
            return worst_s

    def send(self, source: Source, before_block: Callable[[], None]) -> None:
        """Returns once S3 has confirmed it. Raises UploadError, and OSError where the source cannot be read."""
        queued, started_s = source.queued, self._clock()
        key, body = source.key_and_body(self._serial, before_block)
        content_type = CONTENT_TYPE[queued.path.suffix]
        stored = self.s3.put(
            queued.media_type.bucket, key, body, content_type=content_type, metadata=self._metadata(queued)
        )
        latency_s = self._count_success(queued)
        log.info(
            "%s %s: %s, %d kB in %.1f s%s",
            queued.media_type.word,
            queued.file_name,
            "uploaded" if stored else "was in the bucket already",
            round(source.size_bytes / 1000),
            self._clock() - started_s,
            "" if latency_s is None else f", {latency_s:.1f} s after its frame",
        )

    def put_heartbeat(self, at: int, body: Body) -> None:
        """JSON, of this Unix second. Raises UploadError."""
        key = f"alive/{camera_uuid(self._serial)}/{at}"
        self.s3.put(self._videos_bucket, key, body, content_type="application/json", metadata={})

    def put_part(self, event_id: int, number: int, suffix: str, body: Body) -> None:
        """Of a clip that is being recorded, or a picture in its place. Raises UploadError."""
        event = str(event_uuid(self._serial, event_id))
        told = {"event": event, "part": str(number), "recording_start_time": str(event_id)}
        told["camera_name"] = self.camera_name
        key, content_type = f"live/{event}/{number:04}{suffix}", CONTENT_TYPE[suffix]
        self.s3.put(self._videos_bucket, key, body, content_type=content_type, metadata=told)

    def count_failure(self) -> None:
        with self._lock:
            self._counters = self._counters._replace(failed_tries=self._counters.failed_tries + 1)

    def _count_success(self, queued: QueuedFile) -> float | None:
        """The time since the arrival of an alert's frame, where it is known."""
        with self._lock:
            arrival_s = self._arrivals_s.pop(queued.path, None)
            self._latencies_ms.pop(queued.path, None)
            latency_s = 0.0 if arrival_s is None else self._clock() - arrival_s
            self._worst_latency_s = max(self._worst_latency_s, latency_s)
            self._counters = self._counters._replace(
                images=self._counters.images + isinstance(queued.name, ImageName),
                videos=self._counters.videos + isinstance(queued.name, VideoName),
                worst_alert_latency_s=max(self._counters.worst_alert_latency_s, latency_s),
            )
        return None if arrival_s is None else latency_s

    def _metadata(self, queued: QueuedFile) -> dict[str, str]:
        common = {"rpi_serial_no": self._serial, "camera_name": self.camera_name}
        if isinstance(queued.name, VideoName):
            common |= self._video_metadata
        elif isinstance(queued.name, ImageName) and (latency_ms := self._latency_ms(queued)) >= 0:
            common["alert_latency_ms"] = str(latency_ms)
        return metadata(queued, common)

    def _latency_ms(self, image: QueuedFile) -> int:
        """From the arrival of the image's frame to the start of its first upload try; negative when unknown.

        Of an image of an earlier process, the time since the start of its event: how late the owner is told of it.
        """
        with self._lock:
            if (latency_ms := self._latencies_ms.get(image.path)) is not None:
                return latency_ms
            arrival_s = self._arrivals_s.get(image.path)
            if arrival_s is not None:
                latency_s = max(0.0, self._clock() - arrival_s)
            else:
                latency_s = self._wall_clock() - image.name.recording_start_time
            return _remember(self._latencies_ms, image.path, round(1000 * latency_s))


def _remember(what: dict[Path, _Value], path: Path, value: _Value) -> _Value:
    """Keep the last `_MAX_REMEMBERED` values."""
    what[path] = value
    if len(what) > _MAX_REMEMBERED:
        del what[next(iter(what))]
    return value
