"""Child processes for what may hang, crash or meet hostile files: `run` is for the parent, `restrict` for the child."""

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from guardianberry.machine import be_killed_first, for_child, keep_memory_off_the_disk

POLL_S = 0.2  # a child is killed so soon after a stop


class Ended(NamedTuple):
    """How a child ended: exit code (negative: signal), the same in words, and the last line of its output."""

    code: int
    how: str
    last_line: str


def run(command: Sequence[str], *, limit_s: float, stop: threading.Event, variables: Sequence[str] = ()) -> Ended:
    """Run a child to its end, or kill it after `limit_s` or when `stop` is set.

    `variables`: names and patterns of those that it gets besides the usual ones.
    """
    deadline_s = time.monotonic() + limit_s
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            **for_child(*variables, folder=Path(__file__).resolve().parents[2]),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            while child.poll() is None and time.monotonic() < deadline_s and not stop.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
            timed_out = child.poll() is None and not stop.is_set()
        finally:
            child.kill()  # does nothing after its end
            child.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines() or [""]
    how = f"took more than {limit_s:.0f} s" if timed_out else _in_words(child.returncode)
    return Ended(child.returncode, how, lines[-1])


def _in_words(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    hint = {"SIGKILL": ", perhaps for lack of memory", "SIGILL": ": torch does not run on this CPU"}
    return f"was killed by {name}{hint.get(name, '')}"


def restrict(memory_bytes: int | None = None) -> None:
    """Limit this process: a low priority, no core dump, so much memory, and it is killed before the daemon."""
    os.nice(10)
    os.umask(0o077)
    keep_memory_off_the_disk()
    be_killed_first()
    if memory_bytes is not None:
        with contextlib.suppress(ValueError, OSError):  # a lower hard limit is set already
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
