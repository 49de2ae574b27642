"""Clips that a kill left open are finished in a child process, and no file of such a name stops the guard."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from guardianberry.filenames import DAMAGED_PREFIX, OPEN_PREFIX, parse
from guardianberry.recording.mp4 import close_killed_file
from guardianberry.recording.recovery import Recovery
from tests.daemon import SCENE, SHARED, SMALL_INPUT, Daemon
from tests.fakes import FakeClock
from tests.h264 import decode
from tests.hostile_mp4 import crashes_the_muxer, hostile_files, one_hole
from tests.s3_server import S3Server
from tests.test_clip import NAME, open_clip, recover

GOOD = OPEN_PREFIX + NAME.encode()
HARMFUL = {"changed byte in stts", "samples at one place"}  # the others are only refused
READABLE = {"box of length 0", "negative times", "time runs backwards"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return open_clip(tmp_path_factory.mktemp("killed"), GOOD).read_bytes()


@pytest.fixture(scope="module")
def hostile(killed: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("closed") / GOOD
    path.write_bytes(killed)
    close_killed_file(path, frame_rate_fps=10)
    files = hostile_files(killed, path.read_bytes())
    found = sorted((SHARED / "attacks").glob("*.mp4"))
    return files | {path.name: path.read_bytes() for path in found}


def name_of(number: int) -> str:
    return f"{OPEN_PREFIX}{number}-0-1-50-12-320-240.mp4"


def fill(folder: Path, files: dict[str, bytes], good: bytes) -> dict[str, str]:
    """Put them into `folder` with a good one, and things of such names that are no files; what each name stands for."""
    names = {name_of(number): what for number, what in enumerate(files)}
    for name, what in names.items():
        (folder / name).write_bytes(files[what])
    os.mkfifo(folder / name_of(1001))
    (folder / name_of(1002)).mkdir()
    (folder / name_of(1003)).symlink_to("/dev/zero")
    (folder / GOOD).write_bytes(good)
    return names


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink())


@pytest.mark.own_process
def test_no_file_costs_more_than_a_little_memory_disk_and_time_or_the_good_clip(
    tmp_path: Path, killed: bytes, hostile: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    names = fill(tmp_path, hostile, killed)
    before_bytes = disk_bytes(tmp_path)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    recover(tmp_path)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 400_000, "kB"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used.ru_utime < 30
    assert disk_bytes(tmp_path) < 2 * before_bytes + 1_000_000
    finished = [path for path in tmp_path.iterdir() if path.name.startswith("1700000000-2-")]
    assert [decode(path)[0] for path in finished] == [19]
    for name, what in names.items():
        aside = tmp_path / name.replace(OPEN_PREFIX, DAMAGED_PREFIX)
        left = [path for path in (tmp_path / name, aside) if path.exists()]
        assert [path == aside for path in left] == ([what in HARMFUL] if left else []), what
        assert all(path.read_bytes() == hostile[what] for path in left), "nothing is deleted or changed"
        assert left or what in READABLE, what
    assert all(decode(path)[0] for path in tmp_path.iterdir() if parse(path.name))
    assert caplog.text.count("is damaged") == len(HARMFUL)
    caplog.clear()
    recover(tmp_path)
    assert not any(name in caplog.text for name, what in names.items() if what in HARMFUL), "it was tried again"


def test_a_hundred_files_that_crash_their_reader_do_not_delay_the_good_one(tmp_path: Path, killed: bytes) -> None:
    for number in range(100):
        (tmp_path / name_of(number)).write_bytes(crashes_the_muxer(killed))
    (tmp_path / GOOD).write_bytes(killed)
    (finished,) = recover(tmp_path)  # in one run of the child: no second one is started
    assert decode(finished)[0] == 19
    assert len(list(tmp_path.glob(DAMAGED_PREFIX + "*"))) == 100


def test_a_thousand_names_do_not_bury_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(300):
        (tmp_path / f".open-{number}").touch()
        (tmp_path / f".part-{number}").mkdir()
        (tmp_path / name_of(number)).write_bytes(b"no clip")
    recover(tmp_path)
    assert len(caplog.records) == 2 * 101


def test_a_hole_does_not_fill_the_disk(tmp_path: Path, killed: bytes) -> None:
    """Its copy would take room that the file does not take: a hundred of them, 30 GB of the oldest clips."""
    path = tmp_path / GOOD
    path.write_bytes(killed)
    close_killed_file(path, frame_rate_fps=10)
    path.write_bytes(one_hole(path.read_bytes(), count=40, size_bytes=1_000_000))
    os.truncate(path, path.stat().st_size + 40_000_000)
    assert path.stat().st_blocks * 512 < 1_000_000
    assert not recover(tmp_path)
    assert sum(each.stat().st_blocks * 512 for each in tmp_path.iterdir()) < 1_000_000
    assert [each.name for each in tmp_path.iterdir()] == [GOOD.replace(OPEN_PREFIX, DAMAGED_PREFIX)]


def test_a_file_that_is_set_aside_replaces_no_other(tmp_path: Path, killed: bytes) -> None:
    damaged = crashes_the_muxer(killed)
    aside = tmp_path / GOOD.replace(OPEN_PREFIX, DAMAGED_PREFIX)
    aside.write_bytes(b"another one")
    (tmp_path / GOOD).write_bytes(damaged)
    assert not recover(tmp_path)
    assert aside.read_bytes() == b"another one"
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == sorted([damaged, b"another one"])


def test_a_clip_waits_while_its_process_cannot_be_started(
    tmp_path: Path, killed: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished: list[Path] = []
    clock = FakeClock()
    recovery = Recovery(
        tmp_path,
        max_duration_s=20,
        frame_rate_fps=10,
        is_recording=lambda event_id: False,
        finished=finished.append,
        monotonic=clock,
    )
    (tmp_path / GOOD).write_bytes(killed)
    recovery.look()
    for program in ("/nowhere/python", "/bin/false"):  # it cannot be started, or it is killed
        with monkeypatch.context() as context:
            context.setattr(sys, "executable", program)
            recovery.finish()
        clock.sleep(60)
    assert (tmp_path / GOOD).read_bytes() == killed
    assert caplog.text.count("1 open clip(s) wait") == 1
    recovery.finish()
    assert [decode(path)[0] for path in finished] == [19]


@pytest.mark.slow
def test_the_daemon_guards_and_uploads_the_killed_clip_whatever_lies_next_to_it(
    tmp_path: Path, models: Path, killed: bytes, hostile: dict[str, bytes]
) -> None:
    with S3Server() as s3:
        names = {"IMAGES_BUCKET": "images", "VIDEOS_BUCKET": "videos"}
        s3.create_bucket(*names.values())
        (tmp_path / "videos").mkdir()
        fill(tmp_path / "videos", hostile, killed)
        environment = s3.environment() | {"STAND_IN_VIDEO": str(SCENE), "STAND_IN_START_S": "4"}
        with Daemon(tmp_path, models, env=environment, CLOCK_WAIT_S=0, **SMALL_INPUT, **names) as daemon:
            daemon.wait_for_log(r"event \d+: ")
            daemon.wait_until(
                lambda: any(stored.metadata["recording_start_time"] == "1700000000" for stored in s3.objects("videos")),
                "the killed clip is not uploaded",
            )
            daemon.wait_for_log(r"\.open-\S+ is damaged", count=len(HARMFUL))
            assert daemon.terminate()[0] == 0
