"""A camera that dies, hangs, babbles, changes or is gone, under the real daemon: the clip is kept, video comes back.

One daemon goes through all of it. Each case waits until an event is being recorded, breaks the camera, and holds the
daemon to its promise: video again within STALL_S + 5 s of the camera's coming back, the clip closed and kept,
one line a cause, no zombie. What a busy test machine adds to the start of the stand-in camera is not counted.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from bench.offline import SCENE, encode
from guardianberry.camera.supervisor import STALL_S
from guardianberry.filenames import VideoName, parse
from guardianberry.recording.mp4 import Mp4Writer
from tests.daemon import ROOT, SMALL_INPUT, Daemon
from tests.h264 import Unit, decode
from tests.s3_server import environment

LIMIT_S = STALL_S + 5
ORDINARY_START_S = 1.0  # of the stand-in camera, from its launch to its first picture
LONGEST_PAUSE_S = 4.0  # between two tries
EVENTS = {
    "MAX_RECORDING_DURATION_S": 4,
    "PRE_ROLL_S": 1,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 4,
    "CLOCK_WAIT_S": 0,
    "LOOP_STALL_S": 10,  # the least: no camera fault may hold the loop up so long that its watchdog ends the daemon
    **SMALL_INPUT,
}
NO_S3 = "http://127.0.0.1:9"
CAMERA_LOST = "no more video from the camera"
TIME_OVER = "the clip has its full length"  # 4 s after it began: before a hang is noticed
WAIT_S = 60  # for what must happen; only a failing test waits so long

# Notes each launch: pid and uptime.
CAMERA = """#!/bin/sh
case "$*" in
    *--help*|*--list-cameras*) ;;
    *) read -r uptime _ < /proc/uptime && echo "$$ $uptime" >> "{folder}/launches" ;;
