"""A disk that runs short, is full to the last byte, or takes no writes: what goes, what stays, what goes on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from guardianberry.filenames import HeldName, ImageName, VideoName
from guardianberry.recording.retention import Reserve, Retention
from tests.daemon import SCENE, SMALL_INPUT, Daemon
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


def make(folder: Path, min_free_bytes: int, **settings) -> Retention:
    (folder / "videos").mkdir(exist_ok=True)
    return Retention(
        folder / "videos", **({"min_free_bytes": min_free_bytes, "is_uploading": lambda path: False} | settings)
    )


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(os.urandom(CLIP_BYTES))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


HELD = HeldName("0" * 8, 5, VideoName(1, 2, 3, 4, 5, 6, 7)).encode()


def test_the_oldest_videos_go_first_each_with_a_warning(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "4m") as folder:
        videos = folder / "videos"
        fill(videos, *(video(start) for start in (30, 10, 20)), HELD)
        fill(folder / "images", image(5))
        fill(folder, "another-program")
        with (folder / "another-program").open("ab") as file:  # 300 kB are free: 100 kB short of a tenth of the disk
            file.write(b"x" * (shutil.disk_usage(folder).free - 300_000))
        make(folder, 10**12).make_room()
        assert names(videos) == {video(20), video(30), HELD}
        assert names(folder / "images") == {image(5)}
        assert re.findall(r"disk: (\S+) is LOST", caplog.text) == [video(10)]


def test_nothing_goes_where_that_cannot_bring_enough_space(tmp_path, caplog):
    """Another program fills the disk, or images do."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        fill(folder / "videos", video(1))
        fill(folder / "images", image(1))
        retention = make(folder, 10**12)
        fill_up(folder)
        retention.make_room()
        retention.make_room()
        assert names(folder / "videos") == {video(1)}
        assert names(folder / "images") == {image(1)}
        assert len(caplog.records) == 1
        assert "free some space" in caplog.text


def test_a_small_disk_need_not_have_more_free_space_than_a_tenth_of_it(tmp_path):
    """A queue on a RAM disk of 4 MB, with MIN_FREE_DISK_BYTES of 500 MB."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        fill(folder / "videos", video(1), video(2))
        make(folder, 500_000_000).make_room()
        assert names(folder / "videos") == {video(1), video(2)}


def test_only_the_disk_of_the_videos_counts(tmp_path):
    with small_disk(tmp_path / "images", "1m") as images:
        fill_up(images)
        fill(tmp_path / "videos", video(1))
        make(tmp_path, 1_000_000).make_room()
        assert names(tmp_path / "videos") == {video(1)}


def test_neither_a_clip_that_is_being_uploaded_nor_another_file_goes(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as folder:
        videos = folder / "videos"
        keep = {".open-" + video(1), "holiday.mp4", video(2)}
        fill(videos, video(3), *keep)
        with (folder / "another-program").open("ab") as file:
            file.write(b"x" * (shutil.disk_usage(folder).free - 300_000))
        make(folder, 10**12, is_uploading=lambda path: path.name == video(2)).make_room()
        assert names(videos) == keep


def test_where_deleting_does_not_help_it_stops_after_one(tmp_path, caplog):
    """Another program holds the clip open, say: its space comes back only when that ends."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        videos = folder / "videos"
        fill(videos, video(1), video(2), video(3))
        with (folder / "another-program").open("ab") as file, (videos / video(1)).open("rb"):
            file.write(b"x" * (shutil.disk_usage(folder).free - 100_000))
            file.flush()
            retention = make(folder, 10**12)
            retention.make_room()
            retention.make_room()
        assert names(videos) == {video(2), video(3)}
        assert "did not help" in caplog.text


def test_files_that_bring_no_room_do_not_keep_the_clips_from_making_it(tmp_path, caplog):
    """Empty ones, small ones while another program writes, and one more name of a large file."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        videos = folder / "videos"
        fill(videos, video(10), video(20), video(30))
        fill(folder, "large")
        (videos / video(1)).hardlink_to(folder / "large")
        (videos / video(2)).touch()
        (videos / video(3)).write_bytes(bytes(4096))
        with (folder / "another-program").open("ab") as file:
            file.write(b"x" * (shutil.disk_usage(folder).free - 300_000))

        def write_on(path: Path) -> bool:
            """Between the deletions, as another program does."""
            with (folder / "another-program").open("ab") as file:
                file.write(bytes(8192))
            return False

        make(folder, 10**12, is_uploading=write_on).make_room()
        assert re.findall(r"disk: (\S+) is LOST", caplog.text) == [video(3), video(10)]
        assert names(videos) == {video(1), video(2), video(20), video(30)}
        assert "did not help" not in caplog.text


def test_on_a_disk_that_takes_no_writes_nothing_goes_and_none_is_called_lost(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "4m") as folder:
        fill(folder / "videos", video(1))
        with (folder / "another-program").open("ab") as file:
            file.write(b"x" * (shutil.disk_usage(folder).free - 300_000))
        with read_only(folder / "videos"):
            make(folder, 10**12).make_room()
            assert names(folder / "videos") == {video(1)}
    assert "LOST" not in caplog.text


def reserve(folder: Path, images: Path) -> Reserve:
    images.mkdir(exist_ok=True)
    return Reserve(folder, images, min_free_bytes=1)


def test_the_reserve_is_filled_where_there_is_room_and_given_up_once(tmp_path):
    kept = reserve(tmp_path, tmp_path / "images")
    kept.fill()
    assert (tmp_path / ".reserve").stat().st_blocks * 512 >= 1_000_000
    assert kept.give_up()
    assert not kept.give_up()


def test_the_reserve_lies_on_the_disk_of_the_images(tmp_path):
    with small_disk(tmp_path / "images", "4m") as images:
        reserve(tmp_path, images).fill()
        assert (images / ".reserve").stat().st_size == 1_000_000


def test_a_reserve_that_a_full_disk_left_empty_is_filled_later(tmp_path):
    with small_disk(tmp_path / "disk", "900k") as folder:
        reserve(folder, folder / "images").fill()
        assert not (folder / ".reserve").exists()
    (tmp_path / ".reserve").touch()  # as older versions left it
    reserve(tmp_path, tmp_path / "images").fill()
    assert (tmp_path / ".reserve").stat().st_blocks * 512 >= 1_000_000


@pytest.mark.parametrize("make", [lambda path, other: path.symlink_to(other), lambda path, _: os.mkfifo(path)])
def test_a_reserve_that_is_a_link_or_a_pipe_harms_nothing(tmp_path, make):
    """As a card from elsewhere can have it."""
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    make(tmp_path / ".reserve", other)
    filling = threading.Thread(target=reserve(tmp_path, tmp_path / "images").fill, daemon=True)
    filling.start()
    filling.join(20)
    assert not filling.is_alive(), "it waits for the other end of the pipe"
    assert other.read_bytes() == b"precious"
    assert (tmp_path / ".reserve").lstat().st_size == 1_000_000


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        server.create_bucket("guardianberry.images", "guardianberry.videos")
        yield server


EVENTS = {"MAX_RECORDING_DURATION_S": 4, "PRE_ROLL_S": 1, "MIN_GAP_BETWEEN_VIDEO_START_S": 5, "CLOCK_WAIT_S": 0}
EVENTS |= SMALL_INPUT


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
