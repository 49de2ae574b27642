"""A loop that hangs in native code: ended with a stack dump, started again by launch.sh, the clip kept, no orphan."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.footage import cameras_in, own_camera, write_footage
from tests.daemon import ROOT, SMALL_INPUT, Daemon, launch_stamp
from tests.h264 import decode
from tests.s3_server import environment

SETTINGS = {
    "MAX_RECORDING_DURATION_S": 20,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 20,
    "CLOCK_WAIT_S": 0,
    "LOOP_STALL_S": 10,  # the least that check_constants allows
    **SMALL_INPUT,
}
# libc's sleep through PyDLL keeps the GIL, as a hang inside a C library would: no Python code runs in any thread.
FRAME_SEEN = "        last_number = frame.number\n"
HANG = """        if (HERE / "hang").exists():
            (HERE / "hang").unlink()
            import ctypes; ctypes.PyDLL(None).sleep(3600)
"""


class Launched(Daemon):
    """The daemon under its launch.sh, as cron starts it."""

    def __init__(self, folder: Path, models: Path, **settings) -> None:
        super().__init__(folder, models, **settings)
        shutil.copy(ROOT / "launch.sh", folder)
        for name in ("requirements.txt", "requirements-aarch64.txt"):
            (folder / name).write_text("# nothing\n", encoding="utf-8")
        python = folder / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
        python.chmod(0o755)
        launch_stamp(folder).touch()
        self._command = [str(folder / "launch.sh")]

    def insert(self, after: str, code: str) -> None:
        script = self.script.read_text(encoding="utf-8")
        assert script.count(after) == 1, f"{after!r} is not once in the script"
        self.script.write_text(script.replace(after, after + code), encoding="utf-8")

    def daemons(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if "sleep" not in child.name()]


@pytest.fixture
def launched(tmp_path: Path, models: Path) -> Iterator[Launched]:
    write_footage(tmp_path / "footage.h264")
    env = environment("http://127.0.0.1:9") | own_camera(tmp_path / "bin")
    env |= {"STAND_IN_H264": str(tmp_path / "footage.h264")}
    launched = Launched(tmp_path, models, env=env, **SETTINGS)
    yield launched
    if launched.process and launched.process.poll() is None:
        launched.process.terminate()
        try:
            launched.process.wait(15)
        except subprocess.TimeoutExpired:
            for daemon in launched.daemons():
                daemon.kill()
            launched.kill()
    for camera in cameras_in(tmp_path / "bin"):
        camera.kill()


@pytest.mark.slow
def test_a_loop_that_hangs_in_native_code_is_ended_with_a_stack_dump_and_started_again(launched: Launched) -> None:
    launched.insert(FRAME_SEEN, HANG)
    launched.start()
    launched.wait_for_log(r"event (\d+)", timeout_s=90)
    time.sleep(2)
    (launched.folder / "hang").touch()
    asked_s = time.monotonic()
    launched.wait_until(lambda: not (launched.folder / "hang").exists(), "it does not hang")
    (first,) = launched.daemons()
    cameras = list(cameras_in(launched.folder / "bin"))
    assert len(cameras) == 1

    launched.wait_for_log(r"the daemon ended with code 1; starting it again in 2 s")
    took_s = time.monotonic() - asked_s
    assert SETTINGS["LOOP_STALL_S"] - 1 <= took_s
    print(f"ended {took_s:.1f} s after it began to hang")
    assert "Timeout (0:00:10)!" in launched.log
    dump = launched.log.partition("Timeout (0:00:10)!")[2]
    assert re.search(r'File ".*detect_and_upload.py", line \d+ in run\n', dump), "the stack does not tell where"
    assert dump.count("Thread 0x") >= 3, "the other threads' stacks are missing"
    assert not first.is_running()
    assert all(not camera.is_running() or camera.status() == psutil.STATUS_ZOMBIE for camera in cameras), "an orphan"

    launched.wait_for_log("camera: video from", count=2)
    (kept,) = launched.wait_for_log(r"clip: finished (\S+\.mp4) \([\d.]+ s\), which an earlier run left open")
    frames, duration_s, _ = decode(launched.folder / "videos" / kept)
    assert frames >= 15
    assert duration_s >= 2
    launched.wait_for_log(r"event (\d+)", count=2)
    assert [daemon.pid for daemon in launched.daemons()] != [first.pid]
