"""Every visitor once: the real daemon on the demo's film, in which two people come within the gap between clips."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import SCENE, SMALL_INPUT, Daemon
from tests.s3_server import S3Server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.mark.slow
def test_somebody_new_within_the_gap_gets_an_image_of_their_own_and_no_clip(
    tmp_path: Path, models: Path, s3: S3Server
) -> None:
    unique = uuid.uuid4().hex[:8]
    buckets = {"IMAGES_BUCKET": f"images-{unique}", "VIDEOS_BUCKET": f"videos-{unique}"}
    s3.create_bucket(*buckets.values())
    env = s3.environment() | {"STAND_IN_VIDEO": str(SCENE), "STAND_IN_AT_END": "hold", "STAND_IN_START_S": "4"}
    with Daemon(tmp_path, models, env=env, CLOCK_WAIT_S=0, **SMALL_INPUT, **buckets) as daemon:
        daemon.wait_for_log(r"image .*: uploaded", count=2, timeout_s=120)
        daemon.wait_for_log(r"video .*: uploaded", timeout_s=60)
        daemon.wait_until(lambda: not daemon.pending(), "videos/ and images/ are not empty")
    images = s3.objects(buckets["IMAGES_BUCKET"])
    assert len({image.metadata["recording_start_time"] for image in images}) == 2
    assert len({image.metadata["event"] for image in images}) == 2
    assert all(int(image.metadata["confidence"]) > 25 for image in images)
    keys = s3.keys(buckets["VIDEOS_BUCKET"])
    assert len([key for key in keys if key.endswith(".mp4")]) == 1, "the gap bounds the clips"
    events = {image.metadata["event"] for image in images}
    assert {key.split("/")[1].removesuffix(".jpg") for key in keys if "/" in key} < events, (
        "parts are of the clip alone"
    )
