"""Event files as the daemon leaves them, and an uploader on them that talks to a server of the test's choice."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guardianberry.upload.uploader import Uploader
from tests.s3_server import S3Server, environment

SERIAL = "10000000deadbeef"
IMAGES_BUCKET, VIDEOS_BUCKET = "guardianberry.images", "guardianberry.videos"
VIDEO_METADATA = {"model": "yolov5n.pt", "frame_rate": "10", "confidence_threshold": "0.255"}


def jpeg(size_bytes: int = 2000) -> bytes:
    """No two are alike."""
    return b"\xff\xd8\xff\xe0" + os.urandom(size_bytes - 6) + b"\xff\xd9"


def mp4(size_bytes: int = 3000) -> bytes:
    """The boxes of a clip around noise; no two are alike."""
    return box(b"ftyp", b"isom\0\0\0\0") + box(b"mdat", os.urandom(size_bytes)) + box(b"moov", b"\0" * 100)


def box(name: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + name + content


def quick_pause(event: threading.Event, timeout_s: float) -> bool:
    """Back-off in fast motion: a second lasts 20 ms."""
    return event.wait(timeout_s / 50)


def quick_clock() -> float:
    """For the pauses of single files, in the same fast motion."""
    return 50 * time.monotonic()


@contextmanager
def rig_of(server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch, *, url: str = "") -> Iterator[Rig]:
    """With buckets of its own on a server that tests share; reaches it at `url`, a proxy's for example."""
    rig = Rig(folder, monkeypatch, url=url or server.url, name=f"{os.getpid()}.{time.monotonic_ns()}")
    server.create_bucket(rig.images_bucket, rig.videos_bucket)
    yield rig
    rig.close()


class Rig:
    """Folders with event files, and uploaders on them. `close` stops them all."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, url: str, name: str = "") -> None:
        self.images, self.videos = folder / "images", folder / "videos"
        self.images.mkdir(parents=True)
        self.videos.mkdir()
        # Buckets of its own for each test, so that tests can share a server.
        self.images_bucket, self.videos_bucket = f"images.{name}", f"videos.{name}"
        self.monkeypatch = monkeypatch
        for variable in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(variable)
        for variable, value in environment(url).items():
            monkeypatch.setenv(variable, value)
        self._uploaders: list[Uploader] = []

    def use(self, url: str) -> None:
        self.monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)

    def add_image(self, start: int, content: bytes | None = None) -> Path:
        return self._add(self.images, f"{start}-81-640-480.jpg", jpeg() if content is None else content)

    def add_video(self, start: int, content: bytes | None = None) -> Path:
        return self._add(self.videos, f"{start}-12-2-88-43-640-480.mp4", mp4() if content is None else content)

    def alert(
        self, uploader: Uploader, start: int, content: bytes | None = None, *, arrival_s: float | None = None
    ) -> Path:
        """An alert as an event makes it: offered from memory, then saved. `arrival_s`: by default, now."""
        content = jpeg() if content is None else content
        name, stored = f"{start}-81-640-480.jpg", threading.Event()
        arrival_s = time.monotonic() if arrival_s is None else arrival_s
        uploader.offer_alert(name, content, frame_arrival_s=arrival_s, stored=stored.set)
        path = self.add_image(start, content)
        if stored.is_set():
            path.unlink(missing_ok=True)
        else:
            uploader.alert_saved(name)
        return path

    def uploader(self, **changes: Any) -> Uploader:
        """Made, not started."""
        arguments: dict[str, Any] = {
            "images_folder": self.images,
            "videos_folder": self.videos,
            "images_bucket": self.images_bucket,
            "videos_bucket": self.videos_bucket,
            "server_side_encryption": "AES256",
            "rpi_serial_no": SERIAL,
            "video_metadata": VIDEO_METADATA,
            "pause": quick_pause,
        }
        uploader = Uploader(**(arguments | changes))
        self._uploaders.append(uploader)
        return uploader

    def start(self, **changes: Any) -> Uploader:
        uploader = self.uploader(**changes)
        uploader.start()
        return uploader

    def left(self) -> list[str]:
        return sorted(path.name for folder in (self.images, self.videos) for path in folder.iterdir())

    def wait_until_empty(self, timeout_s: float = 30) -> None:
        wait_until(lambda: not self.left(), f"files are left: {self.left()[:5]}", timeout_s=timeout_s)

    def close(self) -> None:
        for uploader in self._uploaders:
            uploader.stop(0)

    @staticmethod
    def _add(folder: Path, name: str, content: bytes) -> Path:
        part = folder / f".part-{name}"
        part.write_bytes(content)
        return part.rename(folder / name)


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 30) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.01)


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """The log's messages of exactly this level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return lines(caplog, logging.WARNING)
