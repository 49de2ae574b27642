"""Files that a power cut leaves whole, disks that hang, and what the owner can do where a disk fails."""

import contextlib
import errno
import os
import queue
import shlex
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from guardianberry.filenames import PART_PREFIX
from guardianberry.machine import started, user_name

_TIMEOUT_S = 10.0
_Result = TypeVar("_Result")

_FULL = "free some space, or lower what other programs keep there"
_BROKEN = "see `dmesg`; check the cable, or replace the card or disk"
_ADVICE = {
    errno.EROFS: "see `dmesg`; a card that goes read-only is often worn out: replace it",
    errno.EIO: _BROKEN,
    errno.ENXIO: _BROKEN,
    errno.ENODEV: _BROKEN,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ESTALE: "the server no longer knows this mount: unmount it and mount it again",
    errno.ENOTCONN: "unmount it and mount it again",
}
FAULTS = frozenset({errno.EACCES, errno.EPERM, *_ADVICE})  # of a disk or folder; others concern a single file


def write_atomically(path: Path, content: bytes) -> None:
    """Afterwards `path` holds `content`, after a power cut too. Where this raises OSError, `path` is as before.

    The name of the temporary file is the same at every try, so that a killed one is overwritten by the next.
    """
    part = path.with_name(PART_PREFIX + path.name)
    try:
        with open(create(part), "wb") as file:
            file.write(content)
        fsync_path(part)
        part.replace(path)
        fsync_path(path.parent)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def create(path: Path) -> int:
    """A new file, open to be written, in place of whatever has this name: a link is not followed. Raises OSError."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def fsync_path(path: Path) -> None:
    """Return once the file's content, or the folder's list of names, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(*folders: Path) -> int | None:
    """On the fuller of their disks; None where there is no answer."""
    try:
        return min(shutil.disk_usage(folder).free for folder in folders)
    except OSError:
        return None


class DiskThread:
    """Calls functions in a thread of its own, so that the callers do not wait for ever for a disk that hangs."""

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._late: Future[Any] | None = None
        self._thread: threading.Thread | None = None

    @property
    def hangs(self) -> bool:
        """Whether a call that took too long has not returned yet."""
        return self._late is not None and not self._late.done()

    def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Returns what it returns, and raises what it raises. For any thread.

        Raises TimeoutError where that takes too long, and at once while an earlier call still hangs.
        """
        future: Future[_Result] = Future()
        with self._lock:
            if self.hangs:
                raise TimeoutError(errno.ETIMEDOUT, "the disk does not answer")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="disk", daemon=True)
                if not started(thread):
                    raise OSError(errno.EAGAIN, "the system has no thread left")
                self._thread = thread
            self._calls.put((future, partial(function, *arguments)))
        try:
            return future.result(self._timeout_s)
        except TimeoutError as error:
            if future.done():
                raise
            self._late = future
            raise TimeoutError(errno.ETIMEDOUT, "the disk does not answer") from error

    def _run(self) -> None:
        while True:
            future, function = self._calls.get()
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001  the caller gets it
                future.set_exception(error)


def what_to_do(error: OSError, folder: Path) -> str:
    """What went wrong in `folder`, and what the owner can do about it. It reads the folder, so it may hang, too."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.EEXIST):
        with contextlib.suppress(OSError):
            return f"it is a link to {os.readlink(folder)}, which is not there: mount that disk"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{reason}: {_command_that_opens(folder)}"
    return f"{reason}: {_ADVICE.get(error.errno or 0, 'it is tried again')}"


def _command_that_opens(folder: Path) -> str:
    user, path = user_name(os.geteuid()), shlex.quote(os.path.realpath(folder))
    try:
        os.stat(folder)
    except FileNotFoundError:
        return f"sudo install -d -m 700 -o {user} {path}"
    except OSError:
        closed = next(place for place in folder.parents if os.path.exists(place))
        return f"sudo chmod a+x {shlex.quote(str(closed))}"
    return f"sudo chown -R {user} {path}"
