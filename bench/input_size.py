"""How small the network's picture may be: who is still told from an empty room, and from how far away.

    python -m bench.input_size [WIDTH ...] [--weights NAME] [--eval FOLDER]

Each image of the evaluation sets is shown as the camera would show it (640x480, letterboxed) to the detector at several
input widths, in this CPU's best precision and in f32. Accuracy does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import detect_and_upload as script
from bench.report import ROOT, table, write_section
from guardianberry.detection.detector import Detector
from guardianberry.detection.weights import find_graph
from training.data import read_tar
from training.metrics import area_under_curve, average_precision, match

WIDTHS_PX = (640, 512, 416, 320, 256)
HEIGHTS_PX = (0, 32, 48, 64, 96, 128, 192, 480)  # of a person in the 640x480 frame
LOWEST_SCORE = 0.01


class Shown(NamedTuple):
    """One evaluation image as the camera shows it, with its people's boxes in the frame."""

    bgr: np.ndarray
    boxes: np.ndarray


class Result(NamedTuple):
    width_px: int
    precision: str
    accuracy: float  # of "person" or "no person" at CONF_THRES
    missed: float  # share of the images with people
    false: float  # share of the images without
    auc: float
    ap50: float
    found_by_height: list[float]


def show(bgr: np.ndarray, boxes: np.ndarray) -> Shown:
    height_px, width_px = script.FRAME_HEIGHT_PX, script.FRAME_WIDTH_PX
    scale = min(width_px / bgr.shape[1], height_px / bgr.shape[0])
    inner = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    inner = inner[:height_px, :width_px]
    top_px, left_px = (height_px - inner.shape[0]) // 2, (width_px - inner.shape[1]) // 2
    frame = np.zeros((height_px, width_px, 3), np.uint8)
    frame[top_px : top_px + inner.shape[0], left_px : left_px + inner.shape[1]] = inner
    return Shown(frame, boxes * np.float32(scale) + np.array([left_px, top_px, left_px, top_px], np.float32))


def evaluate(images: list[Shown], width_px: int, *, weights: str, precision: str) -> Result:
    detector = Detector(
        find_graph(weights, ROOT / "models"),
        frame_width_px=script.FRAME_WIDTH_PX,
        frame_height_px=script.FRAME_HEIGHT_PX,
        input_width_px=width_px,
        conf_thres=LOWEST_SCORE,
        iou_thres=script.IOU_THRES,
        max_det=script.MAX_DET,
        precision=precision,
        threads=1,
    )
    found = [np.array(detector.find_people(image.bgr), np.float32).reshape(-1, 5) for image in images]
    best = np.array([boxes[0, 4] if len(boxes) else 0.0 for boxes in found])
    has_people = np.array([len(image.boxes) > 0 for image in images])
    said_person = best >= script.CONF_THRES
    right = [match(boxes, image.boxes, 0.5) for boxes, image in zip(found, images, strict=True)]
    return Result(
        width_px,
        precision or "best",
        accuracy=float((said_person == has_people).mean()),
        missed=float((~said_person[has_people]).mean()),
        false=float(said_person[~has_people].mean()),
        auc=area_under_curve(best[has_people], best[~has_people]),
        ap50=average_precision(
            np.concatenate([boxes[:, 4] for boxes in found]),
            np.concatenate(right),
            sum(len(image.boxes) for image in images),
        ),
        found_by_height=recall_by_height(images, found),
    )


def recall_by_height(images: list[Shown], found: list[np.ndarray]) -> list[float]:
    """Share of the people of each height that are found at CONF_THRES, with half of the box right."""
    heights, hits = [], []
    for image, boxes in zip(images, found, strict=True):
        sure = boxes[boxes[:, 4] >= script.CONF_THRES]
        hits.extend(match(image.boxes, sure[:, :4], 0.4) if len(sure) else np.zeros(len(image.boxes), bool))
        heights.extend(image.boxes[:, 3] - image.boxes[:, 1])
    band = np.digitize(heights, HEIGHTS_PX) - 1
    return [float(np.mean(np.array(hits)[band == i])) if (band == i).any() else np.nan for i in range(7)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("widths", nargs="*", type=int, default=WIDTHS_PX)
    parser.add_argument("--weights", default=script.WEIGHTS)
    parser.add_argument("--eval", type=Path, default=ROOT.parent / "shared" / "eval")
    options = parser.parse_args()
    images = [show(ex.bgr, ex.boxes) for tar in sorted(options.eval.glob("*.tar")) for ex in read_tar(tar)]
    results = [
        evaluate(images, width_px, weights=options.weights, precision=precision)
        for width_px in options.widths
        for precision in ("", "f32")
    ]
    people = sum(len(image.boxes) for image in images)
    bands = [f"{low}-{high} px" for low, high in itertools.pairwise(HEIGHTS_PX)]
    lines = [
        f"{options.weights}, {len(images)} images with {people} people, score threshold {script.CONF_THRES}."
        " Columns in px: share of the people of that height in the 640x480 frame that are found.",
        "",
        *table(
            ["input", "precision", "right", "missed", "false", "AUC", "AP50", *bands],
            [
                [
                    f"{r.width_px}",
                    r.precision,
                    *(f"{100 * share:.1f} %" for share in (r.accuracy, r.missed, r.false)),
                    f"{r.auc:.3f}",
                    f"{r.ap50:.3f}",
                    *(f"{100 * share:.0f} %" for share in r.found_by_height),
                ]
                for r in results
            ],
        ),
    ]
    write_section(f"input_size_{Path(options.weights).stem}", lines)


if __name__ == "__main__":
    main()
