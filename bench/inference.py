"""Frame in, people out: the daemon's detector against PyTorch eager on the same checkpoint, boxes compared.

    python -m bench.inference [--rounds N]

Each contender is a process of its own; the two take turns on the same frames, a few frames each, so that whatever else
the machine does hits both. A ratio is taken per turn.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import detect_and_upload as script
from bench import offline
from bench.report import ROOT, busy_share, machine, spread, table, write_section

CHECKPOINT = ROOT / "models" / "yolov5n.pt"
SETTINGS: dict[str, Any] = {"conf_thres": script.CONF_THRES, "iou_thres": script.IOU_THRES, "max_det": script.MAX_DET}
FRAMES_A_TURN = 10
WARM_UP = 5


class Case(NamedTuple):
    width_px: int
    height_px: int
    threads: int
    precision: str = ""  # of ours; torch is f32


CASES = [
    *(
        Case(w, h, threads, precision)
        for w, h in ((640, 480), (320, 256))
        for threads in (1, 2)
        for precision in ("", "f32")
    ),
    Case(512, 384, 1),
    Case(416, 320, 1),
]


def ours(case: Case) -> Callable[[np.ndarray], list]:
    from guardianberry.detection.detector import Detector
    from guardianberry.detection.weights import find_graph

    detector = Detector(
        find_graph(CHECKPOINT.name, CHECKPOINT.parent),
        frame_width_px=case.width_px,
        frame_height_px=case.height_px,
        precision=case.precision,
        threads=case.threads,
        **SETTINGS,
    )
    return detector.find_people


def torch_eager(case: Case) -> Callable[[np.ndarray], list]:
    from bench.torch_eager import TorchEager

    return TorchEager(CHECKPOINT, threads=case.threads, **SETTINGS).find_people


def serve(
    make: Callable[[Case], Callable[[np.ndarray], list]], case: Case, frames: list[np.ndarray], ask: Connection
) -> None:
    """A contender: for each number that comes in, looks at so many frames; answers times, CPU time and boxes."""
    find_people, turn = make(case), itertools.cycle(frames)
    for _ in range(WARM_UP):
        find_people(next(turn))
    while count := ask.recv():
        times_ms, people, cpu_s = [], [], time.process_time()
        for frame in itertools.islice(turn, count):
            started_s = time.perf_counter()
            people.append(find_people(frame))
            times_ms.append((time.perf_counter() - started_s) * 1000)
        ask.send((times_ms, (time.process_time() - cpu_s) * 1000 / count, people))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    ask.send(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]


class Contender:
    def __init__(self, make: Callable[[Case], Any], case: Case, frames: list[np.ndarray]) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, far_end = context.Pipe()
        self._process = context.Process(target=serve, args=(make, case, frames, far_end))
        self._process.start()
        far_end.close()  # else a contender that dies would be waited for
        self.times_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.people: list[list] = []

    def turn(self) -> float:
        self._line.send(FRAMES_A_TURN)
        times_ms, cpu_ms, people = self._line.recv()
        self.times_ms += times_ms
        self.cpu_ms.append(cpu_ms)
        self.people += people
        return sorted(times_ms)[len(times_ms) // 2]

    def end(self) -> float:
        """Its largest resident memory in MiB."""
        self._line.send(0)
        peak_mb = self._line.recv()
        self._process.join(10)
        return peak_mb


def some_frames(width_px: int, height_px: int) -> list[np.ndarray]:
    """Frames of the demo scene and, where they are at hand, of the CCTV clips, with and without people."""
    import cv2

    videos = [offline.SCENE, *sorted(offline.CLIPS.glob("*[CV]*.mp4"))]
    chosen = [frame.bgr for video in videos for frame in itertools.islice(offline.frames(video, frame_rate_fps=1), 24)]
    return [cv2.resize(frame, (width_px, height_px), interpolation=cv2.INTER_AREA) for frame in chosen]


def compare(a: list[list], b: list[list]) -> str:
    """How far the two contenders' people are apart, frame by frame, best score first."""
    far_px = far_score = 0.0
    different = sum(len(mine) != len(theirs) for mine, theirs in zip(a, b, strict=True))
    for mine, theirs in zip(a, b, strict=True):
        for p in mine:
            nearest = min(theirs, key=lambda q, p=p: max(abs(np.subtract(p[:4], q[:4]))), default=None)
            if nearest is not None and len(mine) == len(theirs):
                far_px = max(far_px, float(max(abs(np.subtract(p[:4], nearest[:4])))))
                far_score = max(far_score, abs(p[4] - nearest[4]))
    return f"{different} of {len(a)} frames with another count; within {far_px:.2g} px, {far_score:.2g} score"


def run(case: Case, rounds: int) -> tuple[list[str], dict[str, float]]:
    """The case's row of the table, and its medians."""
    frames = some_frames(case.width_px, case.height_px)
    contenders = [Contender(make, case, frames) for make in (ours, torch_eager)]
    mine, theirs = contenders
    ratios = []
    for index in range(rounds):
        turns = {id(c): c.turn() for c in (contenders if index % 2 else contenders[::-1])}
        ratios.append(turns[id(theirs)] / turns[id(mine)])
    boxes = compare(mine.people[: len(frames)], theirs.people[: len(frames)])
    cpu = [b / a for a, b in zip(mine.cpu_ms, theirs.cpu_ms, strict=True)]
    peak_mine_mb, peak_theirs_mb = mine.end(), theirs.end()
    medians = {"ours_ms": mine.times_ms, "eager_ms": theirs.times_ms, "times_faster": ratios}
    row = [
        f"{case.width_px}x{case.height_px}",
        str(case.threads),
        case.precision or "best",
        spread(mine.times_ms, 1),
        spread(theirs.times_ms, 1),
        f"**{spread(ratios, 1)}**",
        spread(cpu, 1),
        f"{peak_mine_mb:.0f} / {peak_theirs_mb:.0f}",
        boxes,
    ]
    return row, {name: statistics.median(values) for name, values in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if not CHECKPOINT.is_file():
        raise SystemExit(f"{CHECKPOINT} is missing: start the daemon once with WEIGHTS = {CHECKPOINT.name!r}")
    os.environ["PYTHONWARNINGS"] = "ignore"
    head = ["input", "threads", "precision", "ours, ms", "torch eager, ms", "times faster", "CPU times less"]
    rows, medians, busy = [], {}, busy_share()
    for case in CASES:
        print(case, flush=True)
        row, facts = run(case, options.rounds)
        rows.append(row)
        medians[" ".join(row[:3])] = facts
    lines = [
        f"{machine()}. {100 * busy:.0f} % of it was busy with other things before. Medians, and extremes in brackets.",
        "",
        *table([*head, "peak memory, MiB", "boxes"], rows),
    ]
    write_section("inference", lines, busy=busy, medians=medians)


if __name__ == "__main__":
    main()