esac
exec "{python}" "{folder}/bin/stand-in" "$@"
"""


def write_video(path: Path) -> Path:
    """Six seconds of the scene that always show a person."""
    mp4 = Mp4Writer(path, width=640, height=480, frame_rate_fps=10)
    for number, data in enumerate(itertools.islice(encode(SCENE, frame_rate_fps=10), 60, 120)):
        mp4.write(Unit(number / 10, number % 10 == 0, data, 640, 480))
    mp4.close()
    return path


class Guard:
    """The daemon, and a camera that can be broken while it runs."""

    def __init__(self, folder: Path, models: Path, *, start: bool = True, **settings) -> None:
        self.folder = folder
        self.control = folder / "control"
        self.program = folder / "bin" / "rpicam-vid"
        self.program.parent.mkdir(parents=True)
        (folder / "bin" / "stand-in").symlink_to(ROOT / "demo" / "rpicam-vid")
        self.program.write_text(CAMERA.format(folder=folder, python=sys.executable), encoding="utf-8")
        self.program.chmod(0o755)
        env = environment(NO_S3) | {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "STAND_IN_VIDEO": str(write_video(folder / "person.mp4")),
            "STAND_IN_LOG": str(folder / "camera.jsonl"),
            "STAND_IN_CONTROL": str(self.control),
        }
        self.daemon = Daemon(folder, models, env=env, **EVENTS, **settings)
        if start:
            self.daemon.start()
        self._log_start = 0

    @property
    def log(self) -> str:
        """What was logged since the last case began."""
        return self.daemon.log[self._log_start :]

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        self.daemon.wait_until(condition, what, timeout_s=timeout_s)

    def until_logged(self, pattern: str) -> float:
        """When it was logged, on the monotonic clock."""
        line = rf"(?m)^(\S+ \S+) .*{pattern}"
        self.until(lambda: re.search(line, self.log), f"no {pattern!r} in this case's log")
        stamp = re.search(line, self.log)[1]
        logged_s = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
        return logged_s - time.time() + time.monotonic()

    def until_recording(self) -> str:
        """Begin a case: wait for an event that has just begun; its event id."""
        started = len(re.findall(r"event \d+", self.daemon.log))
        self.until(lambda: len(re.findall(r"event \d+", self.daemon.log)) > started, "no event")
        self._log_start = len(self.daemon.log)
        return re.findall(r"event (\d+)", self.daemon.log)[-1]

    def launches(self) -> list[tuple[int, float]]:
        """Pid and monotonic time of each launch."""
        uptime_ahead_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        lines = (self.folder / "launches").read_text(encoding="utf-8").split("\n")[:-1]
        return [(int(line.split()[0]), float(line.split()[1]) - uptime_ahead_s) for line in lines]

    def frames(self) -> list[dict]:
        lines = (self.folder / "camera.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return [entry for entry in map(json.loads, lines) if "number" in entry]

    def first_frame_s(self, *, before_s: float) -> float:
        """Of the camera that sent frames just before then."""
        sent = [entry for entry in self.frames() if entry["monotonic_s"] < before_s]
        return next(entry["monotonic_s"] for entry in sent if entry["pid"] == sent[-1]["pid"])

    def slow_start_s(self) -> float:
        """What the last launch took longer than on a quiet machine."""
        pid, launched_s = self.launches()[-1]
        first = next(entry["monotonic_s"] for entry in self.frames() if entry["pid"] == pid)
        return max(0.0, first - launched_s - ORDINARY_START_S)

    def clip(self, event_id: str) -> tuple[Path, VideoName]:
        """The finished clip of an event."""
        videos = self.folder / "videos"
        self.until(lambda: list(videos.glob(f"{event_id}-*.mp4")), f"the clip of event {event_id} is not closed")
        (path,) = videos.glob(f"{event_id}-*.mp4")
        name = parse(path.name)
        assert isinstance(name, VideoName)
        return path, name

    def warnings(self) -> list[str]:
        return re.findall(r"WARNING +camera: (.*)", self.log)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.daemon.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def guard(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    guard = Guard(tmp_path_factory.mktemp("guard"), models)
    with guard.daemon:
        yield guard


def hold_to_the_promise(
    guard: Guard, event_id: str, *, broken_s: float, back_s: float, stopped: str = CAMERA_LOST
) -> None:
    """Video is back, the clip was kept, nothing is left behind, the count is right."""
    recovered_s = guard.until_logged(r"camera is back: video from .*, relaunch \d+")
    took_s = recovered_s - back_s - guard.slow_start_s()
    print(f"back {took_s:.1f} s after the camera ({recovered_s - back_s:.1f} s with the start of the stand-in)")
    assert took_s <= LIMIT_S
    assert re.findall(r"relaunch (\d+)", guard.log)[-1] == str(len(guard.launches()) - 1)
    (camera,) = guard.children()
    assert camera.pid == guard.launches()[-1][0]
    assert camera.status() != psutil.STATUS_ZOMBIE

    path, name = guard.clip(event_id)
    frames, duration_s, first_is_key = decode(path)
    assert first_is_key
    assert name.duration == round(duration_s)
    began_s = int(event_id) - time.time() + time.monotonic() - EVENTS["PRE_ROLL_S"]
    began_s = max(began_s, guard.first_frame_s(before_s=broken_s))
    assert duration_s >= broken_s - began_s - 1.5, "video from before the fault is missing"  # the event id is rounded
    assert frames >= 1
    assert f"recording stopped: {stopped}" in guard.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "warning", "stopped"),
    [
        ("dies:-11", r"rpicam-vid died with signal SIGSEGV", CAMERA_LOST),
        ("half:7", r"rpicam-vid died with code 7", CAMERA_LOST),
        ("hangs", r"stalled: no byte for [56]\.\d s", TIME_OVER),
        ("garbage:30", r"no picture in the data of [56]\.\d s", TIME_OVER),
        (
            "resolution:320x240",
            r"rpicam-vid .* ended \(the picture size changed from 640x480 to 320x240\)",
            CAMERA_LOST,
        ),
    ],
)
def test_a_broken_camera_is_replaced_and_the_clip_kept(guard: Guard, fault: str, warning: str, stopped: str) -> None:
    event_id = guard.until_recording()
    guard.control.write_text(fault)
    broken_s = time.monotonic()
    hold_to_the_promise(guard, event_id, broken_s=broken_s, back_s=broken_s, stopped=stopped)
    (said,) = guard.warnings()
    assert re.match(warning, said)


@pytest.mark.slow
def test_an_unplugged_camera_is_tried_for_with_longer_pauses_and_said_once(guard: Guard) -> None:
    event_id = guard.until_recording()
    guard.control.write_text("unplugged")
    broken_s = time.monotonic()
    guard.until_logged("no camera found")
    time.sleep(2 * LONGEST_PAUSE_S)
    guard.control.write_text("ok")
    back_s = time.monotonic()
    hold_to_the_promise(guard, event_id, broken_s=broken_s, back_s=back_s, stopped=TIME_OVER)
    assert len([said for said in guard.warnings() if "no camera found" in said]) == 1
    tries_s = [at_s for _, at_s in guard.launches() if broken_s < at_s < back_s]
    assert len(tries_s) >= 2, "not tried again"
    pauses_s = [later - earlier for earlier, later in itertools.pairwise(tries_s)]
    assert pauses_s[-1] >= LONGEST_PAUSE_S - 0.2, "the back-off does not grow"
    assert max(pauses_s) <= LONGEST_PAUSE_S + 2, "the back-off grows without end"
    assert min(pauses_s) >= 0.4, "a busy loop"


@pytest.mark.slow
def test_a_camera_that_libcamera_refuses_as_busy_is_waited_for_and_said_once(guard: Guard) -> None:
    event_id = guard.until_recording()
    guard.control.write_text("dies:5,busy")
    broken_s = time.monotonic()
    guard.until_logged("the camera is held by another program")
    guard.until(lambda: len([1 for _, at_s in guard.launches() if at_s > broken_s]) >= 3, "not tried again")
    guard.control.write_text("ok")
    hold_to_the_promise(guard, event_id, broken_s=broken_s, back_s=time.monotonic())
    assert [said.partition(";")[0].partition(" (")[0] for said in guard.warnings()] == [
        "rpicam-vid died with code 5",
        "the camera is held by another program",
    ]


@pytest.mark.slow
def test_a_camera_program_that_is_installed_later_is_found(guard: Guard) -> None:
    event_id = guard.until_recording()
    elsewhere = guard.folder / "not-on-path"
    guard.program.rename(elsewhere)
    guard.control.write_text("dies:3")
    broken_s = time.monotonic()
    guard.until_logged("neither rpicam-vid nor libcamera-vid found on PATH: install rpicam-apps")
    time.sleep(2)
    elsewhere.rename(guard.program)
    hold_to_the_promise(guard, event_id, broken_s=broken_s, back_s=time.monotonic())
    assert len(guard.warnings()) == 2


@pytest.mark.slow
def test_a_killed_daemon_leaves_no_camera_behind_even_a_hung_one(guard: Guard) -> None:
    """The daemon's last case: a hung camera never writes, so the closed pipe would not end it."""
    guard.until_recording()
    (camera,) = guard.children()
    camera.send_signal(signal.SIGSTOP)
    guard.daemon.kill()
    give_up_s = time.monotonic() + 5
    while Path(f"/proc/{camera.pid}").exists() and camera.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > give_up_s:
            os.kill(camera.pid, signal.SIGKILL)
            pytest.fail("the camera is an orphan")
        time.sleep(0.02)


