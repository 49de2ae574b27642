"""Alert latency: from the last byte of the first frame with a person to the object that the S3 server has confirmed.

    python -m bench.latency [--events N] [--rate FPS] [--no-baseline]

Somebody is suddenly in the picture, again and again; the stand-in camera notes when each frame was sent, the S3
stand-in when each object was complete. Beside it a loop like the original's, with fewer events.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench import stage
from bench.report import ROOT, busy_share, percentile, table, write_section
from tests.daemon import Daemon

CONSTANTS = {
    "MAX_RECORDING_DURATION_S": 3,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 3,
    "PERSON_GONE_AFTER_S": 1,
    "PRE_ROLL_S": 1,
}
IMAGES = "guardianberry.images"
WARM_UP_S = 8.0


class Plan(NamedTuple):
    """A video of `cycles` appearances, played in a loop; one frame more than whole seconds moves the key frames on."""

    rate_fps: int
    period_frames: int
    cycles: int = 10
    stay_s: float = 1.2

    @property
    def first_frame(self) -> int:
        return self.period_frames // 2

    def write(self, path: Path) -> Path:
        period_s = self.period_frames / self.rate_fps
        appearances = stage.Appearances(period_s, self.stay_s, self.first_frame / self.rate_fps)
        return stage.encode(path, appearances, seconds=period_s * self.cycles, frame_rate_fps=self.rate_fps)

    def times(self, camera_log: Path) -> list[float]:
        """Wall times at which the first frame with somebody in it had been sent."""
        return [
            entry["wall_s"]
            for entry in stage.camera_log(camera_log)
            if round(entry["source_s"]) % self.period_frames == self.first_frame
        ]


def confirmed(folder: Path) -> list[tuple[float, int]]:
    """Of each alert image: when the server had it whole (wall time), and the daemon's own figure for the latency."""
    found = []
    for about in (folder / IMAGES).glob("*.metadata.json"):
        own_ms = json.loads(about.read_text())["metadata"].get("alert_latency_ms", -1)
        found.append((about.stat().st_mtime, int(own_ms)))
    return sorted(found)


def pair(appeared: list[float], got: list[float], limit_s: float) -> tuple[list[float], int]:
    """Latencies in seconds, and how many appearances brought no alert within `limit_s`."""
    latencies, missed = [], 0
    for start, end in zip(appeared, [*appeared[1:], float("inf")], strict=True):
        mine = [t for t in got if start <= t < min(end, start + limit_s)]
        if mine:
            latencies.append(mine[0] - start)
        else:
            missed += 1
    return latencies, missed


def ours(plan: Plan, folder: Path, events: int) -> tuple[list[float], int, list[int]]:
    h264, log = plan.write(folder / "appearances.h264"), folder / "camera.log"
    with stage.s3_stand_in(folder / "s3") as env:
        env = {**env, **stage.camera_environment(h264, log)}
        started_s = time.time()
        with Daemon(folder / "daemon", ROOT / "models", env=env, FRAME_RATE_FPS=plan.rate_fps, **CONSTANTS) as daemon:
            while len([t for t in plan.times(log) if t > started_s + WARM_UP_S]) <= events:
                time.sleep(1)
                assert daemon.process is not None
                assert daemon.process.poll() is None, daemon.log
            daemon.terminate()
        got = confirmed(folder / "s3")
    appeared = [t for t in plan.times(log) if t > started_s + WARM_UP_S][:events]
    latencies, missed = pair(appeared, [t for t, _ in got], plan.period_frames / plan.rate_fps)
    return latencies, missed, [own_ms for t, own_ms in got if t > appeared[0]]


def baseline(plan: Plan, folder: Path, events: int) -> tuple[list[float], int]:
    folder.mkdir()
    h264, log, url = plan.write(folder / "appearances.h264"), folder / "camera.log", "tcp://127.0.0.1:8898"
    with stage.s3_stand_in(folder / "s3") as s3_environment:
        env = {**os.environ, **s3_environment, **stage.camera_environment(h264, log)}
        run = folder / "original"
        run.mkdir()
        command = [sys.executable, str(ROOT / "bench" / "original_loop.py"), url, str(ROOT / "models" / "yolov5n.pt")]
        camera = subprocess.Popen(stage.camera_command(frame_rate_fps=plan.rate_fps, output=url), env=env)
        loop = subprocess.Popen([*command, str(run), "3", "20"], env=env, stderr=subprocess.DEVNULL)
        try:
            started_s = time.time()
            while len([t for t in plan.times(log) if t > started_s + WARM_UP_S]) <= events and loop.poll() is None:
                time.sleep(1)
        finally:
            for process in (loop, camera):
                process.kill()
                process.wait()
        got = confirmed(folder / "s3")
    appeared = [t for t in plan.times(log) if t > started_s + WARM_UP_S][:events]
    return pair(appeared, [t for t, _ in got], plan.period_frames / plan.rate_fps)


def row(name: str, latencies: list[float], missed: int) -> list[str]:
    if not latencies:
        return [name, "0", str(missed), "", "", "", ""]
    values = [f"{percentile(latencies, share):.3f}" for share in (0.5, 0.95, 0.99, 1.0)]
    return [name, str(len(latencies)), str(missed), *values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--rate", type=int, default=10)
    parser.add_argument("--no-baseline", action="store_true")
    options = parser.parse_args()
    busy = busy_share()
    with tempfile.TemporaryDirectory() as temporary:
        plan = Plan(options.rate, 4 * options.rate + 1)
        mine, missed, own_ms = ours(plan, Path(temporary), options.events)
        rows = [row(f"this daemon, {options.rate} fps", mine, missed)]
        theirs: list[float] = []
        if not options.no_baseline:
            slow_plan = Plan(options.rate, 20 * options.rate + 1, cycles=4, stay_s=4.0)
            theirs, missed = baseline(slow_plan, Path(temporary) / "baseline", max(6, options.events // 12))
            rows.append(row(f"loop like the original's, {options.rate} fps", theirs, missed))
    lines = [
        f"{100 * busy:.0f} % of the machine was busy with other things before. Seconds.",
        "",
        *table(["", "alerts", "missed", "p50", "p95", "p99", "worst"], rows),
        "",
        f"alert_latency_ms in the objects' metadata (to the start of the upload): p50 {percentile(own_ms, 0.5)},"
        f" p99 {percentile(own_ms, 0.99)}.",
    ]
    write_section("latency", lines, busy=busy, ours_s=mine, baseline_s=theirs, rate_fps=options.rate)


if __name__ == "__main__":
    main()
