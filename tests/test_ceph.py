"""The uploader with a Ceph gateway, which does what moto does not: each file is there once, as it was sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardianberry.doctor.s3 import check_uploads
from guardianberry.upload.s3 import S3
from tests.ceph import Ceph
from tests.s3_server import S3Server
from tests.upload_rig import SERIAL, Rig, jpeg, lines, mp4, rig_of, wait_until, warnings
from viewer.objects import read_facts

START = 1_700_000_000


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def ceph(s3: S3Server) -> Iterator[Ceph]:
    with Ceph(s3.port) as ceph:
        yield ceph


@pytest.fixture
def rig(
    tmp_path: Path, s3: S3Server, ceph: Ceph, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Rig]:
    caplog.set_level(logging.DEBUG)
    with rig_of(s3, tmp_path, monkeypatch, url=ceph.url) as rig:
        yield rig


def test_the_first_alert_is_stored_without_the_encryption_that_the_gateway_refuses(
    rig: Rig, s3: S3Server, ceph: Ceph, caplog: pytest.LogCaptureFixture
) -> None:
    """All three lanes go on without it; one of them has told why."""
    uploader, content = rig.start(), jpeg()
    rig.alert(uploader, START, content)
    film = os.open(rig.add_video(START, mp4(50_000)), os.O_RDONLY)
    clip = uploader.live.begin(START, film, lambda: None)
    uploader.sweep_soon()
    wait_until(lambda: any(key.startswith("live/") for key in s3.keys(rig.videos_bucket)), "no part")
    clip.end()
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.images_bucket)
    assert stored.body == content
    (line,) = warnings(caplog)
    assert "does not support encryption at rest (HTTP 400 InvalidRequest)" in line
    assert uploader.counters().failed_tries == 0
    assert sum(b"x-amz-server-side-encryption" in head for head in ceph.heads) <= 2, "it is not remembered"
    findings = list(check_uploads(S3(server_side_encryption="AES256"), {"images": rig.images_bucket}))
    assert "does not confirm the encryption at rest" in findings[-1].text


def test_a_clip_over_the_quota_holds_up_no_image_and_is_stored_once_the_quota_is_raised(
    rig: Rig, s3: S3Server, ceph: Ceph, caplog: pytest.LogCaptureFixture
) -> None:
    ceph.quota_bytes, content = 1_000_000, mp4(3_000_000)
    rig.add_video(START, content)
    uploader = rig.start(server_side_encryption=None)
    wait_until(lambda: uploader.counters().failed_tries >= 2, "it does not end")
    rig.alert(uploader, START + 1)
    wait_until(lambda: s3.keys(rig.images_bucket), "the alert waits")
    (line,) = warnings(caplog)
    assert line.startswith("uploads of videos fail: the quota of the bucket or its owner is used up")
    ceph.quota_bytes = None
    uploader.sweep_soon()
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.videos_bucket)
    assert stored.body == content


def test_with_versioning_a_lost_reply_makes_another_version_of_the_same_object_and_no_second_object(
    rig: Rig, s3: S3Server, ceph: Ceph
) -> None:
    """Conditions are ignored then, so receivers go by the key."""
    versioning = {"Status": "Enabled"}
    s3.client().put_bucket_versioning(Bucket=rig.images_bucket, VersioningConfiguration=versioning)
    ceph.has_versioning, ceph.replies_to_lose, content = True, 2, jpeg()  # both tries of the first sweep
    rig.add_image(START, content)
    rig.start(server_side_encryption=None)
    rig.wait_until_empty()
    assert ceph.lost_replies == 2
    versions = s3.client().list_object_versions(Bucket=rig.images_bucket)["Versions"]
    assert len(versions) == 3
    assert {version["Key"] for version in versions} == s3.keys(rig.images_bucket)
    assert len({version["ETag"] for version in versions}) == 1
    assert [stored.body for stored in s3.objects(rig.images_bucket)] == [content]


def test_metadata_whose_names_have_dashes_are_read_as_sent(rig: Rig, s3: S3Server) -> None:
    rig.add_image(START)
    rig.start(server_side_encryption=None, camera_name="Front door")
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.images_bucket)
    assert stored.metadata["recording-start-time"] == str(START)
    assert "recording_start_time" not in stored.metadata
    told = read_facts(stored.metadata, modified=START)
    assert (told.start, told.serial, told.camera, told.confidence) == (START, SERIAL, "Front door", 81)


def test_a_rate_limit_delays_files_and_is_told_once(
    rig: Rig, s3: S3Server, ceph: Ceph, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is asked more often than the pauses allow, and what was refused is there once in the end."""
    for number in range(3):
        rig.add_image(START + number)
        rig.add_video(START + number)
    ceph.uploads_left = 1
    uploader = rig.start(server_side_encryption=None)
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    assert uploader.counters().images == 1
    assert len(ceph.heads) <= 1 + 2 * (uploader.counters().failed_tries + 1), "two tries a sweep, of one file"
    (line,) = warnings(caplog)
    assert "S3 asks to slow down (HTTP 503 SlowDown)" in line
    ceph.uploads_left = None
    rig.wait_until_empty()
    assert len(s3.keys(rig.images_bucket)) == len(s3.keys(rig.videos_bucket)) == 3
    assert any(each.startswith("uploads work again; still queued: 2 images, 3 videos") for each in lines(caplog, 20))
