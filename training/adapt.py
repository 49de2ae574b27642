"""Trains the night adapter of the official YOLOv5n: the same network, from the official weights, at night.

    python -m training.adapt --official ../shared/weights/yolov5n.pt --shards ../shared/train/people-*.tar \
        --night ../shared/night/night_train.tar --run training/runs/night --minutes 50

The official network looks at the clean picture, the student at a night version of it, and the student's score in each
cell (objectness times person) is drawn to the official one's. Pictures without people have 0 as the target. Real night
pictures have labels as well. Batch norm keeps the official statistics. One process, one thread: run two with different
seeds and average what they learnt (`training.adapter --average`).
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from guardianberry.detection.yolov5 import Model, fuse, keep_person_only, load_checkpoint
from training.adapt_data import Kind, View, plan_batch, prepare
from training.adapt_validation import validate
from training.data import Dataset
from training.loss import LEVEL_BALANCE, TEACHER_BOX_MIN_SCORE, Assigned, assign, by_cell, ciou, decode
from training.trainer import Average, half_weights, save

log = logging.getLogger(__name__)

RATE = 1e-4  # AdamW; falls as a cosine to FINAL_RATE_SHARE of it
FINAL_RATE_SHARE = 0.02
WARM_UP_BATCHES = 100
CLIP_NORM = 1.0
BOX_GAIN, TEACHER_BOX_GAIN, FEATURE_GAIN = 0.004, 0.004, 0.01
FEATURE_LAYERS = (17, 20, 23)  # what the heads look at
SAVE_EVERY_S, VALIDATE_EVERY_S = 240.0, 1000.0
LONGEST_LOG_SCORE = -1e-4  # keeps 1 - score away from 0


def score_loss(cells: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of objectness times person against `target`, mean over the cells, less the target's entropy."""
    log_score = (logsigmoid(cells[..., 4]) + logsigmoid(cells[..., 5])).clamp(max=LONGEST_LOG_SCORE)
    log_rest = torch.log1p(-log_score.exp())
    entropy = -(torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target))
    return (-(target * log_score + (1 - target) * log_rest) - entropy).mean()


def _label_targets(cells: Tensor, target: Tensor, found: Assigned, counts: Tensor) -> Tensor:
    """The labels' box loss; where labels count, `target` is raised, in place, to the IoU that is reached."""
    iou = ciou(decode(cells[found.image, found.anchor, found.row, found.column], found.anchor_sizes), found.boxes)
    reached = torch.where(counts[found.image], iou.detach().clamp(0), 0.0)
    order = reached.argsort()
    where = tuple(index[order] for index in (found.image, found.anchor, found.row, found.column))
    target[where] = torch.maximum(target[where], reached[order])
    return ((1 - iou) * counts[found.image]).sum() / counts[found.image].sum().clamp(min=1)


class Batch(NamedTuple):
    """What one step needs. Images are RGB, uint8 [n, 3, h, w]."""

    clean: Tensor
    night: Tensor
    labels: Tensor  # [n, 5]: image, centre x, y, w, h as fractions
    labels_count: Tensor  # bool [images]: where somebody is, labels say it beside the teacher
    nobody: Tensor  # bool [images]: nobody is there, whatever the teacher says
    same_scene: Tensor  # bool [images]: the teacher sees more than the student, so maps can be compared


