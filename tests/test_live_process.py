"""What S3 has of an event while it happens: the real daemon, killed or not, and the page that its owner sees."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.chromium import Chromium
from bench.footage import FRAME_RATE_FPS, write_footage
from tests.daemon import SMALL_INPUT, Daemon
from tests.h264 import decode
from tests.s3_server import S3Server
from viewer import show
from viewer.events import UNFINISHED, WHOLE, Event
from viewer.stores import S3Store

pytestmark = pytest.mark.slow
LATER_S = 600  # nothing counts as under way any more


class Camera:
    """A daemon whose camera always shows a person, its buckets, and its owner's folder."""

    def __init__(self, folder: Path, models: Path, s3: S3Server, name: str, **constants: object) -> None:
        self.images, self.videos = f"images-{name}", f"videos-{name}"
        self._s3, self._page = s3, folder / "page"
        s3.create_bucket(self.images, self.videos)
        write_footage(folder / "footage.h264")
        self._control = folder / "control"
        env = s3.environment() | {"STAND_IN_H264": str(folder / "footage.h264"), "STAND_IN_CONTROL": str(self._control)}
        buckets = {"IMAGES_BUCKET": self.images, "VIDEOS_BUCKET": self.videos}
        constants |= {"FRAME_RATE_FPS": FRAME_RATE_FPS, "CLOCK_WAIT_S": 0, **SMALL_INPUT}
        self.daemon = Daemon(folder / "daemon", models, env=env, **buckets, **constants)

    def keys(self, prefix: str) -> list[str]:
        """In the videos bucket."""
        return sorted(key for key in self._s3.keys(self.videos) if key.startswith(prefix))

    def clips(self) -> list[str]:
        return [key for key in self.keys("") if "/" not in key]

    def show_no_more(self) -> None:
        self._control.write_text("no-camera")

    def look(self) -> tuple[Path, list[Event]]:
        """The page and its events, as `python3 -m viewer` shows them some minutes later."""
        store = S3Store(images_bucket=self.images, videos_bucket=self.videos, profile=None)
        return show(store, self._page, days=2, clock=lambda: time.time() + LATER_S)[:2]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


def test_a_killed_clip_can_be_seen_and_gives_way_to_the_whole_one_after_the_restart(
    tmp_path: Path, models: Path, s3: S3Server
) -> None:
    camera = Camera(tmp_path, models, s3, "killed")
    with camera.daemon as daemon:
        daemon.wait_until(lambda: sum(key.endswith(".part") for key in camera.keys("live/")) >= 3, "no parts")
        daemon.kill()
        parts = camera.keys("live/")
        assert camera.clips() == []

        page, (event,) = camera.look()
        assert event.state == UNFINISHED
        frames, _, first_is_key = decode(page.parent / event.clip)
        assert first_is_key
        assert frames > FRAME_RATE_FPS
        if shutil.which("chromium"):
            plays_in_a_browser(page)

        camera.show_no_more()
        daemon.start()
        daemon.wait_for_log(r"video .*: uploaded")
    assert len(camera.clips()) == 1
    assert camera.keys("live/") == parts, "nothing is uploaded in parts afterwards"
    page, (event,) = camera.look()
    assert event.state == WHOLE
    assert decode(page.parent / event.clip)[0] >= frames
    left = [path.name for pattern in ("parts/*.part", "joined/*") for path in page.parent.glob(pattern)]
    assert left == [], "the parts have given way"


def plays_in_a_browser(page: Path) -> None:
    with Chromium() as browser:
        browser.open(page.as_uri())
        assert "did not finish" in browser.run("document.body.innerText")
        browser.click(".card")
        browser.wait_for("document.querySelector('video').currentTime > 0.5")
        assert browser.run("document.querySelector('video').error") is None
        assert browser.run("document.querySelector('video').videoWidth") == 640
        assert browser.console == []


def test_the_objects_of_an_event_name_it_and_only_its_image_is_where_alerts_are_made(
    tmp_path: Path, models: Path, s3: S3Server
) -> None:
    camera = Camera(tmp_path, models, s3, "whole", MAX_RECORDING_DURATION_S=5, PRE_ROLL_S=2)
    with camera.daemon as daemon:
        daemon.wait_for_log(r"video .*: uploaded")
        daemon.wait_for_log(r"best picture .*: uploaded")
        assert daemon.terminate()[0] == 0
    (image,) = s3.objects(camera.images)
    objects = s3.objects(camera.videos, everything=True)
    assert {stored.metadata["event"] for stored in [image, *objects]} == {image.metadata["event"]}
    event = image.metadata["event"]
    assert camera.keys("best/") == [f"best/{event}.jpg"]
    assert len(camera.clips()) == 1
    parts = [stored for stored in objects if stored.content_type == "application/octet-stream"]
    assert [stored.key for stored in parts] == [f"live/{event}/{n:04}.part" for n in range(len(parts))]
    assert parts
    for stored in objects:
        if stored.key.startswith("live/"):
            assert stored.metadata.keys() == {"event", "part", "recording_start_time", "camera_name"}


def test_without_live_upload_there_are_no_parts(tmp_path: Path, models: Path, s3: S3Server) -> None:
    camera = Camera(tmp_path, models, s3, "off", MAX_RECORDING_DURATION_S=5, PRE_ROLL_S=2, LIVE_UPLOAD=False)
    with camera.daemon as daemon:
        daemon.wait_for_log(r"video .*: uploaded")
    assert camera.keys("live/") == []
