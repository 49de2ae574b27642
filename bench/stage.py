"""The stage for whole-daemon benches: video of known content, the camera and S3 stand-ins, and a look into /proc.

The stand-in camera replays what was encoded beforehand, so that it costs next to no CPU beside the daemon.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av

import detect_and_upload as script
from bench import offline
from bench.report import ROOT
from tests.s3_server import environment

TICK_S = os.sysconf("SC_CLK_TCK")
# In the demo scene: seconds of the empty room, of somebody coming, staying and going, and of her standing.
EMPTY_S, VISIT_S, STANDING_S = (13.0, 20.0), (5.8, 12.2), (7.6, 10.4)


class Scene:
    """The demo scene in another order: what the stand-in's encoder wants of a video."""

    passes = 0

    def __init__(self, source_s: Callable[[float], float]) -> None:
        self._source_s = source_s
        with av.open(str(offline.SCENE)) as container:
            self._frames = [frame.reformat(format="yuv420p") for frame in container.decode(video=0)]

    def frame_at(self, time_s: float) -> tuple[float, av.VideoFrame]:
        source_s = self._source_s(time_s)
        return source_s, self._frames[min(len(self._frames) - 1, round(source_s * 10))]


def empty(time_s: float) -> float:
    """The empty room, forwards and backwards, so that nothing jumps."""
    return there_and_back(time_s, *EMPTY_S)


def people(time_s: float) -> float:
    """Somebody always in view, walking most of the time."""
    return there_and_back(time_s, *VISIT_S)


def there_and_back(time_s: float, start_s: float, end_s: float) -> float:
    length_s = end_s - start_s
    passes, position_s = divmod(time_s, length_s)
    return start_s + position_s if passes % 2 == 0 else end_s - position_s


class Appearances(NamedTuple):
    """Somebody is suddenly there, again and again: `period_s` apart, the first after `lead_s`, each for `stay_s`."""

    period_s: float
    stay_s: float
    lead_s: float

    def __call__(self, time_s: float) -> float:
        time_s += 1e-6  # the first frame of a stay belongs to it, however the division rounds
        since_s = (time_s - self.lead_s) % self.period_s
        if time_s >= self.lead_s and since_s < self.stay_s:
            return there_and_back(since_s, *STANDING_S)
        return empty(time_s)


def encode(path: Path, source_s: Callable[[float], float], *, seconds: float, frame_rate_fps: int) -> Path:
    """An Annex-B file at the script's size and bit rate; plays in a loop without a seam if the scene does."""
    units = offline.encode(Scene(source_s), frame_rate_fps=frame_rate_fps, seconds=seconds)
    path.write_bytes(b"".join(units))
    return path


@contextmanager
def s3_stand_in(folder: Path) -> Iterator[dict[str, str]]:
    """Objects appear in FOLDER/BUCKET/KEY; yields the environment that points boto3 there."""
    command = [sys.executable, str(ROOT / "demo" / "s3_stand_in.py"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield environment(f"http://127.0.0.1:{int(server.stdout.readline())}")
        finally:
            server.terminate()


class Usage(NamedTuple):
    """CPU seconds that a process has used, by thread name, and its memory."""

    at_s: float
    cpu_s: dict[str, float]
    resident_mb: float
    peak_mb: float
    probe: dict[str, Any]


def usage(pid: int, probe_file: Path | None = None) -> Usage:
    cpu_s: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "stat").read_text()
        except OSError:  # ended meanwhile
            continue
        name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
        name = "main" if int(task.name) == pid else name
        cpu_s[name] = cpu_s.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / TICK_S
    whole = Path(f"/proc/{pid}/stat").read_text()
    fields = whole[whole.rindex(")") + 2 :].split()
    cpu_s["all"] = (int(fields[11]) + int(fields[12])) / TICK_S  # with the threads that have ended
    status = Path(f"/proc/{pid}/status").read_text()
    resident_kb, peak_kb = (int(re.search(rf"{key}:\s+(\d+)", status)[1]) for key in ("VmRSS", "VmHWM"))  # type: ignore[index]
    probe = read_probe(pid, probe_file) if probe_file else {}
    for name, ended_s in probe.get("ended", {}).items():
        cpu_s[name[:15]] = cpu_s.get(name[:15], 0.0) + ended_s
    return Usage(time.monotonic(), cpu_s, resident_kb / 1024, peak_kb / 1024, probe)


def read_probe(pid: int, probe_file: Path) -> dict[str, Any]:
    asked_s = time.monotonic()
    os.kill(pid, signal.SIGUSR1)
    while time.monotonic() < asked_s + 5:
        if probe_file.exists() and (figures := json.loads(probe_file.read_text()))["written_s"] >= asked_s:
            return figures
        time.sleep(0.01)
    return {}


def camera_log(path: Path) -> list[dict[str, Any]]:
    """What the stand-in camera sent, a line a frame."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [entry for line in lines if line.endswith("}") and "bytes" in (entry := json.loads(line))]


def camera_environment(h264: Path, log: Path) -> dict[str, str]:
    return {"STAND_IN_H264": str(h264), "STAND_IN_LOG": str(log)}


def camera_command(*, frame_rate_fps: int, output: str) -> list[str]:
    """The stand-in camera as somebody would start it by hand."""
    size = ["--width", str(script.FRAME_WIDTH_PX), "--height", str(script.FRAME_HEIGHT_PX)]
    rate = ["--framerate", str(frame_rate_fps), "--intra", str(frame_rate_fps), "--bitrate", str(script.BITRATE_BPS)]
    words = ["-n", "-t", "0", *size, *rate, "--inline", "--codec", "h264", "--flush"]
    return [sys.executable, str(ROOT / "demo" / "rpicam-vid"), *words, "--listen", "-o", output]
