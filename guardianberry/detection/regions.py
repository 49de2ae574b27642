"""Where to look closely: crops of the frame around what moves, because small people vanish when the frame is shrunk.

At 640x480 the network sees the whole frame at 416x320: a person 50 px high is 32 px to it. A crop is shown at 1:1 or
enlarged up to 2.6 times, at the same cost. Only small movers get one: who is large is found in the whole frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from guardianberry.detection.postprocess import Array

LEAST_WIDTH_PX = 160  # a smaller crop has no more detail to show
CONTEXT = 2.0  # the crop is so many times as wide or high as what moves
LARGE_SHARE = 0.4  # of the frame's height: who is so high is found in the whole frame
MOST_MOVERS = 6  # the largest ones take turns
LEAST_AREA = 4  # small pixels: less is noise
STEPS = 4  # sizes of crops; each costs one canvas in memory

Region = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the frame


def movers(moving: Array, frame_width_px: int, frame_height_px: int) -> list[Region]:
    """Boxes around what moves, the largest first, in pixels of the frame. `moving`: bool, a smaller picture of it."""
    scale_x, scale_y = frame_width_px / moving.shape[1], frame_height_px / moving.shape[0]
    joined = cv2.dilate(moving.astype(np.uint8), np.ones((5, 3), np.uint8))  # legs and body of one person
    _, _, stats, _ = cv2.connectedComponentsWithStats(joined)
    found = sorted((row for row in stats[1:].tolist() if row[4] >= LEAST_AREA), key=lambda row: -row[4])
    return [
        (int(x * scale_x), int(y * scale_y), int((x + w) * scale_x), int((y + h) * scale_y))
        for x, y, w, h, _ in found[:MOST_MOVERS]
    ]


def crop_around(box: Sequence[float], frame_width_px: int, frame_height_px: int, input_width_px: int) -> Region | None:
    """The crop for a close look at `box`, of the frame's shape; None where the whole frame shows it as well."""
    width, height = box[2] - box[0], box[3] - box[1]
    if height > LARGE_SHARE * frame_height_px:
        return None
    widest_px = min(input_width_px, frame_width_px)
    wanted_px = CONTEXT * max(width, height * frame_width_px / frame_height_px)
    if wanted_px > widest_px or widest_px >= frame_width_px:
        return None
    least_px = min(LEAST_WIDTH_PX, widest_px)
    step_px = (widest_px - least_px) / (STEPS - 1)
    steps = math.ceil(max(0.0, wanted_px - least_px) / step_px) if step_px else 0
    crop_width_px = round(least_px + steps * step_px)
    crop_height_px = crop_width_px * frame_height_px // frame_width_px  # rounded up it could need another input
    left = _placed((box[0] + box[2]) / 2, crop_width_px, frame_width_px)
    top = _placed((box[1] + box[3]) / 2, crop_height_px, frame_height_px)
    return left, top, left + crop_width_px, top + crop_height_px


def _placed(middle_px: float, length_px: int, limit_px: int) -> int:
    return min(max(0, round(middle_px - length_px / 2)), limit_px - length_px)
