"""launch.sh: started from anywhere, under cron's environment, restarts what died and not what was asked to stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import ROOT, launch_stamp

# Stands in for the daemon: notes how it was called, then does what the file `plan` says, a line a start.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
with (here / "starts").open("a") as starts:
    print(os.getpid(), os.getcwd(), os.environ.get("PATH"), *sys.argv[1:], file=starts)
lines = (here / "plan").read_text().splitlines()
started = len((here / "starts").read_text().splitlines())
what = lines[min(started, len(lines)) - 1]
if what == "run":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        time.sleep(0.05)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(what))
"""


class Launcher:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "launch.sh", folder)
        (folder / "detect_and_upload.py").write_text(PROGRAM, encoding="utf-8")
        self.require(b"# nothing\n")
        self.process: subprocess.Popen[bytes] | None = None

    def require(self, content: bytes) -> None:
        for name in ("requirements.txt", "requirements-aarch64.txt"):
            (self.folder / name).write_bytes(content)

    def make_env(self) -> None:
        """As a finished set-up leaves it."""
        (self.folder / "env/bin").mkdir(parents=True)
        (self.folder / "env/bin/python").symlink_to(sys.executable)
        launch_stamp(self.folder).touch()

    def plan(self, *what: str) -> None:
        (self.folder / "plan").write_text("\n".join(what), encoding="utf-8")

    def start(self, *arguments: str, **settings) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            # Tests that run in the background may have SIGINT ignored, and a shell cannot trap what it began with so.
            self.process = subprocess.Popen(
                ["/usr/bin/env", "--default-signal=INT", str(self.folder / "launch.sh"), *arguments],
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "HOME": "/"},
                stdout=log,
                stderr=log,
                **settings,
            )
        return self.process

    def starts(self, count: int, timeout_s: float = 20) -> list[list[str]]:
        """The starts of the program, once there are so many."""
        give_up_s = time.monotonic() + timeout_s
        while True:
            path = self.folder / "starts"
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            if len(lines) >= count:
                return [line.split() for line in lines]
            assert time.monotonic() < give_up_s, (self.folder / "log").read_text(encoding="utf-8")
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    if launcher.process and launcher.process.poll() is None:
        launcher.process.terminate()
        launcher.process.wait(10)


def test_it_finds_its_folder_and_hands_on_arguments(launcher):
    launcher.make_env()
    launcher.plan("0")
    assert launcher.start("-v").wait(20) == 0
    ((_, cwd, path, *arguments),) = launcher.starts(1)
    assert (cwd, path, arguments) == (str(launcher.folder), "/usr/bin:/bin", ["-v"])


def test_a_link_to_it_finds_the_folder_too(launcher, tmp_path):
    launcher.make_env()
    launcher.plan("0")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(launcher.folder / "launch.sh")
    assert subprocess.run([str(tmp_path / "elsewhere/link")], cwd="/", check=False, timeout=20).returncode == 0
    assert launcher.starts(1)[0][1] == str(launcher.folder)


def test_what_died_is_started_again_with_growing_pauses(launcher):
    launcher.make_env()
    launcher.plan("1", "killed", "run")
    launcher.start()
    launcher.starts(3)
    assert "code 1; starting it again in 2 s" in launcher.log
    assert "code 137; starting it again in 4 s" in launcher.log


