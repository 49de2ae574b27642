"""Measures detectors on evaluation sets, through the daemon's own detector, and prints one Markdown table.

    python -m training.evaluate --sets ../shared/eval/*.tar -- ../shared/weights/yolov5n.pt models/guardianberry-n.xml

Each image is scaled, aspect kept, and centred on grey to the frame size, as a camera frame of that size would be.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from guardianberry.detection.conversion_child import convert_checkpoint
from guardianberry.detection.detector import Detector
from guardianberry.detection.weights import Graph
from training.augment import letterbox
from training.data import Example, read_tar
from training.metrics import Metrics, measure

TURNS = 60
FRAME_SIZES_PX = ((640, 480), (320, 256))  # width, height
LOWEST_SCORE = 0.001  # average precision wants the whole curve
IOU_THRES = 0.45  # the daemon's
MAX_DET = 300


class Row(NamedTuple):
    """One line of the table."""

    set_name: str
    frame_px: tuple[int, int]
    model_name: str
    metrics: Metrics


def as_graph(weights: Path, folder: Path) -> Graph:
    """An .xml as it is; a .pt converted into `folder`: a checkpoint of a run, or an official one."""
    if weights.suffix == ".xml":
        return Graph(weights, weights.name)
    out = folder / f"{weights.stem}.xml"
    if weights.name in ("best.pt", "last.pt"):
        from training.export import export_trained

        export_trained(weights, out)
    else:
        convert_checkpoint(weights, out, half=False)
    return Graph(out, weights.name)


def make_detector(
    graph: Graph, frame_px: tuple[int, int], *, precision: str, threads: int, conf_thres: float = LOWEST_SCORE
) -> Detector:
    return Detector(
        graph,
        frame_width_px=frame_px[0],
        frame_height_px=frame_px[1],
        conf_thres=conf_thres,
        iou_thres=IOU_THRES,
        max_det=MAX_DET,
        precision=precision,
        threads=threads,
    )


def measure_set(detector: Detector, examples: list[Example], frame_px: tuple[int, int], conf_thres: float) -> Metrics:
    """The detector on every image of a set, drawn into frames of one size."""
    found, truth = [], []
    for example in examples:
        frame = letterbox(example, *frame_px)
        people = np.array(detector.find_people(frame.bgr), np.float32).reshape(-1, 5)
        found.append(people)
        truth.append(frame.boxes)
    return measure(found, truth, conf_thres)


def evaluate(args: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        graphs = [as_graph(weights, Path(folder)) for weights in args.weights]
        for set_path in args.sets:
            examples = list(read_tar(set_path))
            for frame_px in FRAME_SIZES_PX:
                for graph in graphs:
                    detector = make_detector(graph, frame_px, precision=args.precision, threads=args.threads)
                    metrics = measure_set(detector, examples, frame_px, args.conf_thres)
                    yield Row(set_path.stem, frame_px, graph.model_name, metrics)


def time_in_turn(graphs: list[Graph], frame_px: tuple[int, int], *, precision: str, threads: int) -> list[float]:
    """Median ms from a frame of noise to its people, per graph; they take turns, so that others' load hits all."""
    ways = {"precision": precision, "threads": threads, "conf_thres": 0.255}
    detectors = [make_detector(graph, frame_px, **ways) for graph in graphs]
    frame = np.random.default_rng(0).integers(0, 256, (frame_px[1], frame_px[0], 3), np.uint8)
    spent_ms: list[list[float]] = [[] for _ in graphs]
    for _ in range(TURNS):
        for detector, spent in zip(detectors, spent_ms, strict=True):
            detector.find_people(frame)
            spent.append(detector.last_ms)
    return [statistics.median(spent) for spent in spent_ms]


def table(rows: list[Row], conf_thres: float) -> str:
    """Markdown; the frame is written height x width, as YOLOv5 does."""
    lines = [
        f"| set | frame (h x w) | model | AP50 | AP50-95 | recall at {conf_thres} | false rate at {conf_thres} | AUC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        m, (width_px, height_px) = row.metrics, row.frame_px
        lines.append(
            f"| {row.set_name} | {height_px}x{width_px} | {row.model_name} | {m.ap50:.3f} | {m.ap50_95:.3f} "
            f"| {m.recall:.3f} | {m.false_rate:.3f} | {m.auc:.4f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Measures detectors of people.")
    parser.add_argument("weights", type=Path, nargs="+", help=".xml graphs or .pt checkpoints")
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="tars of images and labels")
    parser.add_argument("--conf-thres", type=float, default=0.255, help="the daemon's threshold")
    parser.add_argument("--precision", default="f32", help='the same on every machine; "" for what this CPU does best')
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    print(table(list(evaluate(args)), args.conf_thres))
    with tempfile.TemporaryDirectory() as folder:
        graphs = [as_graph(weights, Path(folder)) for weights in args.weights]
        for frame_px in FRAME_SIZES_PX:
            times_ms = time_in_turn(graphs, frame_px, precision=args.precision, threads=args.threads)
            shares = ", ".join(f"{g.model_name} {t / times_ms[0]:.2f}" for g, t in zip(graphs, times_ms, strict=True))
            print(f"\nTime a frame at {frame_px[1]}x{frame_px[0]}, as a share of the first one's: {shares}.")


if __name__ == "__main__":
    main()
