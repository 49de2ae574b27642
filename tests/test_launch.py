"""launch.sh: started from anywhere, under cron's environment, restarts what died and not what was asked to stop."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pip
import pytest

from tests.daemon import ROOT, launch_stamp

LAUNCHER = (ROOT / "launch.sh").read_text(encoding="utf-8")
needs_unshare = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and the command unshare (package util-linux)"
)

# Stands in for the daemon: notes how it was called, then does what the file `plan` says, a line a start.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with (here / "starts").open("a") as starts:
    print(os.getpid(), os.getcwd(), os.environ.get("PATH"), *sys.argv[1:], file=starts)
lines = (here / "plan").read_text().splitlines()
started = len((here / "starts").read_text().splitlines())
what = lines[min(started, len(lines)) - 1]
print(f"start {started}: {what}", file=sys.stderr, flush=True)
if what == "talk":
    for number in range(100):
        print(f"line {number} " + 90 * "x", file=sys.stderr, flush=True)
    what = "0"
if what == "run":
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
        self.env = {"PATH": "/usr/bin:/bin", "HOME": "/"}
        self.process: subprocess.Popen[bytes] | None = None

    def require(self, content: bytes) -> None:
        for name in ("requirements.txt", "requirements-aarch64.txt"):
            (self.folder / name).write_bytes(content)

    def copy_envs(self, made: Path) -> None:
        """`python3 -m venv` copies `made` instead of computing for seconds; all else is the real python3's."""
        python = self.folder / "bin/python3"
        python.parent.mkdir()
        python.write_text(
            '#!/bin/sh\nif [ "$1 $2" = "-m venv" ]; then\n'
            '    [ "$3" = --clear ] && rm -rf env/*\n'
            f"    mkdir -p env && exec cp -a {made}/. env\n"
            'fi\nexec /usr/bin/python3 "$@"\n'
        )
        python.chmod(0o755)
        self.env["PATH"] = f"{python.parent}:/usr/bin:/bin"

    def make_env(self) -> None:
        """As a finished set-up leaves it."""
        (self.folder / "env/bin").mkdir(parents=True)
        (self.folder / "env/bin/python").symlink_to(sys.executable)
        launch_stamp(self.folder).touch()

    def plan(self, *what: str) -> None:
        (self.folder / "plan").write_text("\n".join(what), encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            # Tests that run in the background may have SIGINT ignored, those under nohup SIGHUP; a shell cannot trap
            # what it began with so.
            self.process = subprocess.Popen(
                ["/usr/bin/env", "--default-signal=INT,HUP", str(self.folder / "launch.sh"), *arguments],
                cwd="/",
                env=self.env,
                stdout=log,
                stderr=log,
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

    def wait_for_log(self, text: str, timeout_s: float = 40) -> None:
        give_up_s = time.monotonic() + timeout_s
        while text not in self.log:
            assert time.monotonic() < give_up_s, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made_env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python3 -m venv` makes. With our own pip: it takes seconds to install one."""
    env = tmp_path_factory.mktemp("made") / "env"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(env)], check=True, timeout=120)
    (packages,) = env.glob("lib/python*/site-packages")
    shutil.copytree(Path(pip.__file__).parent, packages / "pip")
    return env


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


@pytest.mark.parametrize("code", [0, 78])
def test_an_end_that_was_meant_is_the_end(launcher, code):
    """0: asked to stop; 78: only an edit of the constants helps."""
    launcher.make_env()
    launcher.plan(str(code))
    assert launcher.start().wait(20) == code
    assert len(launcher.starts(1)) == 1


def test_a_script_that_python_cannot_open_is_tried_again(launcher):
    """An update under way, or a card that does not answer: Python ends with 2, as it does at wrong options."""
    launcher.make_env()
    launcher.plan("2", "0")
    (launcher.folder / "detect_and_upload.py").rename(launcher.folder / "elsewhere")
    launcher.start()
    launcher.wait_for_log("ended with code 2; starting it again")
    (launcher.folder / "elsewhere").rename(launcher.folder / "detect_and_upload.py")
    assert launcher.process.wait(40) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_daemon_and_itself(launcher, number):
    launcher.make_env()
    launcher.plan("run")
    process = launcher.start()
    pid = int(launcher.starts(1)[0][0])
    process.send_signal(number)
    assert process.wait(30) == 0
    assert not Path(f"/proc/{pid}").exists()
    assert len(launcher.starts(1)) == 1


def test_a_signal_during_a_pause_ends_it_at_once(launcher):
    launcher.make_env()
    launcher.plan("1")
    process = launcher.start()
    launcher.wait_for_log("starting it again in 4 s")
    process.terminate()
    process.wait(3.5)


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


def test_a_signal_during_the_set_up_starts_nothing_afterwards(launcher, made_env):
    launcher.copy_envs(made_env)
    launcher.plan("run")
    process = launcher.start()
    launcher.wait_for_log("setting up")
    process.terminate()
    assert process.wait(120) == 0
    assert not (launcher.folder / "starts").exists()
    assert launch_stamp(launcher.folder).exists(), "the set-up in hand was not finished"


def test_an_update_taken_back_is_set_up_anew(launcher, made_env):
    """The packages in env/ are the update's, whatever older stamps say."""
    launcher.copy_envs(made_env)
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


def test_an_env_that_is_half_made_or_damaged_is_made_anew_and_private(launcher, made_env):
    """An interrupted set-up leaves no stamp; a power cut later on can leave empty files behind one."""
    launcher.copy_envs(made_env)
    launcher.plan("0", "1", "0")
    launcher.require(b"tiny==1\n")
    with zipfile.ZipFile(launcher.folder / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/__init__.py", "size = 1\n")
        wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "tiny/__init__.py,,9\n")
    launcher.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(launcher.folder)}
    (launcher.folder / "env/bin").mkdir(parents=True)
    (launcher.folder / "env/left").touch()
    assert launcher.start().wait(120) == 0
    assert launcher.log.count("setting up") == 1
    assert not (launcher.folder / "env/left").exists()
    assert (launcher.folder / "env").stat().st_mode & 0o077 == 0
    assert not (launcher.folder / ".setting-up").exists()

    (emptied,) = launcher.folder.glob("env/lib/python*/site-packages/tiny/__init__.py")
    emptied.write_bytes(b"")
    assert launcher.start("--check").wait(60) == 1
    assert "FAIL  packages" in launcher.log
    assert len(launcher.starts(1)) == 1, "the daemon was asked, which can only end in a traceback"
    assert launcher.start().wait(120) == 0
    assert launcher.log.count("making it anew") == 1
    assert launcher.log.count("setting up") == 2
    assert emptied.stat().st_size > 0


def test_a_set_up_without_a_network_says_so(launcher, made_env):
    launcher.copy_envs(made_env)
    launcher.require(b"nothing-of-this-name==1\n")
    launcher.env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"}
    assert launcher.start("--demo").wait(120) == 1
    assert "the package index cannot be reached; is there a network?" in launcher.log
    assert not list(launcher.folder.glob("env/.made-from-*"))


@pytest.mark.parametrize(
    ("code", "said", "cause"),
    [
        (137, "", "not enough memory"),
        (1, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"),
        (1, "OSError: [Errno 30] Read-only file system: '/x'", "is read-only"),
        (
            1,
            "Failed to establish a new connection: [Errno -3] Temporary failure in name resolution",
            "is there a network",
        ),
        (1, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "delivers other files"),
        (1, "WARNING: old\nERROR: something new", "ERROR: something new"),
    ],
)
def test_the_cause_of_a_failed_set_up_is_named(tmp_path, code, said, cause):
    (function,) = re.findall(r"^cause\(\) \{.*?^\}", LAUNCHER, re.MULTILINE | re.DOTALL)
    (tmp_path / "errors").write_text(said)
    program = f'here=/home/pi; {function}; cause "$1" "$2"'
    command = ["bash", "-c", program, "bash", str(tmp_path / "errors"), str(code)]
    assert cause in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def break_program(launcher):
    program = launcher.folder / "detect_and_upload.py"
    program.write_text('CAMERA_NAME = "Front door\n' + program.read_text(encoding="utf-8"), encoding="utf-8")


def test_a_missing_quote_in_a_constant_is_told_and_the_start_tried_again(launcher):
    """An update that is under way can leave such a file for a moment, too."""
    launcher.make_env()
    break_program(launcher)
    launcher.start()
    launcher.wait_for_log("a quote or bracket is missing")
    assert "line 1" in launcher.log
    launcher.wait_for_log("starting it again in 2 s")


def test_a_missing_quote_in_a_constant_ends_check_with_what_to_do(launcher):
    launcher.make_env()
    (launcher.folder / "requirements.txt").write_text("")
    (launcher.folder / "requirements-aarch64.txt").write_text("")
    launch_stamp(launcher.folder).touch()
    break_program(launcher)
    assert launcher.start("--check").wait(60) == 78
    assert "line 1" in launcher.log
    assert "a quote or bracket is missing" in launcher.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_an_env_of_another_user_is_told_with_the_command_that_helps(launcher):
    """Once run with sudo."""
    (launcher.folder / "env").mkdir(mode=0o700)
    for path in (launcher.folder, *launcher.folder.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(path.stat().st_mode | 0o011)
    command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        str(launcher.folder / "launch.sh"),
        "--demo",
    ]
    answer = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert f"sudo chown -R nobody '{launcher.folder}'" in answer.stderr


def test_a_python_of_32_bits_is_named(launcher, tmp_path):
    """The kernel says aarch64 all the same."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python3"
    python.write_text('#!/bin/sh\ncase "$*" in *maxsize*) exit 1;; esac\nexec /usr/bin/python3 "$@"\n')
    python.chmod(0o755)
    launcher.env["PATH"] = f"{tmp_path}/bin:/usr/bin:/bin"
    assert launcher.start("--demo").wait(60) == 1
    assert "install the 64-bit Raspberry Pi OS" in launcher.log


@needs_unshare
def test_a_card_without_room_for_the_packages_is_named(launcher):
    script = (
        f"mount -t tmpfs -o size=100m none {launcher.folder} && cp -a {launcher.folder}.copy/. {launcher.folder}/ &&"
    )
    shutil.copytree(launcher.folder, f"{launcher.folder}.copy")
    command = ["unshare", "--mount", "bash", "-c", f"{script} exec {launcher.folder}/launch.sh --demo"]
    answer = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert re.search(rf"2000 MB must be free in {launcher.folder}, and \d+ MB are", answer.stderr)


@needs_unshare
def test_byte_code_that_others_could_write_is_not_used(launcher):
    launcher.make_env()
    launcher.plan("0")
    folder = launcher.folder / "guardianberry/camera/__pycache__"
    folder.mkdir(parents=True)
    for name, mode, owner in (("good", 0o600, 0), ("written", 0o666, 0), ("planted", 0o644, 65534)):
        (folder / name).touch()
        (folder / name).chmod(mode)
        os.chown(folder / name, owner, owner)
    open_folder = launcher.folder / "guardianberry/__pycache__"
    open_folder.mkdir()
    (open_folder / "anything").touch()
    open_folder.chmod(0o777)
    of_the_page = launcher.folder / "viewer/__pycache__"
    of_the_page.mkdir(parents=True)
    of_the_page.chmod(0o777)
    assert launcher.start().wait(20) == 0
    assert [path.name for path in folder.iterdir()] == ["good"]
    assert not open_folder.exists()
    assert not of_the_page.exists()


def test_no_module_is_imported_from_the_folder_that_it_is_called_from(launcher, tmp_path):
    """`export PYTHONPATH=$PYTHONPATH:/opt/mine` leaves an empty entry where it was not set before."""
    launcher.make_env()
    launcher.plan("0")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/signal.py").write_text("raise SystemExit('foreign code ran')", encoding="utf-8")
    command = [str(launcher.folder / "launch.sh"), "--demo"]
    env = launcher.env | {"PYTHONPATH": ":/opt/mine"}
    answer = subprocess.run(
        command, cwd=tmp_path / "foreign", env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert "foreign code ran" not in answer.stderr
    assert len(launcher.starts(1)) == 1


@needs_unshare
def test_libraries_take_no_settings_from_where_others_can_put_them(launcher):
    """See tests/test_other_users.py; env_is_whole imports PyAV, too."""
    launcher.make_env()
    launcher.plan("run")
    launcher.start()
    pid = launcher.starts(1)[0][0]
    assert b"GNUTLS_SYSTEM_PRIORITY_FILE=/dev/null" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.mark.slow
@needs_unshare
def test_a_system_without_a_process_left_does_not_end_it_for_ever(launcher):
    """bash tries for 15 s and ends with code 254. Here nobody else has taken them: the user may have one alone."""
    launcher.make_env()
    launcher.plan("run")
    user = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")  # who may read and write as root may
    capable = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    with (launcher.folder / "log").open("ab") as log:
        command = [*user, *capable, "--", "prlimit", "--nproc=1:1000", str(launcher.folder / "launch.sh")]
        launcher.process = subprocess.Popen(command, cwd="/", env=launcher.env, stdout=log, stderr=log)
    launcher.wait_for_log("fork: Resource temporarily unavailable")
    subprocess.run([*user, "--", "prlimit", f"--pid={launcher.process.pid}", "--nproc=1000:"], check=True)
    launcher.starts(1)


# The log


def start_without_terminal(launcher: Launcher, *prefix: str) -> subprocess.Popen[bytes]:
    """As cron does: stdout and stderr lead into a pipe."""
    launcher.process = subprocess.Popen(
        [*prefix, str(launcher.folder / "launch.sh")],
        env={"PATH": "/usr/bin:/bin", "HOME": "/"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return launcher.process


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.02)


def test_without_a_terminal_it_keeps_the_log_itself_and_bounds_it(launcher):
    launcher.make_env()
    launcher.plan("talk")
    path = launcher.folder / "launch.sh"
    path.write_text(LAUNCHER.replace("log_limit_bytes=5000000", "log_limit_bytes=3000"))
    process = start_without_terminal(launcher)
    assert process.communicate(timeout=20)[0].endswith(
        f"the log goes to {launcher.folder}/guardianberry.log\n".encode()
    )
    log, older = launcher.folder / "guardianberry.log", launcher.folder / "guardianberry.log.1"
    assert "line 99 " in log.read_text()
    assert log.stat().st_size <= 3200
    assert "line 70 " in older.read_text()
    assert 3000 < older.stat().st_size <= 3200
    assert {log.stat().st_mode & 0o777, older.stat().st_mode & 0o777} == {0o600}


@needs_unshare
def test_on_a_read_only_card_the_daemon_starts_and_the_log_is_in_memory(launcher):
    launcher.make_env()
    (launcher.folder / "detect_and_upload.py").write_text("print('alive', flush=True)\n")
    folder = launcher.folder
    script = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && mount -t tmpfs none /dev/shm &&"
    script += f" {folder}/launch.sh; sleep 0.5; ls -ld /dev/shm/*; cat /dev/shm/*/guardianberry.log"
    process = start_without_terminal(launcher, "unshare", "--mount", "bash", "-c", script, "--")
    output = process.communicate(timeout=20)[0].decode()
    assert "alive" in output
    assert re.search(r"drwx------ .*/dev/shm/guardianberry\.", output)


def test_under_the_real_cron(launcher):
    """@reboot, in namespaces of its own: neither this machine's crontabs nor its processes are touched."""
    if os.geteuid() != 0 or not shutil.which("cron") or not shutil.which("unshare"):
        pytest.skip("needs root, cron and unshare")
    launcher.make_env()
    launcher.plan("run")
    log = launcher.folder / "guardianberry.log"
    script = f"""
        mount -t tmpfs none /run && mount -t tmpfs none /etc/cron.d && mount -t tmpfs none /var/spool/cron || exit 77
        mkdir -m 1730 /var/spool/cron/crontabs
        echo '@reboot {launcher.folder}/launch.sh -v' | crontab - || exit 77
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
        wait_for(lambda: log.exists() and "start 1: run" in log.read_text(), "no log")
    finally:
        cron.kill()
        cron.wait(10)


def test_looking_whether_env_is_whole_makes_no_telemetry(tmp_path):
    """OpenVINO's telemetry package makes an id in the home folder and looks for its server when it is imported."""
    script = (ROOT / "launch.sh").read_text(encoding="utf-8").split("<<'END'")
    (program,) = [part.split("\n", 1)[1].split("\nEND\n")[0] for part in script if "import_module" in part]
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-"], input=program, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
