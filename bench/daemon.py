"""The whole daemon on the stand-in camera: CPU by part, frames looked at, memory; beside a loop like the original's.

    python -m bench.daemon [--seconds S] [--rates 10 20 30] [--no-baseline]

Scenes: `idle`, an empty room; `people`, somebody always in view, so a clip a minute; `uploading`, the same with a clip
every ten seconds, and each on its way to S3. CPU is given per second of video: 0.10 is 10 % of one core. The baseline
plays the same video, right after, with the same gaps and S3 stand-in; as the original did it looks at whole frames.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detect_and_upload as script
from bench import stage
from bench.report import ROOT, busy_share, table, write_section
from tests.daemon import Daemon

SETTLE_S = 6.0
VIDEO_S = 60.0
SCENES: dict[str, Callable[[float], float]] = {"idle": stage.empty, "people": stage.people, "uploading": stage.people}
# So short a gap that a clip is always being written, or on its way.
CONSTANTS = {"uploading": {"MIN_GAP_BETWEEN_VIDEO_START_S": 10, "MAX_RECORDING_DURATION_S": 8}}
PARTS = {
    "read": ("camera-reader",),
    "write": ("clip",),
    "upload": ("sweep", "alert"),
}


def measure(scene: str, rate_fps: int, h264: Path, folder: Path, *, seconds: float) -> dict[str, Any]:
    """One run of the daemon: figures per second of video over `seconds` after it has settled."""
    with stage.s3_stand_in(folder / "s3") as s3_environment:
        run = folder / "daemon"
        env = {
            **s3_environment,
            **stage.camera_environment(h264, folder / "camera.log"),
            "PROBE_FILE": str(folder / "probe.json"),
            "PYTHONPATH": str(ROOT),
        }
        constants = {"FRAME_RATE_FPS": rate_fps, **CONSTANTS.get(scene, {})}
        prefix = (sys.executable, str(ROOT / "bench" / "probe.py"))
        spawned_s = time.monotonic()
        with Daemon(run, ROOT / "models", env=env, prefix=prefix, **constants) as daemon:
            assert daemon.process is not None
            daemon.wait_for_log(r"ready for")
            pid, probe_file = daemon.process.pid, folder / "probe.json"
            time.sleep(SETTLE_S)
            before = stage.usage(pid, probe_file)
            resident = []
            while time.monotonic() < before.at_s + seconds:
                time.sleep(0.5)
                now = stage.usage(pid)
                resident.append((now.at_s - spawned_s, now.resident_mb))
            after = stage.usage(pid, probe_file)
            code, _ = daemon.terminate()
            assert code == 0, daemon.log
    sent = [e for e in stage.camera_log(folder / "camera.log") if before.at_s <= e["monotonic_s"] < after.at_s]
    return {**difference(before, after), "sent": len(sent), "resident": resident, "peak_mb": after.peak_mb}


def timing(scene: str) -> list[float]:
    """Seconds from one recording's start to the next, and how long one is."""
    constants = vars(script) | CONSTANTS.get(scene, {})
    return [constants["MIN_GAP_BETWEEN_VIDEO_START_S"], constants["MAX_RECORDING_DURATION_S"]]


def difference(before: stage.Usage, after: stage.Usage) -> dict[str, Any]:
    took_s = after.at_s - before.at_s

    def per_s(new: dict[str, float], old: dict[str, float], *names: str) -> float:
        return sum(new.get(name, 0.0) - old.get(name, 0.0) for name in names) / took_s

    cpu = {part: per_s(after.cpu_s, before.cpu_s, *names) for part, names in PARTS.items()}
    seconds = after.probe["seconds"], before.probe["seconds"]
    cpu |= {part: per_s(*seconds, part) for part in ("decode", "bgr", "gate", "detect", "image")}
    cpu["all"] = per_s(after.cpu_s, before.cpu_s, "all")
    cpu["rest"] = cpu["all"] - sum(value for part, value in cpu.items() if part != "all")
    looks = after.probe["calls"]["detect"] - before.probe["calls"]["detect"]
    return {"took_s": took_s, "cpu": cpu, "looks": looks}


