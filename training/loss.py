"""YOLOv5's loss for one class (CIoU and objectness), and what a teacher with the same anchors adds to it.

Student and teacher answer for the same cells and anchors, so their heads are compared cell by cell:
* objectness: where a label is assigned the target is the IoU reached, as in YOLOv5; everywhere the teacher's score
  (objectness x person) is a lower bound of the target, which also covers people whom nobody labelled. In a run that
  goes on from another's weights the teacher's score is the whole target: labels are wrong more often than it is;
* boxes: where the teacher is sure, the student's box is drawn to the teacher's by CIoU;
* features: the maps inside the two networks have the same shapes, and the student's are drawn to the teacher's; at
  first block by block, each fed with the teacher's maps (see forward_with_features), then through the whole network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from guardianberry.detection.yolov5 import Model

BOX_GAIN = 0.05
OBJECTNESS_GAIN = 1.0  # YOLOv5: 1.0 at 640 px, falling with the square of the size
LEVEL_BALANCE = (4.0, 1.0, 0.4)  # YOLOv5's, finest level first
ANCHOR_RATIO_MAX = 4.0  # a label goes to the anchors whose sides are within this factor of its own
TEACHER_BOX_MIN_SCORE = 0.25
# Ends of the blocks between which maps are compared. Each block is several convolutions deep: only what it does is
# taught, and what happens inside, the student's weights, is its own.
FEATURE_LAYERS = (2, 4, 6, 9, 13, 17, 20, 23)
LARGE_MAP_ROWS = 32  # of larger maps every other row and column will do


class LossParts(NamedTuple):
    """The sum to minimise, and its parts for the log."""

    total: Tensor
    box: float
    objectness: float
    teacher_box: float
    features: float


def ciou(a: Tensor, b: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Complete IoU (arXiv 1911.08287) of paired boxes [n, 4], each centre x, centre y, width, height."""
    a_low, a_high = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
    b_low, b_high = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    overlap = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(0).prod(1)
    iou = overlap / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - overlap + eps)
    hull = torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)
    distance = (a[:, :2] - b[:, :2]).pow(2).sum(1) / (hull.pow(2).sum(1) + eps)
    angle = torch.atan(b[:, 2] / (b[:, 3] + eps)) - torch.atan(a[:, 2] / (a[:, 3] + eps))
    aspect = 4 / math.pi**2 * angle.pow(2)
    with torch.no_grad():
        weight = aspect / (aspect - iou + 1 + eps)
    return iou - distance - aspect * weight


