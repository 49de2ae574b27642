"""The real process on disks that fail, hang, are slow or gone: alerts are uploaded all the while, and it recovers.

`faulty_disk.c` makes the faults of a disk that only its hardware could make.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.footage import FRAME_RATE_FPS, write_footage
from guardianberry.filenames import VideoName
from tests.daemon import ROOT, SMALL_INPUT, Daemon
from tests.h264 import decode
from tests.mounts import read_only, small_disk
from tests.s3_server import S3Server

EVENTS = {
    "MAX_RECORDING_DURATION_S": 2,
    "PRE_ROLL_S": 1,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 3,
    "FRAME_RATE_FPS": FRAME_RATE_FPS,
    "CLOCK_WAIT_S": 0,
    **SMALL_INPUT,
}
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.slow


class Guard:
    """A daemon before whose camera there is always a person: an event every three seconds."""

    def __init__(self, folder: Path, models: Path, *, env: dict[str, str] | None = None, **options) -> None:
        self.s3 = S3Server().__enter__()
        self.s3.create_bucket("guardianberry.images", "guardianberry.videos")
        self.folder = folder
        footage = folder.parent / f"{folder.name}.h264"
        write_footage(footage)
        env = self.s3.environment() | {"STAND_IN_H264": str(footage)} | (env or {})
        self.daemon = Daemon(folder, models, env=env, **options, **EVENTS)
        self.daemon.log_path = folder.parent / f"{folder.name}.log"

    def __enter__(self) -> Guard:
        self.daemon.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.kill()
        self.s3.__exit__(None, None, None)

    def wait_for_alert(self) -> None:
        """Of an event that begins from now on."""
        self._wait_for("image")

    def wait_for_clip(self) -> None:
        """Of an event that begins from now on."""
        self._wait_for("video")

    def _wait_for(self, media_type: str) -> None:
        old_s = time.time() + 1  # an event id is its start, rounded
        uploaded = re.compile(rf"{media_type} (\d+)-\S+: uploaded")
        self.daemon.wait_until(
            lambda: any(int(start) > old_s for start in uploaded.findall(self.daemon.log)),
            f"no {media_type} is uploaded",
        )

    def warnings(self, log: str) -> list[str]:
        return [line for line in log.splitlines() if " WARNING " in line]

    def end(self) -> None:
        code, _ = self.daemon.terminate(timeout_s=30)
        assert code == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("needs a C compiler (Debian's package gcc)")
    path = tmp_path_factory.mktemp("library") / "faulty_disk.so"
    source = ROOT / "tests" / "faulty_disk.c"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"], check=True)
    return path


@pytest.mark.parametrize("folder", ["images", "videos"])
def test_a_disk_that_hangs_at_the_start_delays_no_alert(tmp_path, models, library, folder):
    control = tmp_path / "fault"
    control.write_text(f"hang {folder}", encoding="ascii")
    with Guard(tmp_path / "home", models, env={"LD_PRELOAD": str(library), "FAULTY_DISK": str(control)}) as guard:
        guard.wait_for_alert()
        control.unlink()
        guard.wait_for_clip()
        guard.end()


def test_check_tells_of_a_disk_that_fails_or_hangs_and_goes_on(tmp_path, library):
    """With a wrong constant it leaves camera and model alone, which other tests check."""
    control, home = tmp_path / "fault", tmp_path / "home"
    for name in ("images", "videos"):
        (home / name).mkdir(parents=True)
    program = (
        "import sys; from pathlib import Path; import detect_and_upload as script;"
        "from guardianberry.doctor.check import Site, check; home = Path(sys.argv[1]);"
        "check(home, vars(script) | {'BITRATE_BPS': 0}, None, None, site=Site(env=home, wait_s=1))"
    )
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true"}
    env |= {"LD_PRELOAD": str(library), "FAULTY_DISK": str(control)}
    for fault, told in ((errno.EIO, "cannot be used: Input/output error: see `dmesg`"), ("hang", "no answer for 1 s")):
        control.write_text(f"{fault} videos", encoding="ascii")
        command = [sys.executable, "-c", program, str(home)]
        page = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert page.stderr == ""
        assert re.search(r"^ok    images/ ", page.stdout, re.MULTILINE), page.stdout
        assert re.search(rf"^FAIL  videos/ +{told}", page.stdout, re.MULTILINE), page.stdout
        assert page.stdout.index("videos/") < page.stdout.index("at boot") < page.stdout.index("credentials")


def test_a_card_that_is_read_only_from_the_start_delays_no_alert(tmp_path, models):
    (home := tmp_path / "home").mkdir()
    with read_only(home / "images"), read_only(home / "videos"), Guard(home, models) as guard:
        guard.wait_for_alert()
        guard.daemon.wait_for_log("images/: Read-only file system: see `dmesg`")
        guard.daemon.wait_for_log("videos/: Read-only file system: see `dmesg`")
        guard.end()


def remove(folder: Path) -> None:
    """The daemon may remove a file in it at the same moment."""

    def failed(function: object, path: str, caught: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(caught[1], FileNotFoundError):
            raise caught[1]

    shutil.rmtree(folder, onerror=failed)


def test_folders_that_are_removed_in_mid_run_delay_no_alert_and_are_made_again(tmp_path, models):
    with Guard(tmp_path / "home", models) as guard:
        guard.wait_for_alert()
        for name in ("images", "videos"):
            remove(guard.folder / name)
        guard.wait_for_alert()
        guard.wait_for_clip()
        assert {"images", "videos"} <= {path.name for path in guard.folder.iterdir()}
        guard.end()


def test_a_disk_that_is_not_mounted_delays_no_alert_and_is_taken_when_it_is(tmp_path, models):
    """Both folders are links to a USB disk, which is plugged in late, then out and in again."""
    (home := tmp_path / "home").mkdir()
    usb, unplugged = tmp_path / "usb", tmp_path / "unplugged"
    unplugged.mkdir()
    for name in ("images", "videos"):
        (unplugged / name).mkdir()
        (home / name).symlink_to(usb / name)
    with Guard(home, models) as guard:
        for number in (1, 2):
            guard.wait_for_alert()
            for name in ("images", "videos"):
                link = f"{name}/: it is a link to {usb}/{name}, which is not there: mount that disk"
                assert len(guard.daemon.wait_for_log(link, count=number)) == number, "told more than once"
            unplugged.rename(usb)
            guard.daemon.wait_for_log("videos/ works again", count=number)
            guard.wait_for_clip()
            usb.rename(unplugged)
        guard.end()


def test_folders_of_another_user_are_told_with_the_command_that_helps(tmp_path, models):
    """Once tried with sudo, then run by cron: here by a root without the right to look into others' folders."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    (home := tmp_path / "home").mkdir()
    folders = [home / "images", home / "videos"]
    for folder in folders:
        folder.mkdir(mode=0o700)
        os.chown(folder, 1, 1)
    lacks = "-dac_override,-dac_read_search,-fowner"
    with Guard(home, models, prefix=("setpriv", f"--bounding-set={lacks}", f"--inh-caps={lacks}", "--")) as guard:
        guard.wait_for_alert()
        for folder in folders:
            guard.daemon.wait_for_log(f"{folder.name}/: Permission denied: sudo chown -R root {folder};")
            os.chown(folder, 0, 0)  # the owner has done it
        guard.daemon.wait_for_log("images/ works again")
        guard.wait_for_clip()
        guard.end()


