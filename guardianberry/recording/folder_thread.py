"""One of the two folders of the queue, and the thread for all work on its disk but the recording of clips.

The loop never touches a disk, and a disk that fails or hangs stops nothing in the other folder.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from guardianberry.disk import what_to_do, write_atomically
from guardianberry.filenames import PART_PREFIX
from guardianberry.logs import OncePerCause

log = logging.getLogger(__name__)

_INTERVAL_S = 2.0  # between two runs of the tasks: meanwhile a clip takes 0.5 MB of the disk
_STALL_S = 30.0  # a slow card takes 10 s for an fsync


@dataclass(eq=False)
class FolderThread:
    """Runs `tasks` every two seconds, and after each `wake`, in a thread of its own.

    A task may raise OSError: its cause is logged once, the other tasks run, and all run again the next time. `on_disk`
    runs before them when the folder is seen for the first time or on another disk; then `is_ready` is set.
    `consequence` completes the sentence "... until the disk works again", which it does once a file can be written.
    """

    path: Path
    tasks: tuple[Callable[[], None], ...]
    _: KW_ONLY
    on_disk: Callable[[], None]
    consequence: str
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.is_ready = threading.Event()
        self._disk: tuple[int, int] | None = None
        self._faults = OncePerCause()
        self._is_faulty = False
        self._busy_since_s: float | None = None
        self._wake, self._is_closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.path.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Run the tasks once more and end the thread; waits for at most `timeout_s`."""
        self._is_closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def report(self, error: OSError) -> None:
        """Log once what is wrong with the disk, and what to do. For threads that may wait for the disk."""
        self._tell(what_to_do(error, self.path))

    def check(self) -> None:
        """Log that the disk hangs. For the loop: touches no disk."""
        since_s = self._busy_since_s
        if since_s is not None and self.monotonic() - since_s > _STALL_S:
            self._tell(f"no answer for {_STALL_S:.0f} s: see `dmesg`, and whether its server or cable is well")

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_closed.is_set()
            self._wake.clear()
            self._busy_since_s = self.monotonic()
            successes = [self._succeeds(task) for task in (self._find, *self.tasks)]
            if all(successes) and self._is_faulty and self._succeeds(self._write_something):
                self._faults.forget()
                self._is_faulty = False
                log.info("%s/ works again", self.path.name)
            self._busy_since_s = None
            if not is_last:
                self._wake.wait(_INTERVAL_S)

    def _succeeds(self, task: Callable[[], None]) -> bool:
        try:
            task()
        except OSError as error:
            self.report(error)
            return False
        except Exception:
            if self._faults.is_new(task):
                log.exception("%s/: an error of the program; the rest goes on", self.path.name)
            return False
        return True

    def _tell(self, text: str) -> None:
        self._is_faulty = True
        if self._faults.is_new(text):
            log.warning("%s/: %s; %s until the disk works again", self.path.name, text, self.consequence)

    def _write_something(self) -> None:
        probe = self.path / (PART_PREFIX + "probe")
        write_atomically(probe, bytes(4096))
        probe.unlink()

    def _find(self) -> None:
        """Make the folder where it is missing, and closed to other users."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.path.stat()
        if (status.st_dev, status.st_ino) == self._disk:
            return
        if status.st_mode & 0o777 != 0o700:
            try:
                self.path.chmod(0o700)
            except OSError as error:
                is_ours = status.st_uid == os.geteuid()  # on FAT, say, where chown does not help either
                why = error.strerror if is_ours else what_to_do(error, self.path)
                if self._faults.is_new("open"):
                    log.warning("%s/ is open to other users and cannot be closed: %s", self.path.name, why)
        self.on_disk()
        self._disk = (status.st_dev, status.st_ino)
        self.is_ready.set()
