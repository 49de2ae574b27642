"""The state of a training run: networks, optimiser, schedule; what one batch changes and what a checkpoint holds."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guardianberry.detection.yolov5 import (
    COCO_ANCHORS_PX,
    STRIDES_PX,
    Detect,
    Model,
    build,
    fuse,
    keep_person_only,
    load_checkpoint,
)
from training.batches import Picture
from training.loss import (
    BOX_GAIN,
    OBJECTNESS_GAIN,
    LossParts,
    detection_loss,
    feature_loss,
    forward_with_features,
)
from training.team import Team

# Optimisation
BLOCKS_RATE = 4e-3  # AdamW; the peak while each block learns on its own
WHOLE_RATE = 1.5e-3  # the peak after that, unless another is asked for
FINAL_RATE_SHARE = 0.02  # of its peak to which the rate falls, as a cosine, by the end of either part
WEIGHT_DECAY = 0.02  # on the convolutions' weights only
WARM_UP_BATCHES = 100
WHOLE_WARM_UP = 0.02  # share of the schedule after the blocks: the whole network must not be shaken by the first steps
CLIP_NORM = 10.0
EMA_DECAY = 0.999  # reached gradually: the average must not remember the random start
EMA_RAMP_BATCHES = 1000
TEACHER_BOX_GAIN = 0.025
BLOCKS_UNTIL = 0.35  # share of the schedule in which each block learns on its own, from the teacher's maps
FEATURE_GAIN = 0.8  # then falls to 0 as a cosine until FEATURES_UNTIL, so that the end belongs to the labels
FEATURES_UNTIL = 0.97
STATISTICS_UNTIL = 0.75  # share of the schedule after which batch norm keeps what it knows, as it will when it is used


class Average:
    """Exponential moving average of a network's weights and statistics; this is the network that is shipped."""

    def __init__(self, model: Model) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        self.updates += 1
        decay = EMA_DECAY * (1 - math.exp(-self.updates / EMA_RAMP_BATCHES))
        ours, theirs = self.model.state_dict(), model.state_dict()
        names = [name for name, tensor in ours.items() if tensor.dtype.is_floating_point]
        torch._foreach_lerp_([ours[n] for n in names], [theirs[n] for n in names], 1 - decay)


def learning_rate(progress: float, batches_done: int, *, blocks_until: float, whole_rate: float = WHOLE_RATE) -> float:
    """Two cosines, one for the blocks and one for the whole network; the second is all there is without blocks."""
    begin, end, peak = blocks_until, 1.0, whole_rate
    if progress < blocks_until:
        begin, end, peak = 0.0, blocks_until, BLOCKS_RATE
    share = min((progress - begin) / (end - begin), 1)
    cosine = FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * (1 + math.cos(math.pi * share)) / 2
    rate = peak * cosine * min((batches_done + 1) / WARM_UP_BATCHES, 1)
    return rate * min((progress - begin) / WHOLE_WARM_UP + 0.05, 1) if begin else rate


def feature_gain(progress: float, *, blocks_until: float) -> float:
    share = (progress - blocks_until) / (FEATURES_UNTIL - blocks_until)
    return FEATURE_GAIN * (1 + math.cos(math.pi * min(max(share, 0), 1))) / 2


def make_optimizer(model: Model) -> torch.optim.Optimizer:
    decayed = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=WHOLE_RATE, fused=True)


def bias_heads(detect: Detect) -> None:
    """Start objectness at 8 objects a 640 px image, as YOLOv5 does (arXiv 1708.02002 section 3.3)."""
    for head, stride in zip(detect.m, STRIDES_PX, strict=True):
        bias = head.bias.detach().view(detect.na, -1).clone()  # type: ignore[operator]
        bias[:, 4] += math.log(8 / (640 / stride) ** 2)
        head.bias = nn.Parameter(bias.view(-1))


