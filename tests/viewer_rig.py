"""Objects as a camera makes them, in any place that the viewer can read: a moto S3 server, or a list."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

from guardianberry.recording.mp4 import Mp4Writer
from tests.h264 import units
from viewer.objects import IMAGES, VIDEOS
from viewer.stores import Entry, ObjectError, StoreError

SERIAL = "100000003d1d8f3a"
START_S = 1_795_371_975  # 2026-11-22 18:26:15 UTC


def jpeg(*, shade: int = 90, width: int = 640, height: int = 480) -> bytes:
    picture = np.full((height, width, 3), shade, np.uint8)
    cv2.rectangle(picture, (width // 3, height // 4), (width // 2, height - 20), (0, 0, 255), 3)
    return cv2.imencode(".jpg", picture)[1].tobytes()


@dataclass
class Film:
    """A clip, as it was while it was recorded and when it was finished."""

    growing: bytes
    finished: bytes
    ends: list[int]  # of each frame, in `growing`

    def parts(self, *frames: int) -> list[bytes]:
        """Cut after so many frames, a few bytes into the next one, as a lane does that knows no frames."""
        cuts = [0, *(min(self.ends[frame] + 5, len(self.growing)) for frame in frames)]
        return [self.growing[a:b] for a, b in itertools.pairwise(cuts)]


def film(folder: Path, *, seconds: int = 8, width: int = 320) -> Film:
    path = folder / f"{uuid.uuid4()}.mp4"
    writer = Mp4Writer(path, width=width, height=240, frame_rate_fps=10)
    ends = []
    for unit in units(10 * seconds, width=width):
        writer.write(unit)
        ends.append(path.stat().st_size)
    growing = path.read_bytes()
    writer.close()
    made = Film(growing, path.read_bytes(), ends)
    path.unlink()
    return made


def image_metadata(start_s: int = START_S, **more: str) -> dict[str, str]:
    told = {"rpi_serial_no": SERIAL, "recording_start_time": str(start_s), "confidence": "81"}
    return told | {"width": "640", "height": "480", "alert_latency_ms": "150", "camera_name": "Front door"} | more


def clip_metadata(start_s: int = START_S, **more: str) -> dict[str, str]:
    told = {"rpi_serial_no": SERIAL, "recording_start_time": str(start_s), "duration": "8", "duration_s": "8"}
    told |= {"max_people_found": "2", "max_confidence": "88", "camera_name": "Front door", "model": "yolov5n.pt"}
    return told | more


def part_metadata(event: str, number: int, start_s: int = START_S) -> dict[str, str]:
    told = {"event": event, "part": str(number), "recording_start_time": str(start_s)}
    return told | {"camera_name": "Front door"}


@dataclass
class Stored:
    bucket: str
    key: str
    body: bytes
    metadata: dict[str, str]
    modified: int
    size: int  # as listed


@dataclass
class ListStore:
    """A store in memory: says at which time objects arrived, may lie about sizes, may fail, and counts."""

    now_s: int = START_S + 60
    objects: dict[tuple[str, str], Stored] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    read_keys: list[str] = field(default_factory=list)
    fail_after_reads: int | None = None
    denied: set[str] = field(default_factory=set)  # keys of objects that nobody may read

    def put(
        self,
        bucket: str,
        key: str,
        body: bytes = b"",
        metadata: dict[str, str] | None = None,
        *,
        at_s: int | None = None,
        listed_size: int | None = None,
    ) -> str:
        size = len(body) if listed_size is None else listed_size
        arrived_s = self.now_s if at_s is None else at_s
        self.objects[bucket, key] = Stored(bucket, key, body, metadata or {}, arrived_s, size)
        return key

    def image(self, body: bytes, metadata: dict[str, str], *, at_s: int | None = None) -> str:
        return self.put(IMAGES, f"{uuid.uuid4()}.jpg", body, metadata, at_s=at_s)

    def clip(self, body: bytes, metadata: dict[str, str], *, at_s: int | None = None) -> str:
        return self.put(VIDEOS, f"{uuid.uuid4()}.mp4", body, metadata, at_s=at_s)

    def parts(self, event: str, bodies: list[bytes], *, first: int = 0, at_s: int | None = None) -> None:
        for number, body in enumerate(bodies, first):
            key = f"live/{event}/{number:04}.part"
            self.put(VIDEOS, key, body, part_metadata(event, number), at_s=at_s)

    def entries(self, bucket: str) -> Iterator[Entry]:
        for stored in sorted(self.objects.values(), key=lambda stored: stored.key):
            if stored.bucket == bucket:
                yield Entry(bucket, stored.key, stored.size, stored.modified)

    def metadata(self, entry: Entry) -> dict[str, str]:
        self.asked.append(entry.key)
        if entry.key in self.denied:
            raise ObjectError("images: this key may not read it")
        return self.objects[entry.bucket, entry.key].metadata

    def read(self, entry: Entry) -> Iterator[bytes]:
        self.read_keys.append(entry.key)
        body = self.objects[entry.bucket, entry.key].body
        yield body[: len(body) // 2]
        if self.fail_after_reads is not None and len(self.read_keys) > self.fail_after_reads:
            raise StoreError("the network is gone")
        yield body[len(body) // 2 :]


class CountingProxy:
    """Hands requests on to the server at `port` and notes each. Use it as a context manager."""

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self.delay_s = 0.0  # before a request is handed on
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.requests.append(f"{self.command} {self.path}")
                time.sleep(proxy.delay_s)
                server = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                server.request(self.command, self.path, headers=dict(self.headers))
                answer = server.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                server.close()

            do_HEAD = do_GET  # noqa: N815 (the base class names them)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> CountingProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
