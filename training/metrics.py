"""Average precision of boxes, and how well an image's best score tells images with people from those without."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IOU_THRESHOLDS = np.arange(0.5, 0.96, 0.05)  # COCO's: 0.50, 0.55 ... 0.95
RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's


class Metrics(NamedTuple):
    ap50: float
    ap50_95: float
    recall: float  # share of the images with people in which at least one is found at the threshold
    false_rate: float  # share of the images without people in which one is found at the threshold
    auc: float  # of the image's best score


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every box of `a` [n, 4] with every box of `b` [m, 4], x1 y1 x2 y2."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    overlap = (high - low).clip(0).prod(2)
    areas_a, areas_b = (boxes[:, 2:4] - boxes[:, :2] for boxes in (a, b))
    return overlap / (areas_a.prod(1)[:, None] + areas_b.prod(1)[None] - overlap + 1e-9)


def match(found: np.ndarray, truth: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which of `found` (highest score first) are right: each takes the best truth box that is still free, or none."""
    right = np.zeros(len(found), bool)
    if not len(found) or not len(truth):
        return right
    iou = iou_matrix(found, truth)
    for i in range(len(found)):
        best = int(iou[i].argmax())
        if iou[i, best] >= iou_threshold:
            right[i] = True
            iou[:, best] = -1
    return right


def average_precision(scores: np.ndarray, right: np.ndarray, truth_count: int) -> float:
    """Area under the precision-recall curve at COCO's 101 points of recall; 0 where there is nothing to find."""
    if not truth_count or not len(scores):
        return 0.0
    right = right[np.argsort(-scores, kind="stable")]
    true_positives = right.cumsum()
    recall = true_positives / truth_count
    precision = true_positives / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALL_POINTS, side="left")
    return float(np.append(envelope, 0.0)[places].mean())


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a random positive scores above a random negative; ties count one half."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / 2 / len(negative))


def measure(found: list[np.ndarray], truth: list[np.ndarray], conf_thres: float) -> Metrics:
    """All metrics of a set of images. `found`: [n, 5] x1 y1 x2 y2 score, highest first; `truth`: [m, 4]."""
    scores = np.concatenate([f[:, 4] for f in found])
    truth_count = sum(len(t) for t in truth)
    precisions = [
        average_precision(
            scores, np.concatenate([match(f, t, iou) for f, t in zip(found, truth, strict=True)]), truth_count
        )
        for iou in IOU_THRESHOLDS
    ]
    best = np.array([f[0, 4] if len(f) else 0.0 for f in found])
    has_people = np.array([len(t) > 0 for t in truth])
    return Metrics(
        ap50=precisions[0],
        ap50_95=float(np.mean(precisions)),
        recall=float((best[has_people] >= conf_thres).mean()) if has_people.any() else float("nan"),
        false_rate=float((best[~has_people] >= conf_thres).mean()) if (~has_people).any() else float("nan"),
        auc=area_under_curve(best[has_people], best[~has_people]),
    )