def losses(heads: list[Tensor], taught: list[Tensor], batch: Batch, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Score loss and box loss of one batch, summed over the levels."""
    score_sum = box_sum = heads[0].new_zeros((), dtype=torch.float32)
    for level, raw in enumerate(heads):
        cells, told = by_cell(raw), by_cell(taught[level])
        height, width = cells.shape[2:4]
        target = told[..., 4].sigmoid() * told[..., 5].sigmoid()
        target = target * ~batch.nobody.view(-1, 1, 1, 1)
        sure = (target > TEACHER_BOX_MIN_SCORE).nonzero(as_tuple=True)
        if len(sure[0]):
            sizes, weights = anchors[level][sure[1]], target[sure]
            loss = 1 - ciou(decode(cells[sure], sizes), decode(told[sure], sizes))
            box_sum = box_sum + TEACHER_BOX_GAIN * (loss * weights).sum() / weights.sum()
        scale = torch.tensor((1, width, height, width, height))
        found = assign(batch.labels * scale, anchors[level], height=height, width=width)
        if len(found.image):
            box_sum = box_sum + BOX_GAIN * _label_targets(cells, target, found, batch.labels_count)
        score_sum = score_sum + LEVEL_BALANCE[level] * score_loss(cells, target)
    return score_sum, box_sum


def forward(model: Model, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Raw heads and the maps of FEATURE_LAYERS."""
    outputs: list = []
    for number, layer in enumerate(model.model):
        sources = [layer.f] if isinstance(layer.f, int) else layer.f
        inputs = [x if number + j < 0 else outputs[number + j] if j < 0 else outputs[j] for j in sources]
        outputs.append(layer(inputs[0] if isinstance(layer.f, int) else inputs))
    return outputs[-1], [outputs[i] for i in FEATURE_LAYERS]


def feature_loss(ours: list[Tensor], theirs: list[Tensor], chosen: Tensor) -> Tensor:
    """Share of the variance of the teacher's maps that is missed, over the chosen images."""
    parts = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = a[chosen].float(), b[chosen].float()
        parts.append((a - b).pow(2).mean() / (b.var((0, 2, 3)).mean() + 1e-3))
    return torch.stack(parts).mean()


def freeze_statistics(model: Model) -> None:
    """Batch norm uses and keeps the statistics it came with; its scale and shift still learn."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class Adaptation:
    """The state of one run: `step` per batch, `progress` 0 to 1 by CPU time, so that a run may be paused."""

    def __init__(self, official: Path, *, minutes: float, rate: float, start: Path | None = None) -> None:
        self.seconds, self.rate = minutes * 60, rate
        self.model = keep_person_only(load_checkpoint(official)).to(memory_format=torch.channels_last).train()
        self.teacher = fuse(deepcopy(self.model).eval()).requires_grad_(False).bfloat16()
        self.model.requires_grad_(True)
        if start:
            weights = torch.load(start, map_location="cpu", weights_only=True)
            self.model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        freeze_statistics(self.model)
        self.average = Average(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.0, fused=True)
        self.batches_done, self.begun_s = 0, time.process_time()

    @property
    def progress(self) -> float:
        return min((time.process_time() - self.begun_s) / self.seconds, 1.0)

    def step(self, batch: Batch) -> tuple[float, float, float]:
        """One batch into the weights; returns score, box and feature loss."""
        share = FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * (1 + math.cos(math.pi * self.progress)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share * min((self.batches_done + 1) / WARM_UP_BATCHES, 1)
        with torch.no_grad():
            taught, their_maps = forward(self.teacher, batch.clean.to(torch.bfloat16) / 255)
        with torch.autocast("cpu", torch.bfloat16):
            heads, our_maps = forward(self.model, batch.night.float() / 255)
        score, box = losses(heads, taught, batch, self.model.detect.anchors)
        maps = feature_loss(our_maps, their_maps, batch.same_scene)
        total = score + box + FEATURE_GAIN * (1 - self.progress) * maps
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.average.update(self.model)
        self.batches_done += 1
        return score.item(), box.item(), maps.item()


def as_batch(views: list[View], *, all_labels: bool) -> Batch:
    """Prepared pictures as tensors. With `all_labels` labels of day pictures made into night count too."""
    rows = []
    for number, view in enumerate(views):
        height_px, width_px = view.clean.shape[:2]
        low, high = view.boxes[:, :2], view.boxes[:, 2:]
        row = np.concatenate(((low + high) / 2, high - low), 1) / np.array((width_px, height_px) * 2, np.float32)
        rows.append(np.concatenate((np.full((len(row), 1), number), row), 1).astype(np.float32))
    clean, night = (np.stack([v[i][:, :, ::-1] for v in views]) for i in (0, 1))
    kinds = [view.kind for view in views]
    counting = {Kind.REAL_PEOPLE, Kind.NIGHT_PEOPLE} if all_labels else {Kind.REAL_PEOPLE}
    return Batch(
        torch.from_numpy(clean).permute(0, 3, 1, 2), torch.from_numpy(night).permute(0, 3, 1, 2),
        torch.from_numpy(np.concatenate(rows)),
        torch.tensor([kind in counting for kind in kinds]), torch.tensor([kind.nobody for kind in kinds]),
        torch.tensor([not kind.real for kind in kinds]),
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    shards, night = Dataset(args.shards, args.cache), Dataset([args.night], args.cache)
    adaptation = Adaptation(args.official, minutes=args.minutes, rate=args.rate, start=args.start)
    rng, sums, saved_s = np.random.default_rng(args.seed), np.zeros(4), time.monotonic()
    validated_s = saved_s
    pools = plan_batch(shards, night)
    while adaptation.progress < 1:
        views = prepare(pools, shards, night, rng)
        sums += (*adaptation.step(as_batch(views, all_labels=args.all_labels)), 1)
        now_s = time.monotonic()
        if now_s - saved_s > SAVE_EVERY_S or adaptation.progress >= 1:
            save(args.run / "last.pt", half_weights(adaptation.average.model))
            log.info(
                "%4.0f%% batch %d score %.5f box %.4f maps %.3f",
                *(adaptation.progress * 100, adaptation.batches_done, *(sums[:3] / sums[3])),
            )
            sums, saved_s = np.zeros(4), now_s
        if now_s - validated_s > VALIDATE_EVERY_S or adaptation.progress >= 1:
            log.info("%s", validate(adaptation.average.model, shards, night))
            validated_s = time.monotonic()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.adapt", description="Trains the night adapter.")
    add = parser.add_argument
    add("--official", type=Path, required=True, help="the official yolov5n.pt")
    add("--shards", type=Path, nargs="+", required=True, help="tars of day pictures and labels")
    add("--night", type=Path, required=True, help="tar of real night pictures and labels")
    add("--run", type=Path, default=Path("training/runs/night"), help="folder to write to")
    add("--cache", type=Path, default=Path("training/runs/cache"), help="folder for decoded images")
    add("--start", type=Path, help="last.pt of an earlier run, to go on from in a new schedule")
    add("--minutes", type=float, default=50, help="length of the schedule, of CPU time")
    add("--rate", type=float, default=RATE, help="learning rate at its peak")
    add("--all-labels", action="store_true", help="labels of day pictures count at night, not the teacher alone")
    add("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    args.run.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    run(args)


if __name__ == "__main__":
    main()