@pytest.mark.slow
def test_video_that_breaks_the_detector_costs_a_camera_restart_and_not_the_daemon(tmp_path: Path, models: Path) -> None:
    guard = Guard(tmp_path, models, start=False)
    text = guard.daemon.script.read_text(encoding="utf-8")
    inference = (
        "            people = finder.find(frame, attentive=recorder.attentive, camera_launches=camera.launches)\n"
    )
    assert inference in text
    breaks = "            if frame.number > 5 and camera.launches == 1:\n                1 / 0\n"
    guard.daemon.script.write_text(text.replace(inference, breaks + inference), encoding="utf-8")
    with guard.daemon:
        guard.until_logged(r"WARNING camera: the video of rpicam-vid \(pid \d+\) cannot be used \(ZeroDivisionError")
        guard.until_logged("camera is back: video from .*, relaunch 1")
        guard.until_recording()
    assert len(guard.warnings()) == 0, "said once, before the event"


@pytest.mark.slow
def test_another_program_that_has_the_camera_is_named_and_waited_for(tmp_path: Path, models: Path) -> None:
    by_hand = subprocess.Popen(
        [str(ROOT / "demo" / "rpicam-vid"), "-n", "-t", "0", "--codec", "h264", "-o", "/dev/null"],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    guard = Guard(tmp_path, models, heeded_pid=by_hand.pid)
    with guard.daemon:
        try:
            guard.until_logged(rf"the camera is used by .*rpicam-vid \(pid {by_hand.pid}\)")
            time.sleep(3)
            assert not (guard.folder / "launches").exists(), "a second program was set on the camera"
        finally:
            by_hand.kill()
            by_hand.wait()
        back_s = time.monotonic()
        took_s = guard.until_logged("camera: video from") - back_s - guard.slow_start_s()
        assert took_s <= LIMIT_S
        assert len(guard.warnings()) == 1
