"""Do the anchors fit the data? YOLOv5's rule: keep those of COCO while they can reach 98 % of the boxes, else fit."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from guardianberry.detection.yolov5 import COCO_ANCHORS_PX
from training.data import Dataset
from training.loss import ANCHOR_RATIO_MAX

log = logging.getLogger(__name__)

MIN_RECALL = 0.98
MIN_SIDE_PX = 2.0
MIN_BOXES = 100  # fewer say nothing
KMEANS_ROUNDS = 30
EVOLUTION_ROUNDS = 1000

Anchors = tuple[tuple[tuple[float, float], ...], ...]


def box_sizes(dataset: Dataset, indexes: list[int], size_px: int) -> np.ndarray:
    """Widths and heights [n, 2] of all people, each image scaled to `size_px` on its long side."""
    sizes = [np.zeros((0, 2), np.float32)]
    for i in indexes:
        example = dataset[i]
        sizes.append((example.boxes[:, 2:] - example.boxes[:, :2]) * (size_px / max(example.bgr.shape[:2])))
    found = np.concatenate(sizes)
    return found[(found >= MIN_SIDE_PX).all(1)]


def closeness(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """[n, anchors]: 1 where box and anchor have the same sides, 1/4 where the worse side differs by a factor of 4."""
    ratio = sizes[:, None] / anchors[None]
    return np.minimum(ratio, 1 / ratio).min(2)


def best_possible_recall(sizes: np.ndarray, anchors: Any) -> float:
    """Share of the boxes that at least one anchor may be assigned to."""
    best = closeness(sizes, np.asarray(anchors, float).reshape(-1, 2)).max(1)
    return float((best > 1 / ANCHOR_RATIO_MAX).mean())


def _fitness(sizes: np.ndarray, anchors: np.ndarray) -> float:
    best = closeness(sizes, anchors).max(1)
    return float((best * (best > 1 / ANCHOR_RATIO_MAX)).mean())


def fit(sizes: np.ndarray, *, count: int = 9, seed: int = 0) -> np.ndarray:
    """`count` anchors [count, 2], smallest first: k-means on the sizes in units of their spread, then evolution."""
    rng = np.random.default_rng(seed)
    spread = sizes.std(0)
    points = sizes / spread
    centres = points[rng.choice(len(points), count, replace=False)]
    for _ in range(KMEANS_ROUNDS):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        groups = [points[nearest == i] for i in range(count)]
        centres = np.stack([g.mean(0) if len(g) else c for g, c in zip(groups, centres, strict=True)])
    best, sample = centres * spread, sizes[rng.permutation(len(sizes))[:5000]]
    best_fitness = _fitness(sample, best)
    for _ in range(EVOLUTION_ROUNDS):
        change = (rng.random(best.shape) < 0.9) * rng.random() * rng.standard_normal(best.shape) * 0.1 + 1
        candidate = (best * change.clip(0.3, 3)).clip(MIN_SIDE_PX)
        candidate_fitness = _fitness(sample, candidate)
        if candidate_fitness > best_fitness:
            best, best_fitness = candidate, candidate_fitness
    return best[best.prod(1).argsort()]


def choose(sizes: np.ndarray) -> Anchors:
    """COCO's anchors where they fit, else fitted ones; logs the recall of both."""
    if len(sizes) < MIN_BOXES:
        return COCO_ANCHORS_PX
    fitted = fit(sizes)
    coco_recall, fitted_recall = best_possible_recall(sizes, COCO_ANCHORS_PX), best_possible_recall(sizes, fitted)
    log.info("best possible recall: COCO's anchors %.4f, fitted anchors %.4f", coco_recall, fitted_recall)
    if coco_recall >= MIN_RECALL or coco_recall >= fitted_recall:
        return COCO_ANCHORS_PX
    log.info("fitted anchors are used: %s", fitted.round(1).tolist())
    levels = fitted.round(1).reshape(3, 3, 2).tolist()
    return tuple(tuple((width, height) for width, height in level) for level in levels)
