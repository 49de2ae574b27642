"""A disk that runs short, is full to the last byte, or takes no writes: what goes, what stays, what goes on."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest

from guardianberry.filenames import HeldName, ImageName, VideoName
from guardianberry.recording.retention import Disk
from tests.daemon import SCENE, Daemon
from tests.h264 import decode
from tests.mounts import read_only, small_disk
from tests.s3_server import S3Server

CLIP_BYTES = 200_000


def fill_up(folder: Path) -> None:
    """As another program may, to the last byte."""
    with (folder / "another-program").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 65536):
            pass


def video(start: int) -> str:
    return VideoName(start, 5, 1, 50, 10, 640, 480).encode()


def image(start: int) -> str:
    return ImageName(start, 50, 640, 480).encode()


def make(folder: Path, min_free_bytes: int, **settings) -> Disk:
    for name in ("images", "videos"):
        (folder / name).mkdir(exist_ok=True)
    return Disk(
        folder=folder,
        images_folder=folder / "images",
        videos_folder=folder / "videos",
        min_free_bytes=min_free_bytes,
        **({"spared_s": 0} | settings),
    )


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(os.urandom(CLIP_BYTES))


def names(folder: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in folder.glob("*/*")}


def test_the_oldest_videos_go_first_each_with_a_warning(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "4m") as folder:
        disk = make(folder, 0)
        fill(
            folder / "videos",
            *(video(start) for start in (30, 10, 20)),
            HeldName("0" * 8, 5, VideoName(1, 2, 3, 4, 5, 6, 7)).encode(),
        )
        fill(folder / "images", image(5))
        free_bytes = disk.free_bytes()
        disk = make(folder, free_bytes + int(1.5 * CLIP_BYTES))
        assert disk.make_room() == 2
        assert {name for name in names(folder) if "videos/" in name} == {
            f"videos/{video(30)}",
            "videos/.held-00000000-5-1-2-3-4-5-6-7.mp4",
        }
        assert f"images/{image(5)}" in names(folder)
        lost = re.findall(r"disk: (\S+) is LOST", caplog.text)
        assert lost == [video(10), video(20)]


def test_images_go_last_and_what_is_not_ours_never(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "4m") as folder:
        disk = make(folder, 100_000_000)  # more than the disk has
        keep = {"videos": [".open-" + video(1), "holiday.mp4"], "images": ["notes.txt", ".part-" + image(3)]}
        fill(folder / "videos", video(1), video(2), *keep["videos"])
        fill(folder / "images", image(1), image(2), *keep["images"])
        assert disk.make_room() == 4
        lost = re.findall(r"disk: (\S+) is LOST", caplog.text)
        assert lost == [video(1), video(2), image(1), image(2)]
        assert names(folder) == {f"{kind}/{name}" for kind, found in keep.items() for name in found}


def test_what_is_new_is_spared_since_it_may_be_on_its_way_to_s3(tmp_path):
    now_s = 1000.0
    disk = make(tmp_path, 10**18, spared_s=600, monotonic=lambda: now_s)
    fill(tmp_path / "videos", video(1))
    assert disk.make_room() == 0
    now_s += 300
    fill(tmp_path / "videos", video(2))
    assert disk.make_room() == 0
    now_s += 300
    assert disk.make_room() == 1
    assert names(tmp_path) == {f"videos/{video(2)}"}


def test_on_a_disk_that_takes_no_writes_nothing_goes_and_none_is_called_lost(tmp_path, caplog):
    disk = make(tmp_path, 10**18)
    fill(tmp_path / "videos", video(1))
    with read_only(tmp_path / "videos"):
        assert disk.make_room() == 0
    assert "LOST" not in caplog.text


def test_with_room_nothing_goes_and_the_reserve_is_filled(tmp_path):
    disk = make(tmp_path, 1)
    fill(tmp_path / "videos", video(1))
    assert disk.make_room() == 0
    assert (tmp_path / ".reserve").stat().st_blocks * 512 >= 1_000_000
    assert disk.give_up_reserve()
    assert not disk.give_up_reserve()


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        server.create_bucket("guardianberry.images", "guardianberry.videos")
        yield server


EVENTS = {"MAX_RECORDING_DURATION_S": 4, "PRE_ROLL_S": 1, "MIN_GAP_BETWEEN_VIDEO_START_S": 5, "CLOCK_WAIT_S": 0}


@pytest.mark.slow
def test_a_disk_full_to_the_last_byte_stops_neither_detection_nor_alerts_and_recording_resumes(tmp_path, models, s3):
    """Another program fills the disk; there is nothing of ours to delete."""
    env = s3.environment() | {"STAND_IN_VIDEO": str(SCENE), "STAND_IN_START_S": "4"}
    with small_disk(tmp_path / "disk", "12m") as folder:
        daemon = Daemon(folder, models, env=env, MIN_FREE_DISK_BYTES=2_000_000, **EVENTS)
        daemon.log_path = tmp_path / "daemon.log"
        with daemon:
            daemon.wait_for_log("camera: video from")
            fill_up(folder)
            daemon.wait_for_log("the reserve for alert images is used", timeout_s=90)
            daemon.wait_for_log(r"image \S+: uploaded")
            daemon.wait_for_log(r"event \d+:.* clip begun")
            fill_up(folder)  # again, since the reserve has given the clip room
            daemon.wait_for_log(r"clip: cannot write \S+ \(.*No space left on device.*are kept")
            cut_short = daemon.wait_for_log(r"clip finished: (\S+)")[0]
            daemon.wait_for_log("recording stopped: the disk refuses")
            (folder / "another-program").unlink()
            events = len(daemon.wait_for_log(r"event \d+:"))
            whole = daemon.wait_for_log(r"event (\d+):", timeout_s=90, count=events + 1)[-1]
            daemon.wait_for_log(rf"video {whole}-\S+: uploaded", timeout_s=90)
            daemon.wait_for_log(rf"video {cut_short}: uploaded")
            code, _ = daemon.terminate()
        assert code == 0
        assert "LOST" not in daemon.log, "deleting what is new helps nobody"
    clip, frames = tmp_path / "clip.mp4", {}
    for stored in s3.objects("guardianberry.videos"):
        clip.write_bytes(stored.body)
        frames[stored.metadata["recording_start_time"]], duration_s, _ = decode(clip)
        assert stored.metadata["duration"] == str(round(duration_s))
    assert frames[whole] > 30


def test_a_read_only_videos_folder_is_named_and_alerts_go_on(tmp_path, models, s3):
    env = s3.environment() | {"STAND_IN_VIDEO": str(SCENE), "STAND_IN_START_S": "4"}
    held = tmp_path / "videos" / HeldName("00000000", 5, VideoName(1, 5, 1, 50, 10, 640, 480)).encode()
    held.parent.mkdir()
    held.touch()  # by a run before the card went read-only
    with read_only(tmp_path / "videos"), Daemon(tmp_path, models, env=env, **EVENTS) as daemon:
        daemon.wait_for_log(rf"clock: \S+/{held.name} cannot be renamed \(.*[Rr]ead-only.*make its folder writable")
        daemon.wait_for_log(r"clip: cannot record into \S+/videos \(.*[Rr]ead-only", timeout_s=90)
        daemon.wait_for_log(r"image \S+: uploaded")
        code, _ = daemon.terminate()
    assert code == 0
    assert held.exists()
