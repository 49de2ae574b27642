"""The machine that the daemon runs on: serial number, private folders, lock, environment of child processes."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import re
from pathlib import Path

log = logging.getLogger(__name__)

_DEVICE_TREE_SERIAL = Path("sys/firmware/devicetree/base/serial-number")
_CPUINFO = Path("proc/cpuinfo")
_MACHINE_ID = Path("etc/machine-id")
_UNKNOWN_SERIAL = "unknown"
_M_ARENA_MAX = -8  # malloc.h


def use_one_malloc_arena() -> None:
    """Let all threads share one heap. With one a thread, glibc's default, memory grew by some MB an hour."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc alone has it
        libc.mallopt(_M_ARENA_MAX, 1)


def environment_without_credentials() -> dict[str, str]:
    """For child processes: none of them uses S3, and one opens files of unknown origin."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


class FolderError(RuntimeError):
    """A folder cannot be used; the message says why."""


class AlreadyRunningError(FolderError):
    """Another daemon works in this folder."""


def get_rpi_serial_number(root: Path = Path("/")) -> str:
    """The Pi's serial number; on other machines the machine's id; "unknown" if there is neither.

    ASCII letters, digits and dashes only, because it travels in an HTTP header.
    """
    serial = read_text(root / _DEVICE_TREE_SERIAL).rstrip("\0 \n")
    if not serial:  # kernels of some distributions have it in cpuinfo alone
        match = re.search(r"^Serial\s*:\s*(\S+)", read_text(root / _CPUINFO), re.MULTILINE)
        serial = match[1] if match else read_text(root / _MACHINE_ID).strip()
    return re.sub(r"[^0-9A-Za-z-]", "", serial) or _UNKNOWN_SERIAL


def make_private_folder(folder: Path) -> None:
    """Make the folder if it is missing, and close it to other users.

    Raises FolderError if it cannot be made. One that cannot be closed is used as it is, with a warning.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        hint = f"; it is a link to {folder.readlink()}: is that disk mounted?" if folder.is_symlink() else ""
        raise FolderError(f"{folder} cannot be made ({error.strerror}){hint}") from error
    if folder.stat().st_mode & 0o077:
        try:
            folder.chmod(0o700)
        except OSError as error:
            log.warning("%s is open to other users and cannot be closed (%s)", folder, error.strerror)


def lock_folder(folder: Path) -> int:
    """Lock the folder until this process ends, however it ends; raises AlreadyRunningError.

    The lock is on the folder itself, so it leaves no file behind. Keep the returned descriptor open.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AlreadyRunningError(f"another daemon already works in {folder}; stop it first") from error
    return descriptor


def read_text(path: Path) -> str:
    """The file's text, without bytes that are no UTF-8; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return ""
