"""How the night adapter does on what is held out of the training pictures: by day, made into night, real nights."""

from __future__ import annotations

import numpy as np
import torch

from guardianberry.detection.yolov5 import Model
from training.adapt_data import NOBODY_SOURCES, as_the_network_sees, night_split
from training.augment import letterbox
from training.data import Dataset, Example
from training.loss import by_cell, teacher_scores
from training.metrics import area_under_curve
from training.night import at_night

SIZE_PX = 416
FALSE_RATE = 0.03
CONF_THRES = 0.255


@torch.no_grad()
def best_scores(model: Model, frames: list[np.ndarray], *, batch: int = 8) -> np.ndarray:
    """The highest score in each of some BGR frames of one size."""
    best = []
    for start in range(0, len(frames), batch):
        pixels = np.stack([frame[:, :, ::-1] for frame in frames[start : start + batch]])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            heads = model(images)
        best.append(torch.stack([teacher_scores(by_cell(raw)).amax((1, 2, 3)) for raw in heads]).amax(0).numpy())
    return np.concatenate(best)


def recall_at(positive: np.ndarray, negative: np.ndarray, false_rate: float) -> float:
    """Share of the positives above the score that `false_rate` of the negatives reach."""
    return float((positive > np.quantile(negative, 1 - false_rate, method="higher")).mean())


def _line(name: str, scores: np.ndarray, people: np.ndarray) -> str:
    positive, negative = scores[people], scores[~people]
    return (
        f"{name}: AUC {area_under_curve(positive, negative):.4f} recall {recall_at(positive, negative, FALSE_RATE):.3f}"
        f" at {FALSE_RATE}, {(positive >= CONF_THRES).mean():.3f}/{(negative >= CONF_THRES).mean():.3f} at {CONF_THRES}"
    )


def validate(model: Model, shards: Dataset, night: Dataset) -> str:
    """One line a set. Held-out pictures only; the same pictures every time."""
    model.eval()
    held = [shards[i] for i in shards.split()[1][::2]]
    usable = [e for e in held if len(e.boxes) or e.name.rpartition("_")[2] in NOBODY_SOURCES]
    real = [night[i] for i in night_split(night)[1]]
    rng = np.random.default_rng(5)
    dark = [Example(e.name, as_the_network_sees(at_night(e.bgr, e.boxes, rng)), e.boxes) for e in usable]
    lines = []
    for name, examples in (("day", usable), ("made night", dark), ("real night", real)):
        frames = [letterbox(example, SIZE_PX, SIZE_PX).bgr for example in examples]
        people = np.array([len(example.boxes) > 0 for example in examples])
        lines.append(_line(name, best_scores(model, frames), people))
    return " | ".join(lines)
