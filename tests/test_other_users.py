"""What another user of this machine can do to the daemon's start: plant a library or byte code, hold the lock."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from guardianberry.camera.other_users import running_cameras
from guardianberry.doctor.permissions import check_permissions
from guardianberry.machine import AlreadyRunningError, is_locked, lock_folder
from tests.daemon import ROOT, SCENE, STAND_IN_PATH, Daemon, install, install_models
from tests.s3_server import S3Server
from tests.test_clip import NAME, open_clip

ANOTHER_USER = 65534
AS_ANOTHER_USER = ("setpriv", f"--reuid={ANOTHER_USER}", f"--regid={ANOTHER_USER}", "--clear-groups", "--")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("flock"),
    reason="needs root and the commands setpriv and flock (package util-linux)",
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others can enter; pytest's own are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_no_child_loads_a_library_from_the_folder_that_the_daemon_was_called_from(tmp_path, open_folder):
    """`import cv2` puts an empty entry, the current folder, into LD_LIBRARY_PATH."""
    for name in ("libcap-ng.so.0", "libc.so.6", "libm.so.6", "libdl.so.2"):
        (open_folder / name).write_text("not a library: whoever loads it fails")
    script = install(tmp_path / "program", CLOCK_WAIT_S=0)
    (tmp_path / "program/models").symlink_to(install_models(tmp_path / "models"))
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=open_folder,
            env={"PATH": STAND_IN_PATH, "HOME": str(tmp_path), "STAND_IN_VIDEO": str(SCENE)},
            stderr=output,
        )
        try:
            give_up_s = time.monotonic() + 90
            while "camera: " not in log.read_text():
                assert time.monotonic() < give_up_s, log.read_text()
                assert daemon.poll() is None, log.read_text()
                time.sleep(0.1)
            limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        finally:
            daemon.kill()
            daemon.wait()
    assert "camera: video from" in log.read_text()
    assert re.search(r"Max core file size +0 +0 ", limits), "a core dump would hold the secret key"


def test_byte_code_is_for_its_owner_alone_whatever_the_umask(tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "guardianberry", folder / "guardianberry", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "detect_and_upload.py", folder)
    command = ["sh", "-c", f"umask 000; exec '{sys.executable}' '{folder}/detect_and_upload.py' --help"]
    subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.DEVNULL, timeout=60)
    written = [path for name in folder.rglob("__pycache__") for path in (name, *name.iterdir())]
    assert written
    assert not [path for path in written if path.stat().st_mode & 0o077]


@needs_root
def test_no_pipe_keeps_it_from_starting_where_a_library_looks_for_its_settings(tmp_path, models):
    """The GnuTLS in PyAV's wheels looks in /tmp/vendor: in the daemon, in its child and in the demo's camera."""
    Path("/tmp/vendor").mkdir(exist_ok=True)
    plant = "mkdir -p /tmp/vendor/etc/gnutls && mkfifo /tmp/vendor/etc/gnutls/config"
    in_private = f"mount -t tmpfs -o mode=777 none /tmp/vendor && {' '.join(AS_ANOTHER_USER)} sh -c '{plant}'"
    prefix = ("unshare", "--mount", "--", "sh", "-c", f'{in_private} && exec "$@"', "sh")
    hangs = [*prefix, "timeout", "5", sys.executable, "-c", "import av"]
    assert subprocess.run(hangs, env={"PATH": os.defpath}, check=False).returncode == 124, "the attack does not work"
    (tmp_path / "videos").mkdir()
    open_clip(tmp_path / "videos", ".open-" + NAME.encode())
    env = {"STAND_IN_VIDEO": str(SCENE)}
    with Daemon(tmp_path, models, env=env, prefix=prefix, CLOCK_WAIT_S=0) as daemon:
        daemon.wait_for_log("camera: video from")
        daemon.wait_for_log("clip: finished")


@needs_root
def test_of_another_users_processes_the_arguments_are_not_read(open_folder, monkeypatch):
    """Some hundreds with megabytes of them would stop the loop for a minute, and then its watchdog ends the daemon."""
    read, cmdline = [], psutil.Process.cmdline
    monkeypatch.setattr(psutil.Process, "cmdline", lambda process: read.append(process.pid) or cmdline(process))
    program = open_folder / "rpicam-vid-with-a-name-that-the-kernel-cuts"
    program.symlink_to(shutil.which("sleep"))
    names = [str(program), "sleep"]
    others = [subprocess.Popen([*AS_ANOTHER_USER, name, "60"]) for name in names]
    try:
        give_up_s = time.monotonic() + 20
        while any(psutil.Process(other.pid).name() == "setpriv" for other in others):
            assert time.monotonic() < give_up_s
            time.sleep(0.05)
        read.clear()
        running_cameras()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert os.getpid() in read, "nothing was looked at"
    assert not {other.pid for other in others} & set(read)


@needs_root
def test_a_system_without_a_thread_left_costs_neither_the_guard_nor_the_alert(tmp_path, models):
    """Another user's processes can take them all: those that cron starts share one limit."""
    names = {"IMAGES_BUCKET": "images", "VIDEOS_BUCKET": "videos"}
    user = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")  # who may read and write as root may
    capable = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--")
    with S3Server() as s3:
        s3.create_bucket(*names.values())
        env = s3.environment() | {"STAND_IN_VIDEO": str(SCENE)}
        with Daemon(tmp_path, models, env=env, prefix=(*user, *capable), CLOCK_WAIT_S=0, **names) as daemon:
            daemon.wait_for_log("camera: video from")
            limit = [*user, "--", "prlimit", f"--pid={daemon.process.pid}"]
            subprocess.run([*limit, "--nproc=1:"], check=True)
            daemon.wait_for_log(r"event \d+: .* clip NOT BEGUN")
            assert not s3.keys("images"), "threads could be started"
            subprocess.run([*limit, "--nproc=1000:"], check=True)
            daemon.wait_for_log(r"image \S+: uploaded")
            assert daemon.terminate()[0] == 0