def measure_baseline(scene: str, rate_fps: int, h264: Path, folder: Path, *, seconds: float) -> dict[str, Any]:
    """The loop like the original's over the same video."""
    run = folder / "original"
    run.mkdir(parents=True)
    with stage.s3_stand_in(folder / "s3") as s3_environment:
        env = {**os.environ, **s3_environment, **stage.camera_environment(h264, folder / "camera.log")}
        url = "tcp://127.0.0.1:8899"
        camera = subprocess.Popen(stage.camera_command(frame_rate_fps=rate_fps, output=url), env=env)
        command = [sys.executable, str(ROOT / "bench" / "original_loop.py"), url, str(ROOT / "models" / "yolov5n.pt")]
        loop = subprocess.Popen([*command, str(run), *map(str, timing(scene))], env=env, stderr=subprocess.DEVNULL)
        try:
            frames = run / "frames"
            give_up_s = time.monotonic() + 60
            while not frames.exists():
                if time.monotonic() > give_up_s or loop.poll() is not None:
                    raise RuntimeError("the baseline does not start")
                time.sleep(0.1)
            time.sleep(SETTLE_S)
            before, frames_before = stage.usage(loop.pid), int(frames.read_text() or 0)
            time.sleep(seconds)
            after, frames_after = stage.usage(loop.pid), int(frames.read_text() or 0)
        finally:
            for process in (loop, camera):
                process.kill()
                process.wait()
    took_s = after.at_s - before.at_s
    cpu = {"all": (after.cpu_s["all"] - before.cpu_s["all"]) / took_s}
    return {"took_s": took_s, "cpu": cpu, "looks": frames_after - frames_before, "peak_mb": after.peak_mb}


def row(scene: str, rate_fps: int, ours: dict[str, Any], baseline: dict[str, Any] | None) -> list[str]:
    cpu = ours["cpu"]
    parts = ("read", "decode", "bgr", "gate", "detect", "image", "write", "upload", "rest")
    return [
        f"{scene}, {rate_fps} fps",
        f"**{100 * cpu['all']:.1f} %**",
        *(f"{100 * cpu[part]:.2f}" for part in parts),
        f"{ours['looks'] / ours['took_s']:.1f} ({100 * ours['looks'] / max(1, ours['sent']):.0f} %)",
        f"{ours['peak_mb']:.0f}",
        "" if baseline is None else f"{100 * baseline['cpu']['all']:.0f} %",
        "" if baseline is None else f"{baseline['cpu']['all'] / cpu['all']:.1f}",
        "" if baseline is None else f"{baseline['looks'] / baseline['took_s']:.1f}",
        "" if baseline is None else f"{baseline['peak_mb']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rates", type=int, nargs="+", default=[10, 20, 30])
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--no-baseline", action="store_true")
    options = parser.parse_args()
    busy, rows, facts = busy_share(), [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for rate_fps in options.rates:
            for scene in options.scenes:
                folder = Path(temporary) / f"{scene}-{rate_fps}"
                folder.mkdir()
                h264 = folder / "scene.h264"
                stage.encode(h264, SCENES[scene], seconds=VIDEO_S, frame_rate_fps=rate_fps)
                ours = measure(scene, rate_fps, h264, folder, seconds=options.seconds)
                baseline = None
                if not options.no_baseline:
                    again = folder / "baseline"
                    baseline = measure_baseline(scene, rate_fps, h264, again, seconds=options.seconds / 2)
                rows.append(row(scene, rate_fps, ours, baseline))
                facts[f"{scene} {rate_fps}"] = {"ours": ours, "baseline": baseline}
    head = (
        "scene | all | read | decode | BGR | gate | detect | image | write | upload | rest | looks a second (of frames)"
    )
    head += " | peak MiB | baseline | times less | baseline looks a second | baseline peak MiB"
    lines = [
        f"{options.seconds:.0f} s a scene; {100 * busy:.0f} % of the machine was busy with other things before.",
        "CPU in per cent of one core, so also in hundredths of a CPU second per second of video.",
        "",
        *table(head.split(" | "), rows),
    ]
    write_section("daemon", lines, busy=busy, scenes=facts)


if __name__ == "__main__":
    main()