class Trainer:
    """The state of a run: what a checkpoint holds and what one batch changes."""

    def __init__(
        self,
        teacher_path: Path | None,
        anchors_px: tuple = COCO_ANCHORS_PX,
        *,
        seed: int,
        device: torch.device,
        epochs: int,
        minutes: float = 0,
        rounds_per_epoch: int = 1,
        team: Team | None = None,
        start: Path | None = None,
        whole_rate: float = WHOLE_RATE,
    ) -> None:
        self.team = team or Team()
        self.device, self.minutes, self.seed, self.whole_rate = device, minutes, seed, whole_rate
        self.rounds, self.rounds_per_epoch = epochs * rounds_per_epoch, rounds_per_epoch
        model = build(nc=1, anchors_px=anchors_px, seed=seed)
        bias_heads(model.detect)
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        if start:
            self.model.load_state_dict(torch.load(start, map_location=device, weights_only=True))
        self.labels_score = start is None or teacher_path is None
        self.blocks_until = BLOCKS_UNTIL if teacher_path and not start else 0.0
        self.average = Average(self.model)
        self.optimizer = make_optimizer(self.model)
        self.anchors = self.model.detect.anchors
        self.teacher = self._load_teacher(teacher_path) if teacher_path else None
        self.round = self.batches_in_round = self.batches_done = 0
        self.round_batches = 1
        self.round_start_progress = self.elapsed_s = 0.0
        self.best_fitness = -1.0
        self.stopping = False
        self.history: list[dict[str, float]] = []

    def _load_teacher(self, path: Path) -> Model:
        """In bf16 and fused. Its batches are the student's own, so that every cell has an answer."""
        teacher = fuse(keep_person_only(load_checkpoint(path))).requires_grad_(False)
        if not torch.allclose(teacher.detect.anchors.to(self.device).float(), self.anchors):
            raise SystemExit(f"{path.name} has other anchors than the student: it cannot teach cell by cell.")
        return teacher.to(self.device, torch.bfloat16).to(memory_format=torch.channels_last)

    @property
    def progress(self) -> float:
        """Share of the schedule done, 0 to 1: of the epochs, or of the minutes where a time budget was given."""
        if self.minutes:
            return self.elapsed_s / (self.minutes * 60)
        return (self.round + self.batches_in_round / self.round_batches) / self.rounds

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16)

    def step(self, picture: Picture, *, spent_s: float = 0.0, stop: bool = False) -> LossParts:
        """One batch forward, backward and into the weights. `spent_s` is the time since the last one ended.

        `stop` may be asked of any member of the team; `stopping` then tells all of them after the same batch.
        """
        rate = learning_rate(
            self.progress, self.batches_done, blocks_until=self.blocks_until, whole_rate=self.whole_rate
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = self._loss(picture)
        self.optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.elapsed_s, stopping = self.team.share(gradients, [self.elapsed_s + spent_s, float(stop)])
        self.stopping = stopping > 0
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        if self.team.leads:
            self.average.update(self.model)
        self.batches_in_round += 1
        self.batches_done += 1
        return parts

    def _loss(self, picture: Picture) -> LossParts:
        images = picture.images.to(self.device, non_blocking=True)
        labels = picture.labels.to(self.device, non_blocking=True)
        teacher_heads, taught = None, {}
        if self.teacher is not None:
            with torch.no_grad():
                teacher_heads, taught = forward_with_features(self.teacher, images.to(torch.bfloat16) / 255)
        given = taught if self.progress < self.blocks_until else {}
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(self.progress < STATISTICS_UNTIL)
        with self._autocast():
            heads, features = forward_with_features(self.model, images.float() / 255, given)
        box, objectness, teacher_box = detection_loss(
            heads, labels, self.anchors, teacher_heads, labels_score=self.labels_score
        )
        total = BOX_GAIN * box + OBJECTNESS_GAIN * objectness + TEACHER_BOX_GAIN * teacher_box
        mimicry = total.new_zeros(())
        if taught and self.progress < FEATURES_UNTIL:
            mimicry = feature_loss(features, taught)
            total = total + feature_gain(self.progress, blocks_until=self.blocks_until) * mimicry
        return LossParts(total, box.item(), objectness.item(), teacher_box.item(), mimicry.item())

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "average": self.average.model.state_dict(),
            "average_updates": self.average.updates, "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in _PLAIN_STATE},
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.updates = state["average_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        for name in _PLAIN_STATE:
            setattr(self, name, state[name])


_PLAIN_STATE = (
    "round", "batches_in_round", "batches_done", "round_batches", "round_start_progress", "elapsed_s", "best_fitness",
    "history", "seed",
)  # fmt: skip


def save(path: Path, value: object) -> None:
    """Written beside and renamed: a checkpoint on disk is always whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    os.replace(temporary, path)


def half_weights(model: Model) -> dict[str, Tensor]:
    """The weights in half precision, for a file small enough to keep (3.6 MB)."""
    return {k: v.half() if v.dtype.is_floating_point else v for k, v in model.state_dict().items()}
