"""The files of events on disks that are slow, full, read-only or gone: from memory to S3, and nothing is lost."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from guardianberry.detection.detector import Person
from guardianberry.disk import write_atomically
from guardianberry.filenames import ImageName, parse
from guardianberry.recording.alert_images import Alert, AlertImages
from guardianberry.recording.clock import Clock
from guardianberry.recording.events import EventFiles
from guardianberry.recording.folder_thread import FolderThread
from guardianberry.recording.recorder import EventFacts, Inference
from guardianberry.recording.retention import Reserve
from guardianberry.upload.live import LiveClip
from tests.fakes import FakeClock
from tests.h264 import units
from tests.mounts import read_only, small_disk
from tests.test_clip import FakeTap, wait_until
from tests.test_disk import fill_up

NAME = ImageName(1_700_000_000, 87, 640, 480)
FACTS = EventFacts(max_people_found=1, max_confidence=87, inference_time_ms=20)
JPEG = b"\xff\xd8\xff" + b"x" * 50_000 + b"\xff\xd9"


class FakeUploader:
    """Keeps what it is told; S3 gets an image when the test says so."""

    def __init__(self) -> None:
        self.offered: dict[str, tuple[bytes, Callable[[], None]]] = {}
        self.saved: list[str] = []
        self.sweeps = 0

    def offer_alert(self, file_name: str, jpeg: bytes, *, frame_arrival_s: float, stored: Callable[[], None]) -> None:
        self.offered[file_name] = (jpeg, stored)

    def alert_saved(self, file_name: str) -> None:
        self.saved.append(file_name)

    def is_uploading(self, path: Path) -> bool:
        return False

    def sweep_soon(self) -> None:
        self.sweeps += 1

    def store(self, file_name: str) -> None:
        self.offered[file_name][1]()


class Rig:
    """images/ on a disk of its own choice, and its thread."""

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        self.path = images or folder / "images"
        self.uploader = FakeUploader()
        self.time = FakeClock(1000.0)
        self.is_synchronised = True
        self.clock = Clock(
            wait_s=10**9,
            is_synchronised=lambda: self.is_synchronised,
            wall=self.time.wall,
            monotonic=self.time,
            since_boot=self.time,
            pause=self.time.sleep,
        )
        self.images = AlertImages(
            self.path,
            clock=self.clock,
            uploader=self.uploader,  # type: ignore[arg-type]
            reserve=Reserve(folder, self.path, min_free_bytes=1),
        )

    def start(self) -> Rig:
        self.images.folder.start()
        assert self.images.folder.is_ready.wait(5)
        return self

    def add(self, name: ImageName = NAME, jpeg: bytes = JPEG, *, is_held: bool = False) -> Alert:
        alert = Alert(name, jpeg, 1000.0, is_held)
        self.images.add(alert)
        return alert

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())


@pytest.fixture
def rig(tmp_path: Path):
    rig = Rig(tmp_path)
    yield rig
    rig.images.close(5)


def test_an_image_is_offered_from_memory_before_the_disk_is_asked_for_anything(rig):
    alert = rig.add()  # the thread of images/ has not even started
    assert rig.uploader.offered[NAME.encode()][0] == JPEG
    assert not rig.path.exists()
    rig.uploader.store(NAME.encode())
    assert alert.is_safe.is_set()
    rig.start()
    rig.images.close(5)
    assert not rig.names(), "it is in S3 already"


def test_an_image_that_s3_does_not_take_is_saved_and_the_uploader_told(rig):
    rig.start()
    alert = rig.add()
    wait_until(lambda: rig.uploader.saved == [NAME.encode()])
    assert alert.is_safe.is_set()
    assert (rig.path / NAME.encode()).read_bytes() == JPEG


@pytest.mark.parametrize("moment", ["while it is written", "when it has just been written", "when it is told"])
def test_an_image_that_is_stored_while_it_is_saved_leaves_the_disk(rig, monkeypatch, moment):
    """The uploader deletes what is stored later, of which it has been told."""

    def store() -> None:
        rig.uploader.store(NAME.encode())

    def write(path: Path, content: bytes) -> None:
        if moment == "while it is written":
            store()
        write_atomically(path, content)
        if moment == "when it has just been written":
            store()

    monkeypatch.setattr("guardianberry.recording.alert_images.write_atomically", write)
    if moment == "when it is told":
        monkeypatch.setattr(rig.uploader, "alert_saved", lambda file_name: store())
    rig.start()
    alert = rig.add()
    wait_until(alert.is_safe.is_set)
    rig.images.close(5)
    assert not rig.names()
    assert not rig.uploader.saved, "the sweep would take it"


@pytest.mark.parametrize("disk", ["read-only", "full", "gone"])
def test_a_disk_that_takes_nothing_keeps_the_image_in_memory_and_gets_it_when_it_is_well(tmp_path, caplog, disk):
    caplog.set_level("INFO")
    images = tmp_path / "disk" / "images"
    with small_disk(tmp_path / "disk", "900k") as mounted:  # too small for a reserve
        rig = Rig(tmp_path, images).start()
        if disk == "full":
            fill_up(mounted)
            alert = rig.add()
            wait_until(lambda: "WARNING" in caplog.text)
            (mounted / "another-program").unlink()
        elif disk == "read-only":
            with read_only(images):
                alert = rig.add()
                wait_until(lambda: "WARNING" in caplog.text)
        else:
            mounted.joinpath("images").rename(mounted / "gone")
            images.symlink_to("/media/stick/images")
            alert = rig.add()
            wait_until(lambda: "WARNING" in caplog.text)
            images.unlink()
        assert not alert.is_safe.is_set()
        rig.images.folder.wake()
        wait_until(lambda: rig.uploader.saved == [NAME.encode()])
        assert (images / NAME.encode()).read_bytes() == JPEG
        rig.images.close(5)
    warning, *more = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert not more or disk == "gone", "it is told more than once"
    assert warning.startswith("images/: ")
    assert {"read-only": "Read-only", "full": "No space", "gone": "mount that disk"}[disk] in warning
    assert "images/ works again" in caplog.text
    assert "full to the last byte" not in caplog.text, "there was no reserve"


def test_the_reserve_is_used_when_the_disk_is_full_and_only_then(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "3m") as folder:
        rig = Rig(folder).start()
        wait_until((folder / ".reserve").exists)
        with read_only(rig.path):
            rig.add()
            wait_until(lambda: "Read-only" in caplog.text)
        assert (folder / ".reserve").exists(), "it would not help on a read-only disk"
        wait_until(lambda: rig.uploader.saved)
        fill_up(folder)
        rig.add(ImageName(1_700_000_060, 50, 640, 480))
        wait_until(lambda: len(rig.uploader.saved) == 2)
        assert "the reserve for alert images is used now" in caplog.text
        rig.images.close(5)


def test_an_images_folder_that_is_removed_is_made_again(rig):
    rig.start()
    rig.path.rmdir()
    rig.add()
    wait_until(lambda: rig.uploader.saved)
    wait_until(lambda: rig.names() == [NAME.encode()])
    assert rig.path.stat().st_mode & 0o777 == 0o700


def test_another_events_image_of_the_same_name_is_never_replaced(rig, caplog):
    """A clock that was set back an hour gives the seconds of that hour again."""
    rig.start()
    (rig.path / NAME.encode()).write_bytes(b"another event")
    alert = rig.add()
    wait_until(lambda: "another event's image" in caplog.text)
    assert not alert.is_safe.is_set()
    assert (rig.path / NAME.encode()).read_bytes() == b"another event"
    (rig.path / NAME.encode()).unlink()  # it is uploaded
    rig.images.folder.wake()
    wait_until(lambda: rig.uploader.saved)


@pytest.mark.parametrize("what", ["pipe", "link to /dev/zero", "hole", "folder", "dangling link"])
def test_whatever_else_has_the_name_is_neither_waited_for_nor_read_into_memory_nor_replaced(rig, caplog, what):
    """Else one pipe, of a name for each second to come, keeps all images from the disk."""
    rig.start()
    path = rig.path / NAME.encode()
    match what:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "hole":
            path.touch()
            os.truncate(path, 10**13)
        case _:
            path.symlink_to("/dev/zero" if what == "link to /dev/zero" else "/nowhere")
    before = path.lstat()
    rig.add()
    wait_until(lambda: "another event's image" in caplog.text)
    assert path.lstat().st_ino == before.st_ino
    rig.add(ImageName(1_700_000_060, 50, 640, 480))
    wait_until(lambda: rig.uploader.saved == ["1700000060-50-640-480.jpg"])  # it does not hold up the others
    path.rmdir() if what == "folder" else path.unlink()
    rig.images.folder.wake()
    wait_until(lambda: len(rig.uploader.saved) == 2)


def test_memory_is_bounded_and_a_held_image_that_goes_is_named(rig, caplog):
    """The disk takes nothing. Of the others, which the uploader has as well, the uploader tells."""
    for number in range(5):
        rig.add(ImageName(number, 50, 640, 480), JPEG * 100, is_held=number == 1)  # 5 MB each
    assert caplog.text.count("LOST") == 1
    assert "1-50-640-480.jpg is LOST" in caplog.text
    rig.start()
    wait_until(lambda: len(rig.names()) == 3)


def test_a_held_image_gets_its_time_and_is_offered_once_the_clock_is_set(rig):
    rig.is_synchronised = False
    rig.start()
    alert = rig.add(is_held=True)
    wait_until(alert.is_safe.is_set)
    assert rig.names() == [rig.clock.hold(NAME, 1000.0)]
    assert not rig.uploader.offered, "it has no true time yet"
    rig.time.step_wall(86_400)
    rig.is_synchronised = True
    rig.images.folder.wake()
    wait_until(lambda: rig.uploader.sweeps)
    assert rig.names() == [ImageName(1_700_086_400, 87, 640, 480).encode()]


def test_a_held_image_that_the_disk_never_took_is_offered_once_the_clock_is_set(tmp_path):
    rig = Rig(tmp_path)
    rig.is_synchronised = False
    rig.path.mkdir()
    with read_only(rig.path):
        rig.start()
        rig.add(is_held=True)
        time.sleep(0.2)
        rig.time.step_wall(86_400)
        rig.is_synchronised = True
        rig.images.folder.wake()
        wait_until(lambda: list(rig.uploader.offered) == [ImageName(1_700_086_400, 87, 640, 480).encode()])
    rig.images.close(5)


def test_a_held_image_whose_renaming_fails_once_is_renamed_later(tmp_path):
    rig = Rig(tmp_path)
    rig.path.mkdir()
    (rig.path / rig.clock.hold(NAME, 1000.0)).write_bytes(JPEG)
    with read_only(rig.path):
        rig.start()
        time.sleep(0.2)
        assert rig.names() == [rig.clock.hold(NAME, 1000.0)]
    rig.images.folder.wake()
    wait_until(lambda: rig.names() == [NAME.encode()])
    rig.images.close(5)


def test_what_could_not_be_saved_before_the_end_is_named(tmp_path, caplog):
    rig = Rig(tmp_path)
    rig.path.mkdir()
    with read_only(rig.path):
        rig.start()
        rig.add()
        rig.images.close(5)
    assert f"{NAME.encode()} is not on the disk, and LOST if S3 does not get it now" in caplog.text


# The folder's thread


def folder_of(path: Path, *tasks: Callable[[], None], **changes) -> FolderThread:
    settings = {"on_disk": lambda: None, "consequence": "alerts go on"}
    return FolderThread(path, tasks, **(settings | changes))


def test_a_folder_of_another_user_is_told_once_with_the_command(tmp_path, caplog, monkeypatch):
    path = tmp_path / "images"
    path.mkdir(mode=0o755)
    user = os.geteuid() + 12345
    monkeypatch.setattr(os, "geteuid", lambda: user)
    finds = []

    def not_ours(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def closed() -> None:
        finds.append(1)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "chmod", not_ours)
    folder = folder_of(path, on_disk=closed)
    folder.start()
    wait_until(lambda: finds)
    folder.close(5)  # which looks once more
    assert len(finds) > 1
    said = f"images/ is open to other users and cannot be closed: Operation not permitted: sudo chown -R {user} {path}"
    assert [record.message for record in caplog.records].count(said) == 1
    assert caplog.text.count("cannot be closed") == 1


def test_a_disk_that_hangs_is_told_once_and_the_caller_never_waits(tmp_path, caplog):
    caplog.set_level("INFO")
    clock, answer, hangs = FakeClock(), threading.Event(), threading.Event()

    def task() -> None:
        hangs.set()
        answer.wait(10)

    folder = folder_of(tmp_path / "videos", task, monotonic=clock)
    folder.start()
    assert hangs.wait(5)
    folder.check()
    assert not caplog.records
    clock.sleep(31)
    folder.check()
    folder.check()
    assert [record.getMessage() for record in caplog.records] == [
        "videos/: no answer for 30 s: see `dmesg`, and whether its server or cable is well;"
        " alerts go on until the disk works again"
    ]
    answer.set()
    wait_until(lambda: "videos/ works again" in caplog.text)
    folder.close(5)


def test_another_disk_in_the_same_place_is_taken_as_new(tmp_path):
    seen: list[list[str]] = []
    path = tmp_path / "videos"
    folder = folder_of(path, on_disk=lambda: seen.append(sorted(entry.name for entry in path.iterdir())))
    folder.start()
    wait_until(lambda: seen == [[]])
    with small_disk(path, "1m"):
        (path / "left-open").touch()
        folder.wake()
        wait_until(lambda: len(seen) == 2)
    folder.close(5)


def test_an_error_in_one_task_does_not_keep_the_others_from_running(tmp_path, caplog):
    done = threading.Event()

    def fails() -> None:
        raise ValueError("a bug")

    folder = folder_of(tmp_path / "videos", fails, done.set)
    folder.start()
    assert done.wait(5)
    folder.close(5)
    assert caplog.text.count("an error of the program") == 1


# Both files of an event


class FakeCamera:
    """Frames of a person."""

    def inference(self, time_s: float) -> Inference:
        bgr = np.full((240, 320, 3), 90, np.uint8)
        return Inference(
            time_s, [0.87], 20, SimpleNamespace(bgr=bgr, luma=lambda: bgr[:, :, 0]), [Person(10, 10, 60, 200, 0.87)]
        )


class FakeLane:
    """The live lane: notes which events it is given."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def begin(self, event_id: int, descriptor: int, picture: Callable[[], bytes | None]) -> LiveClip:
        self.begun.append(event_id)
        return LiveClip(event_id, descriptor, picture)


