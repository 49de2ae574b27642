"""Runs the daemon with a stopwatch on its parts: `python probe.py PYTHON detect_and_upload.py ...`, for bench.daemon.

Each part's CPU time is counted where it is called (`time.thread_time`, half a microsecond), and each thread gets its
name in /proc, so that the rest can be told apart from outside. On SIGUSR1 the figures go to the file $PROBE_FILE.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# part: where it happens. A part called within another counts for both.
PARTS = {
    "decode": ("guardianberry.camera.decoder", "Decoder", "decode"),
    "gate": ("guardianberry.detection.motion", "MotionGate", "needs_inference"),
    "detect": ("guardianberry.detection.detector", "Detector", "find_people"),
    "image": ("guardianberry.recording.events", "EventFiles", "start"),
}
seconds = dict.fromkeys([*PARTS, "bgr"], 0.0)
calls = dict.fromkeys([*PARTS, "bgr"], 0)
marks: dict[str, float] = {}
ended: dict[str, float] = {}  # CPU seconds of threads that are no more in /proc, by name


def counted(part: str, function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started_s = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.thread_time() - started_s
            calls[part] += 1
            marks.setdefault(f"first {part}", time.monotonic())

    return wrapper


class Watch:
    """Puts the stopwatches in as soon as a module is imported, so that nothing is imported earlier than usual."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        watched = [(part, place) for part, place in PARTS.items() if place[0] == name]
        if name != "guardianberry.camera.decoder" and not watched:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_watch(module: Any) -> None:
            execute(module)
            for part, (_, holder, method) in watched:
                owner = getattr(module, holder)
                setattr(owner, method, counted(part, getattr(owner, method)))
            if name == "guardianberry.camera.decoder":
                count_conversions(module.Frame)

        spec.loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


def count_conversions(frame_class: Any) -> None:
    frame_class.bgr = property(counted("bgr", frame_class.bgr.fget))


def name_threads() -> None:
    """Python 3.11 keeps a thread's name to itself; this tells the kernel."""
    plain_run = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with contextlib.suppress(OSError):
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(thread.name[:15])
        try:
            plain_run(thread)
        finally:
            ended[thread.name] = ended.get(thread.name, 0.0) + time.thread_time()

    threading.Thread.run = run  # type: ignore[method-assign]


def write_figures(*_: object) -> None:
    path = Path(os.environ["PROBE_FILE"])
    part = path.with_suffix(".part")
    figures = {"seconds": seconds, "calls": calls, "marks": marks, "ended": ended, "written_s": time.monotonic()}
    part.write_text(json.dumps(figures))
    part.replace(path)


def main() -> None:
    sys.argv = sys.argv[2:]
    script = Path(sys.argv[0])
    sys.path[0] = str(script.parent)
    name_threads()
    sys.meta_path.insert(0, Watch())
    signal.signal(signal.SIGUSR1, write_figures)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