def test_a_disk_that_is_mounted_over_videos_in_mid_event_hides_no_clip(tmp_path, models):
    with Guard(tmp_path / "home", models) as guard:
        event = guard.daemon.wait_for_log(r"event (\d+):.* clip begun")[0]
        with small_disk(guard.folder / "videos", "20m"):
            guard.daemon.wait_for_log(rf"video {event}-\S+: uploaded")
            guard.wait_for_clip()
            guard.end()
        clips = guard.s3.objects("guardianberry.videos")
    (clip,) = [stored for stored in clips if "/" not in stored.key and stored.metadata["recording_start_time"] == event]
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.body)
    assert decode(path)[0] > 15


def test_two_images_with_the_largest_time_do_not_stop_the_start(tmp_path, models):
    """Name arithmetic never raises: there is no free name after 999999999999999."""
    (videos := tmp_path / "home" / "videos").mkdir(parents=True)
    last = VideoName(10**15 - 1, 5, 1, 50, 10, 640, 480)
    for name in (last.encode(), f".held-00000000-5-{last.encode()}"):
        (videos / name).write_bytes(b"no video")
    with Guard(tmp_path / "home", models) as guard:
        guard.daemon.wait_for_log("clock: .* is now 0-5-1-50-10-640-480.mp4")
        guard.wait_for_alert()
        guard.end()


# One daemon through many faults: at the end of the file, so that it runs no longer than these tests


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory, models: Path, library: Path) -> Iterator[Guard]:
    folder = tmp_path_factory.mktemp("guard") / "home"
    env = {"LD_PRELOAD": str(library), "FAULTY_DISK": str(folder.parent / "fault")}
    with Guard(folder, models, env=env) as guard:
        yield guard
        guard.end()


FAULTS = [  # what is told of the others: test_each_fault_has_its_advice
    ("slow", "images", None),
    ("hang", "images", None),
    ("hang", "videos", None),
    (errno.EIO, "images", "Input/output error: see `dmesg`; check the cable"),
    (errno.EIO, "videos", "Input/output error: see `dmesg`; check the cable"),
    (errno.EROFS, "videos", "Read-only file system: see `dmesg`"),
    (errno.ENOSPC, "images", "No space left on device: free some space"),
]


@pytest.mark.parametrize(("fault", "folder", "told"), FAULTS, ids=[f"{fault} {name}" for fault, name, _ in FAULTS])
def test_a_disk_that_fails_in_mid_run_delays_no_alert_and_is_taken_again(guard, fault, folder, told):
    control = guard.folder.parent / "fault"
    before = len(guard.daemon.log)
    control.write_text(f"{fault} {folder}", encoding="ascii")
    guard.wait_for_alert()
    if told is not None and folder == "videos":
        guard.daemon.wait_until(lambda: f" {folder}/: " in guard.daemon.log[before:], "nothing is said of the disk")
    control.unlink()
    # An image that S3 has before the disk is asked is never written, so that the fault may go unseen.
    if told is not None and f" {folder}/: " in guard.daemon.log[before:]:
        guard.daemon.wait_until(lambda: f"{folder}/ works again" in guard.daemon.log[before:], "it does not recover")
        lines = [line for line in guard.warnings(guard.daemon.log[before:]) if f" {folder}/: " in line]
        assert len(lines) == 1, "told more than once"
        assert told in lines[0]
    guard.daemon.wait_until(
        lambda: not any("/." in name or name.startswith("images/") for name in guard.daemon.pending()),
        "something is left behind",
        timeout_s=90,
    )
    log = guard.daemon.log[before:]
    assert "LOST" not in log
    assert "Traceback" not in log
    assert ("full to the last byte" in log) <= (fault == errno.ENOSPC), "the reserve was used for another fault"
