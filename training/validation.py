"""Metrics on the held-out images, in the training's own framework: quick, after every epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guardianberry.detection.yolov5 import Model
from training.augment import letterbox
from training.batches import as_picture, collate
from training.data import Dataset
from training.loss import by_cell, decode
from training.metrics import Metrics, iou_matrix, measure

VALIDATION_PX = 320
CONF_THRES = 0.255  # the daemon's default


def people_in(heads: list[Tensor], anchors: Tensor, *, image_px: tuple[int, int]) -> list[np.ndarray]:
    """Boxes [n, 5] of x1 y1 x2 y2 score for every image of a batch, after NMS, highest score first."""
    boxes, scores = [], []
    for level, raw in enumerate(heads):
        cells = by_cell(raw)
        batch, count, height, width, outputs = cells.shape
        sizes = anchors[level].view(1, count, 1, 1, 2).expand(batch, count, height, width, 2)
        box = decode(cells.reshape(-1, outputs), sizes.reshape(-1, 2)).view(batch, count, height, width, 4)
        ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        box[..., :2] += torch.stack((xs, ys), 2).to(box)
        boxes.append((box * (image_px[1] / width)).reshape(batch, -1, 4))
        scores.append(cells[..., 4].sigmoid().reshape(batch, -1))
    all_boxes, all_scores = torch.cat(boxes, 1).cpu().numpy(), torch.cat(scores, 1).cpu().numpy()
    return [_suppress(b, s) for b, s in zip(all_boxes, all_scores, strict=True)]


def _suppress(boxes: np.ndarray, scores: np.ndarray, *, lowest: float = 0.001, iou_thres: float = 0.45) -> np.ndarray:
    order = np.argsort(-scores)[:500]
    order = order[scores[order] > lowest]
    corners = np.concatenate((boxes[order, :2] - boxes[order, 2:] / 2, boxes[order, :2] + boxes[order, 2:] / 2), 1)
    iou, alive = iou_matrix(corners, corners), np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= iou[i, i + 1 :] <= iou_thres
    return np.concatenate((corners, scores[order, None]), 1)[alive]


@torch.no_grad()
def validate(model: Model, dataset: Dataset, indexes: list[int], device: torch.device, *, batch: int = 16) -> Metrics:
    """Metrics on the held-out images, each letterboxed to a square of VALIDATION_PX."""
    found: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    for start in range(0, len(indexes), batch):
        examples = [letterbox(dataset[i], VALIDATION_PX, VALIDATION_PX) for i in indexes[start : start + batch]]
        images = as_picture(*collate(examples)).images.to(device).float() / 255
        with torch.autocast(device.type, torch.bfloat16):
            heads = model(images)
        found += people_in(heads, model.detect.anchors, image_px=(VALIDATION_PX, VALIDATION_PX))
        truth += [example.boxes for example in examples]
    return measure(found, truth, CONF_THRES)


def fitness(metrics: Metrics) -> float:
    """What "best" means: finding the image with a person matters as much as finding the box."""
    return (metrics.ap50 + metrics.ap50_95) / 4 + metrics.auc / 2