def make_events(
    folder: Path, uploader: FakeUploader, *, live: FakeLane | None = None, clock: Clock | None = None
) -> EventFiles:
    return EventFiles(
        folder,
        clock=clock or Clock(wait_s=0, is_synchronised=lambda: True),
        live=live,  # type: ignore[arg-type]
        uploader=uploader,  # type: ignore[arg-type]
        min_free_disk_bytes=1,
        max_recording_duration_s=20,
        frame_rate_fps=10,
    )


def test_an_event_is_told_once_a_kill_can_take_neither_of_its_files(tmp_path, caplog):
    caplog.set_level("INFO")
    uploader = FakeUploader()
    events = make_events(tmp_path, uploader)
    events.begin()
    events.start(FakeCamera().inference(time.monotonic()), FakeTap(units(10)), FACTS)
    wait_until(lambda: "event " in caplog.text)
    (image,) = [path for path in (tmp_path / "images").iterdir() if parse(path.name)]
    (clip,) = (tmp_path / "videos").iterdir()
    assert clip.name.startswith(".open-")
    assert f"alert image {image.name}, clip begun" in caplog.text
    events.close(timeout_s=1)


@pytest.mark.parametrize("is_set", [True, False])
def test_a_clip_is_given_to_the_live_lane_unless_its_time_is_not_known(tmp_path, caplog, is_set):
    caplog.set_level("INFO")
    lane, clock = FakeLane(), Clock(wait_s=10**9, is_synchronised=lambda: is_set)
    events = make_events(tmp_path, FakeUploader(), live=lane, clock=clock)
    events.begin()
    events.start(FakeCamera().inference(time.monotonic()), FakeTap(units(10)), FACTS)
    wait_until(lambda: "clip begun" in caplog.text)
    wait_until(lambda: len(lane.begun) == is_set)
    events.stop(SimpleNamespace(time_s=1e9, reason="test", facts=FACTS))  # type: ignore[arg-type]
    wait_until(lambda: "clip finished" in caplog.text)
    events.close(timeout_s=5)
    assert len(lane.begun) == is_set


def test_both_disks_gone_cost_no_alert_and_the_event_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("images", "videos"):
        (tmp_path / name).symlink_to("/media/stick/" + name)
    uploader = FakeUploader()
    events = make_events(tmp_path, uploader)
    events.begin()
    events.start(FakeCamera().inference(time.monotonic()), FakeTap(units(10)), FACTS)
    assert len(uploader.offered) == 1
    events.stop(stop := SimpleNamespace(time_s=1e9, reason="test", facts=FACTS))  # type: ignore[arg-type]
    assert stop.reason == "test"
    wait_until(lambda: ".jpg in memory only, clip NOT BEGUN" in caplog.text)
    events.close(timeout_s=1)


def test_somebody_new_within_the_gap_has_an_image_and_no_clip(tmp_path, caplog):
    caplog.set_level("INFO")
    uploader = FakeUploader()
    events = make_events(tmp_path, uploader)
    events.begin()
    events.alert(FakeCamera().inference(time.monotonic()))
    wait_until(lambda: uploader.saved)
    events.check()
    assert f"alert image {uploader.saved[0]}, clip none within the gap" in caplog.text
    assert not list((tmp_path / "videos").iterdir())
    events.close(timeout_s=1)
