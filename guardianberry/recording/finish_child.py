"""Finishes clips that were left open, in a child process: a file made for it can crash FFmpeg, or take all memory.

The child loads PyAV once and forks for each file, so that a file costs the next one nothing, and a hundred bad files
delay a good one by milliseconds each. `finish_in_child` is for the parent.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from guardianberry.filenames import PART_PREFIX
from guardianberry.machine import be_killed_first, for_child, keep_memory_off_the_disk
from guardianberry.recording.mp4 import close_killed_file

_ROOT = Path(__file__).resolve().parents[2]
_MEMORY_BYTES = 256_000_000  # 22 MB are PyAV, and the index of a clip takes less than one
_ADDRESS_SPACE_BYTES = 1_500_000_000  # the libraries take 120 MB
_MAX_CLIP_BYTES = 325_000_000  # a larger one is not uploaded either
_OVERHEAD_BYTES = 1_000_000  # a finished clip is smaller than its fragments, and has an index
_CPU_S = 5  # and more for a large file: nothing is decoded, so a clip takes a fraction of it
_CPU_BYTES_PER_S = 2_000_000
_WALL_S = 30  # a slow card takes 10 s for an fsync
_WALL_BYTES_PER_S = 1_000_000
_BATCH_S = 10.0  # afterwards no other file is begun: the folder's thread has more to do
_BATCH_FILES = 500  # the names on a command line must stay below 128 kB
_CHILD_S = 600.0  # longer than any limit above: the disk hangs
_HARMFUL_SIGNALS = {
    signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGXCPU, signal.SIGXFSZ,
}  # fmt: skip


class Outcome(NamedTuple):
    """What became of a clip. `problem` is empty where it was finished, and has then `duration_s`.

    `is_harmful`: the file itself is what ended the process, or would have filled the memory or the disk.
    """

    path: str
    problem: str = ""
    errno: int = 0
    is_harmful: bool = False
    duration_s: float = 0.0


def finish_in_child(paths: Sequence[Path], *, frame_rate_fps: float) -> list[Outcome]:
    """Make ordinary MP4 files of these clips, under the same names; of as many, from the first on, as 10 s allow.

    Raises OSError where the child cannot be started or is killed.
    """
    command = [sys.executable, "-m", __name__, str(frame_rate_fps), *map(str, paths[:_BATCH_FILES])]
    child = for_child(folder=_ROOT) | {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        done = subprocess.run(command, **child, start_new_session=True, timeout=_CHILD_S, check=False)
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:  # the child is killed
        output, code = error.stdout or b"", -signal.SIGKILL
    outcomes = [Outcome(*json.loads(line)) for line in output.splitlines()]
    if not outcomes and paths:
        raise OSError(errno.EAGAIN, f"the process that finishes clips ended with code {code}")
    return outcomes


def main(frame_rate_fps: str, *paths: str) -> None:
    """In the child: one line of JSON for each file."""
    os.umask(0o077)
    keep_memory_off_the_disk()
    be_killed_first()
    give_up_s = time.monotonic() + _BATCH_S
    for path in paths:
        if time.monotonic() > give_up_s:
            return
        pid = os.fork()
        if pid == 0:
            be_killed_first()
            _tell(_finish(path, float(frame_rate_fps)))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            Path(path).with_name(PART_PREFIX + Path(path).name).unlink(missing_ok=True)
            _tell(_outcome_of_death(path, code))


def _tell(outcome: Outcome) -> None:
    os.write(1, f"{json.dumps(outcome)}\n".encode())


def _outcome_of_death(path: str, code: int) -> Outcome:
    """Only a signal that comes from what the process itself did is the file's fault; others are a reason to wait."""
    name = signal.Signals(-code).name if code < 0 else f"code {code}"
    if -code in _HARMFUL_SIGNALS:
        return Outcome(path, f"it ended the process that read it: {name}", is_harmful=True)
    return Outcome(path, f"the process that read it was ended: {name}", errno.EAGAIN)


def _finish(path: str, frame_rate_fps: float) -> Outcome:
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return Outcome(path, "it is no file")
        if status.st_size > _MAX_CLIP_BYTES:
            return Outcome(path, "it is larger than any clip")
        _limit(min(status.st_size, status.st_blocks * 512))  # a hole counts for nothing: its copy would fill the disk
        return Outcome(path, duration_s=close_killed_file(Path(path), frame_rate_fps=frame_rate_fps))
    except MemoryError:
        return Outcome(path, "it takes more memory than a clip", is_harmful=True)
    except Exception as error:  # noqa: BLE001  nobody knows all that PyAV raises for a file that is made for it
        number = (error.errno or 0) if isinstance(error, OSError) else 0
        if number == errno.EFBIG:
            return Outcome(path, "it would become much larger than it is", is_harmful=True)
        return Outcome(path, (getattr(error, "strerror", None) or str(error))[:200], number)


def _limit(size_bytes: int) -> None:
    """What this process may use. The kernel ends it with SIGXCPU or SIGALRM at the limits of its time."""
    for limit, value in (
        (resource.RLIMIT_DATA, _MEMORY_BYTES),
        (resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_FSIZE, 2 * size_bytes + _OVERHEAD_BYTES),
        (resource.RLIMIT_CPU, _CPU_S + size_bytes // _CPU_BYTES_PER_S),
    ):
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, hard))
    signal.alarm(_WALL_S + size_bytes // _WALL_BYTES_PER_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