@pytest.mark.parametrize("code", [0, 2])
def test_an_end_that_was_meant_is_the_end(launcher, code):
    """0: asked to stop; 2: only an edit of the constants helps."""
    launcher.make_env()
    launcher.plan(str(code))
    assert launcher.start().wait(20) == code
    assert len(launcher.starts(1)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_daemon_and_itself(launcher, number):
    launcher.make_env()
    launcher.plan("run")
    process = launcher.start()
    pid = int(launcher.starts(1)[0][0])
    time.sleep(0.3)  # the program has its handler
    process.send_signal(number)
    assert process.wait(10) == 0
    assert not Path(f"/proc/{pid}").exists()
    assert len(launcher.starts(1)) == 1


def test_a_signal_during_a_pause_ends_it_at_once(launcher):
    launcher.make_env()
    launcher.plan("1")
    process = launcher.start()
    launcher.starts(2)  # now a pause of 4 s
    time.sleep(0.3)
    process.terminate()
    process.wait(2)


@pytest.mark.parametrize("option", ["--check", "--demo"])
def test_what_ends_by_itself_is_not_watched_over(launcher, option):
    launcher.make_env()
    launcher.plan("1")
    assert launcher.start(option, "x").wait(20) == 1
    assert len(launcher.starts(1)) == 1


def test_a_relative_path_of_a_video_begins_where_the_caller_is(launcher, tmp_path):
    launcher.make_env()
    launcher.plan("0")
    (tmp_path / "home").mkdir()
    command = [str(launcher.folder / "launch.sh"), "--demo", "my.mp4"]
    assert subprocess.run(command, cwd=tmp_path / "home", check=False, timeout=20).returncode == 0
    ((_, cwd, _, *arguments),) = launcher.starts(1)
    assert (cwd, arguments) == (str(tmp_path / "home"), ["--demo", "my.mp4"])


def test_a_signal_during_the_set_up_starts_nothing_afterwards(launcher):
    launcher.plan("run")
    process = launcher.start()
    give_up_s = time.monotonic() + 20
    while "setting up" not in launcher.log:
        assert time.monotonic() < give_up_s, launcher.log
        time.sleep(0.02)
    process.terminate()
    assert process.wait(120) == 0
    assert not (launcher.folder / "starts").exists()
    assert launch_stamp(launcher.folder).exists(), "the set-up in hand was not finished"


def test_an_update_taken_back_is_set_up_anew(launcher):
    """The packages in env/ are the update's, whatever older stamps say."""
    launcher.plan("0")
    for number, content in enumerate((b"# first\n", b"# an update\n", b"# first\n"), start=1):
        launcher.require(content)
        assert launcher.start().wait(120) == 0
        assert launcher.log.count("setting up") == number


def test_a_set_up_that_fails_is_tried_again_but_not_while_somebody_waits(launcher):
    (launcher.folder / "env").symlink_to("/nowhere/that/exists")
    assert launcher.start("--demo").wait(20) == 1
    assert "trying again" not in launcher.log
    process = launcher.start()
    try:
        give_up_s = time.monotonic() + 20
        while "trying again in 2 s" not in launcher.log:
            assert time.monotonic() < give_up_s, launcher.log
            time.sleep(0.05)
    finally:
        process.terminate()
    assert process.wait(5) == 0


def test_the_first_run_makes_env_and_an_interrupted_one_is_made_anew(launcher):
    launcher.plan("0")
    (launcher.folder / "env/bin").mkdir(parents=True)  # a power cut in the middle of the set-up
    assert launcher.start().wait(120) == 0
    assert "setting up" in launcher.log
    python = launcher.starts(1)
    assert python
    assert launcher.start().wait(20) == 0
    assert launcher.log.count("setting up") == 1


def test_under_the_real_cron(launcher):
    """@reboot, in namespaces of its own: neither this machine's crontabs nor its processes are touched."""
    if os.geteuid() != 0 or not shutil.which("cron") or not shutil.which("unshare"):
        pytest.skip("needs root, cron and unshare")
    launcher.make_env()
    launcher.plan("run")
    log = launcher.folder / "cron.log"
    script = f"""
        mount -t tmpfs none /run && mount -t tmpfs none /etc/cron.d && mount -t tmpfs none /var/spool/cron || exit 77
        mkdir -m 1730 /var/spool/cron/crontabs
        echo '@reboot {launcher.folder}/launch.sh -v >> {log} 2>&1' | crontab - || exit 77
        exec cron -f
    """
    cron = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", script],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stderr=subprocess.PIPE,
    )
    try:
        time.sleep(0.5)
        if cron.poll() == 77:
            pytest.skip(f"cannot set cron up here: {cron.stderr.read()!r}")
        ((_, cwd, path, *arguments),) = launcher.starts(1)
        assert (cwd, path, arguments) == (str(launcher.folder), "/usr/bin:/bin", ["-v"])
    finally:
        cron.kill()
        cron.wait(10)
