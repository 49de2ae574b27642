"""The machine that the daemon runs on: serial number, power supply, lock, what child processes are started with."""

import contextlib
import ctypes
import fcntl
import hmac
import logging
import math
import os
import pwd
import re
import resource
import signal
import subprocess
import threading
import time
import uuid
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 3.0  # `rpicam-vid --list-cameras` takes about 1 s, the other commands that are asked 0.03 s

_APPLICATION = uuid.UUID("5c0d9a3f0b2e4d6c9a51b8f1e7d24c36")  # any fixed number, ours alone
_LOCK_NAME = ".lock"
_M_ARENA_MAX = -8  # malloc.h
_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_STOP_POLL_S = 0.1
# Of `vcgencmd get_throttled`; 16 bits higher the same, at some time since the boot.
_THROTTLED_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "too hot"}
_FOR_EVERY_CHILD = ("PATH", "HOME", "LANG", "LC_*", "TZ", "TMPDIR", "LD_PRELOAD", "GNUTLS_SYSTEM_PRIORITY_FILE")
# Before `import cv2`, which puts folders and an empty entry in front: the current folder, where anybody may have put a
# library.
_LIBRARY_PATH = os.environ.get("LD_LIBRARY_PATH")


def use_one_malloc_arena() -> None:
    """Let all threads share one heap. With one a thread, glibc's default, memory grew by some MB an hour."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc alone has it
        libc.mallopt(_M_ARENA_MAX, 1)


def for_child(*variables: str, folder: Path = Path("/")) -> dict[str, Any]:
    """Arguments of subprocess.Popen that every child of this package is started with.

    No input, no credentials, a current folder that nobody else can write to, and only the variables that it needs:
    `variables` are names, or patterns such as "NAME_*".
    """
    names = (*_FOR_EVERY_CHILD, *variables)
    wanted = {name: value for name, value in os.environ.items() if any(fnmatchcase(name, one) for one in names)}
    library_path = {} if _LIBRARY_PATH is None else {"LD_LIBRARY_PATH": _LIBRARY_PATH}
    return {"env": wanted | library_path, "cwd": folder, "stdin": subprocess.DEVNULL}


def answer_of(*command: str, variables: tuple[str, ...] = ()) -> tuple[int | None, str]:
    """Exit code of a command with these variables of the environment, and all that it prints.

    None and "" where it cannot be started or does not end within ANSWER_TIMEOUT_S.
    """
    try:
        answer = subprocess.run(
            command,
            **for_child(*variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.debug("%s: %s", " ".join(command), error)
        return None, ""
    return answer.returncode, answer.stdout.decode(errors="replace")


def power_faults() -> list[str] | None:
    """What is wrong with a Raspberry Pi's power or heat, "now" or "since the boot"; None where nobody knows."""
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", answer_of("vcgencmd", "get_throttled")[1])
    if match is None:
        return None
    bits = int(match[1], 16)
    now = [text for bit, text in _THROTTLED_BITS.items() if bits >> bit & 1]
    earlier = [text for bit, text in _THROTTLED_BITS.items() if bits >> (bit + 16) & 1 and text not in now]
    return [*(f"{text} now" for text in now), *(f"{text} since the boot" for text in earlier)]


def started(thread: threading.Thread) -> bool:
    """Start it; False where the system has no thread left: another user's processes can take them all for a while."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


class StopFlag(threading.Event):
    """An Event that a signal handler may set. Event.set takes a lock, and a second signal can come while it is held."""

    _is_up = False

    def set(self) -> None:
        self._is_up = True

    def is_set(self) -> bool:
        return self._is_up

    def wait(self, timeout: float | None = None) -> bool:
        deadline_s = math.inf if timeout is None else time.monotonic() + timeout
        while not self._is_up and (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _STOP_POLL_S))
        return self._is_up


def keep_memory_off_the_disk() -> None:
    """No core dumps, of this process and its children: they would hold the secret key."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def be_killed_first() -> None:
    """This process dies with its parent, and before the daemon and the camera program where memory is short."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def user_name(number: int) -> str:
    """Of a user id; the id itself where it has no name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


class AlreadyRunningError(RuntimeError):
    """Another daemon works in this folder."""


def get_rpi_serial_number(root: Path = Path("/")) -> str:
    """The Pi's serial number; on other machines a number made of the machine's id; "unknown" if there is neither.

    ASCII letters, digits and dashes only, because it travels in an HTTP header.
    """
    serial = read_text(root / "sys/firmware/devicetree/base/serial-number").rstrip("\0 \n")
    if not serial:  # kernels of some distributions have it in cpuinfo alone
        match = re.search(r"^Serial\s*:\s*(\S+)", read_text(root / "proc/cpuinfo"), re.MULTILINE)
        serial = match[1] if match else _application_id(read_text(root / "etc/machine-id").strip())
    return re.sub(r"[^0-9A-Za-z-]", "", serial) or "unknown"


def _application_id(machine_id: str) -> str:
    """As sd_id128_get_machine_app_specific(3): the machine's id itself is confidential, says machine-id(5)."""
    if not re.fullmatch("[0-9a-f]{32}", machine_id):
        return ""
    digest = hmac.digest(bytes.fromhex(machine_id), _APPLICATION.bytes, "sha256")
    return uuid.UUID(bytes=digest[:16], version=4).hex


def lock_folder(folder: Path) -> int:
    """Lock the folder as long as the returned descriptor is open; raises AlreadyRunningError."""
    descriptor = _open_lock(folder, os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AlreadyRunningError(f"another daemon already works in {folder}; stop it first") from error
    return descriptor


def is_locked(folder: Path) -> bool:
    """Whether a daemon works in the folder. Makes no file."""
    descriptor = _open_lock(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # with it a lock that was free goes
    return False


def _open_lock(folder: Path, create: int = 0) -> int:
    """A file that other users cannot open: whoever can open it can lock it, and keep the daemon from starting.

    Where there is none and none can be made (a read-only card, say), the folder itself.
    """
    path = folder / _LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | create, 0o600)
    except OSError as error:
        if create:
            log.warning("%s cannot be opened (%s): other users can keep a daemon from starting", path, error.strerror)
        return os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    if create:
        with contextlib.suppress(OSError):  # a read-only card, or not ours
            os.fchmod(descriptor, 0o600)
            owner = folder.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)  # when run with sudo
    return descriptor


def read_text(path: Path) -> str:
    """The file's text, without bytes that are no UTF-8; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return ""