def by_cell(raw: Tensor, anchors: int = 3) -> Tensor:
    """A head's raw map [batch, anchors * outputs, height, width] as f32 [batch, anchors, height, width, outputs]."""
    batch, channels, height, width = raw.shape
    return raw.float().view(batch, anchors, channels // anchors, height, width).permute(0, 1, 3, 4, 2)


def decode(picked: Tensor, anchors: Tensor) -> Tensor:
    """Raw outputs [n, >= 4] as boxes in units of the stride: centre relative to the cell's corner, width, height."""
    half_open = picked[:, :4].sigmoid() * 2
    return torch.cat((half_open[:, :2] - 0.5, half_open[:, 2:].pow(2) * anchors), 1)


class Assigned(NamedTuple):
    """Labels given to cells of one level: where each goes, its box relative to that cell, and the anchor there."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    boxes: Tensor
    anchor_sizes: Tensor


def assign(labels: Tensor, anchors: Tensor, *, height: int, width: int) -> Assigned:
    """YOLOv5's build_targets for one level. `labels`: [n, 5] of image, centre x, y, w, h in units of the stride.

    Each label goes to every anchor of a like size, in its own cell and in the two neighbours nearest to its centre.
    """
    ratio = labels[None, :, 3:] / anchors[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(2) < ANCHOR_RATIO_MAX
    anchor, label = fits.nonzero(as_tuple=True)
    chosen = labels[label]
    centre = chosen[:, 1:3]
    inverse = torch.tensor((width, height), device=labels.device) - centre
    left, up = ((centre % 1 < 0.5) & (centre > 1)).T
    right, down = ((inverse % 1 < 0.5) & (inverse > 1)).T
    uses = torch.stack((torch.ones_like(left), left, up, right, down))
    steps = torch.tensor(((0, 0), (0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)), device=labels.device)
    step, pick = uses.nonzero(as_tuple=True)
    chosen, anchor = chosen[pick], anchor[pick]
    cell = (chosen[:, 1:3] - steps[step]).long()
    column, row = cell[:, 0].clamp(0, width - 1), cell[:, 1].clamp(0, height - 1)
    relative = chosen[:, 1:3] - torch.stack((column, row), 1)
    boxes = torch.cat((relative, chosen[:, 3:]), 1)
    return Assigned(chosen[:, 0].long(), anchor, row, column, boxes, anchors[anchor])


def teacher_scores(cells: Tensor) -> Tensor:
    """The score the daemon would give each cell: objectness, times the person class where there is one."""
    scores = cells[..., 4].sigmoid()
    return scores * cells[..., 5].sigmoid() if cells.shape[-1] > 5 else scores


def detection_loss(
    heads: list[Tensor],
    labels: Tensor,
    anchors: Tensor,
    teacher_heads: list[Tensor] | None = None,
    *,
    labels_score: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Box, objectness and teacher's box loss (unweighted sums over the levels).

    `heads`: raw maps, finest first. `labels`: [n, 5] of image, centre x, y, w, h as fractions of the picture.
    `anchors`: [levels, anchors, 2] in units of the stride. Without `labels_score` labels teach boxes only.
    """
    box_loss = objectness_loss = teacher_box_loss = heads[0].new_zeros((), dtype=torch.float32)
    for level, raw in enumerate(heads):
        cells = by_cell(raw)
        height, width = cells.shape[2:4]
        scale = torch.tensor((1, width, height, width, height), device=raw.device)
        found = assign(labels * scale, anchors[level], height=height, width=width)
        target = torch.zeros_like(cells[..., 4])
        where = (found.image, found.anchor, found.row, found.column)
        if len(found.image):
            iou = ciou(decode(cells[where], found.anchor_sizes), found.boxes)
            box_loss = box_loss + (1 - iou).mean()
            reached = iou.detach().clamp(0)
            order = reached.argsort()  # where two labels share a cell, the better fit is written last
            if labels_score:
                target[tuple(index[order] for index in where)] = reached[order]
        if teacher_heads is not None:
            taught = by_cell(teacher_heads[level])
            scores = teacher_scores(taught)
            target = torch.maximum(target, scores)
            teacher_box_loss = teacher_box_loss + _teacher_box_loss(cells, taught, scores, anchors[level])
        level_loss = binary_cross_entropy_with_logits(cells[..., 4], target)
        objectness_loss = objectness_loss + level_loss * LEVEL_BALANCE[level]
    return box_loss, objectness_loss, teacher_box_loss


def _teacher_box_loss(cells: Tensor, taught: Tensor, scores: Tensor, anchors: Tensor) -> Tensor:
    where = (scores > TEACHER_BOX_MIN_SCORE).nonzero(as_tuple=True)
    if not len(where[0]):
        return scores.new_zeros(())
    sizes, weights = anchors[where[1]], scores[where]
    loss = 1 - ciou(decode(cells[where], sizes), decode(taught[where], sizes))
    return (loss * weights).sum() / weights.sum()


def feature_loss(student: Mapping[int, Tensor], teacher: Mapping[int, Tensor]) -> Tensor:
    """The share of the teacher's variance that the student does not reproduce; mean over the layers.

    No clipping: the rare, large values are the ones that tell of people.
    """
    losses = []
    for number, ours in student.items():
        theirs = teacher[number]
        if theirs.shape[2] >= LARGE_MAP_ROWS:
            ours, theirs = ours[:, :, ::2, ::2], theirs[:, :, ::2, ::2]
        theirs = theirs.float()
        variance = theirs.var((0, 2, 3)).mean() + 1e-3
        losses.append((ours.float() - theirs).pow(2).mean() / variance)
    return torch.stack(losses).mean()


def forward_with_features(
    model: Model, x: Tensor, given: Mapping[int, Tensor] | None = None
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The raw heads, and the maps at the end of each block by the number of the layer.

    With `given`, each block works on those maps (the teacher's) and not on what the block before made of the picture,
    so that no gradient crosses from one block to another and each learns its own short task.
    """
    outputs: list[Any] = []
    given = given or {}
    for number, layer in enumerate(model.model):
        sources = [layer.f] if isinstance(layer.f, int) else layer.f
        places = [number - 1 if j == -1 else j for j in sources]
        inputs = [x if j < 0 else given.get(j, outputs[j]) for j in places]
        outputs.append(layer(inputs[0] if isinstance(layer.f, int) else inputs))
    return outputs[-1], {i: outputs[i] for i in FEATURE_LAYERS}
