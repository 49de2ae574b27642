"""What the motion gate saves, and what it costs: inferences, time a frame, and delay of every event's start.

    python -m bench.motion [VIDEO ...]

Plays the demo scene and the clips of ../shared/clips twice through recorder and detector, once with an inference on
every frame and once through the gate. No event may be lost, and none may start more than a few frames later.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import detect_and_upload as script
from bench import offline
from bench.report import spread, table, write_section
from guardianberry.detection.motion import MotionGate


def gate_times_ms(seen: list[offline.Seen]) -> list[float]:
    gate, times_ms = MotionGate(inference_at_least_every_s=script.INFERENCE_AT_LEAST_EVERY_S), []
    for time_s, _, frame in seen:
        started_s = time.perf_counter()
        gate.needs_inference(frame.luma(), time_s, attentive=False)
        times_ms.append((time.perf_counter() - started_s) * 1000)
    return times_ms


def delays(without: offline.Outcome, through: offline.Outcome) -> str:
    if len(without.starts_s) != len(through.starts_s):
        return f"{len(without.starts_s) - len(through.starts_s):+d} EVENTS"
    late_s = [b - a for a, b in zip(without.starts_s, through.starts_s, strict=True)]
    return ", ".join(f"{value:+.1f} s" for value in late_s) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO")
    videos = parser.parse_args().videos or [offline.SCENE, *sorted(offline.CLIPS.glob("*.mp4"))]
    finder, rows, all_ms = offline.detector(), [], []
    for video in videos:
        for rate_fps in (10, 30) if video == offline.SCENE else (10,):
            seen = offline.see(finder, video, frame_rate_fps=rate_fps)
            without = offline.play(seen, gate=None)
            through = offline.play(seen, gate=MotionGate(inference_at_least_every_s=script.INFERENCE_AT_LEAST_EVERY_S))
            times_ms = gate_times_ms(seen)
            all_ms += times_ms
            rows.append(
                [
                    f"{video.name}, {rate_fps} fps",
                    str(sum(bool(s.confidences) for s in seen)),
                    f"{through.inferences} of {through.frames}",
                    f"{100 * (1 - through.inferences / max(1, through.frames)):.0f} %",
                    str(len(without.starts_s)),
                    delays(without, through),
                    f"{statistics.median(times_ms):.2f}",
                ]
            )
    head = [
        "video",
        "frames with people",
        "inferences",
        "inferences saved",
        "events",
        "start later by",
        "gate, ms a frame",
    ]
    lines = [
        f"INFERENCE_AT_LEAST_EVERY_S {script.INFERENCE_AT_LEAST_EVERY_S}, {finder.model_name}.",
        "",
        *table(head, rows),
    ]
    lines += ["", f"Gate, ms a frame over everything: {spread(all_ms)}."]
    write_section("motion", lines)


if __name__ == "__main__":
    main()