@needs_root
def test_another_user_cannot_hold_the_lock(open_folder):
    os.close(lock_folder(open_folder))
    places = [open_folder, *open_folder.iterdir()]
    holders = [
        subprocess.Popen([*AS_ANOTHER_USER, "flock", "-n", str(place), "sleep", "60"], stderr=subprocess.DEVNULL)
        for place in places
    ]
    try:
        time.sleep(0.5)
        assert holders[0].poll() is None, "the attack does not work: the folder can be locked"
        assert not is_locked(open_folder)
        os.close(lock_folder(open_folder))
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def test_the_lock_is_closed_to_others_and_found_where_it_is_held(tmp_path):
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir()), "asking leaves nothing behind"
    old = os.umask(0)
    try:
        lock = lock_folder(tmp_path)
    finally:
        os.umask(old)
    assert is_locked(tmp_path)
    with pytest.raises(AlreadyRunningError):
        lock_folder(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    os.close(lock)
    assert not is_locked(tmp_path)


@needs_root
def test_a_lock_made_with_sudo_does_not_lock_the_owner_out(open_folder):
    os.chown(open_folder, ANOTHER_USER, ANOTHER_USER)
    os.close(lock_folder(open_folder))
    (lock,) = open_folder.iterdir()
    subprocess.run([*AS_ANOTHER_USER, "flock", "-n", str(lock), "true"], check=True)


def test_a_folder_that_takes_no_lock_file_is_locked_itself(tmp_path, caplog):
    """A read-only card, say; here something else has the name."""
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    lock = lock_folder(tmp_path)
    assert is_locked(tmp_path)
    assert ".lock cannot be opened" in caplog.text
    assert not (tmp_path / "elsewhere").exists(), "a link is not followed"
    os.close(lock)


# --check


@pytest.fixture
def program(open_folder: Path) -> Path:
    for name in ("program/guardianberry/__pycache__", "program/models", "program/env/lib", "program/videos"):
        (open_folder / name).mkdir(parents=True)
    for name in ("detect_and_upload.py", "guardianberry/__pycache__/logs.pyc", "models/a.xml", "env/lib/cv2.so"):
        (open_folder / "program" / name).touch()
    for path in open_folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return open_folder / "program"


def test_a_program_that_nobody_else_can_change(program):
    (program / "videos").chmod(0o777)  # holds no code, and is closed at the start
    assert [finding.level for finding in check_permissions(program, program / "env")] == ["ok"]


@pytest.mark.parametrize(
    "name",
    ["..", ".", "detect_and_upload.py", "guardianberry/__pycache__", "models", "models/a.xml", "env/lib/cv2.so"],
)
def test_a_program_that_others_can_change_is_a_failure(program, name):
    path = Path(os.path.normpath(program / name))
    path.chmod(path.stat().st_mode | 0o022)
    (finding,) = check_permissions(program, program / "env")
    assert finding.level == "FAIL"
    assert f"sudo chmod go-w {path}" in finding.advice.splitlines()


@pytest.mark.parametrize("name", [".aws", ".aws/config"])
def test_a_configuration_that_others_can_change_is_a_failure(program, monkeypatch, name):
    """boto3 runs the program that it calls credential_process."""
    home = program.parent / "home"
    (home / ".aws").mkdir(mode=0o755, parents=True)
    (home / ".aws/config").touch(0o644)
    monkeypatch.setenv("HOME", str(home))
    assert [finding.level for finding in check_permissions(program, program / "env")] == ["ok"]
    (home / name).chmod((home / name).stat().st_mode | 0o022)
    (finding,) = check_permissions(program, program / "env")
    assert finding.level == "FAIL"
    assert f"sudo chmod go-w {home / name}" in finding.advice.splitlines()


@needs_root
def test_the_commands_close_all_that_others_can_change(program, monkeypatch):
    """Of 3,150 files in env/, three were named."""
    program = program.rename(program.with_name("my program"))
    home = program.parent / "home"
    (home / ".aws").mkdir(parents=True)
    home.chmod(0o755)
    (home / ".aws").chmod(0o757)
    monkeypatch.setenv("HOME", str(home))
    for number in range(20):
        path = program / f"env/lib/{number}.so"
        path.touch()
        path.chmod(0o646)
        os.chown(path, ANOTHER_USER, ANOTHER_USER)
    (finding,) = check_permissions(program, program / "env")
    commands = finding.advice.splitlines()[1:]
    assert commands == [
        f"sudo chmod go-w {home}/.aws",
        f"sudo chown -R 0 '{program}/env/lib'",
        f"sudo chmod -R go-w '{program}/env/lib'",
    ]
    subprocess.run(["sh", "-c", "\n".join(commands).replace("sudo ", "")], check=True)
    assert [finding.level for finding in check_permissions(program, program / "env")] == ["ok"]


@needs_root
def test_what_belongs_to_another_user_is_a_failure(program):
    os.chown(program / "models/a.xml", ANOTHER_USER, ANOTHER_USER)
    (finding,) = check_permissions(program, program / "env")
    assert finding.level == "FAIL"
    assert f"sudo chown 0 {program}/models/a.xml" in finding.advice


@needs_root
@pytest.mark.parametrize("name", ["env/bin/python", "guardianberry/armed.py"])
def test_what_a_link_in_the_program_leads_to_counts(program, name):
    (program / name).parent.mkdir(exist_ok=True)
    theirs = program.parent / "theirs"
    theirs.touch()
    os.chown(theirs, ANOTHER_USER, ANOTHER_USER)
    (program / name).symlink_to(theirs)
    (finding,) = check_permissions(program, program / "env")
    assert finding.level == "FAIL"
    assert f"sudo chown 0 {theirs}" in finding.advice


def test_a_closed_folder_protects_what_is_in_it(program):
    (program / "env/lib/cv2.so").chmod(0o666)
    (program / "env").chmod(0o700)
    assert [finding.level for finding in check_permissions(program, program / "env")] == ["ok"]
