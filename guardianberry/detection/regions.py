"""Where to look closely: crops of the frame around what moves, because small people vanish when the frame is shrunk.

At 640x480 the network sees the whole frame at 416x320: a person 50 px high is 32 px to it. A crop is shown at 1:1 or
enlarged up to 2.6 times, at the same cost. Only small movers get one: who is large is found in the whole frame.
"""

import math
from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np

from guardianberry.detection.motion import changed_pixels
from guardianberry.detection.postprocess import Array

LEAST_WIDTH_PX = 160  # a smaller crop has no more detail to show
CONTEXT = 2.0  # the crop is so many times as wide or high as what moves
LARGE_SHARE = 0.4  # of the frame's height: who is so high is found in the whole frame
MOST_MOVERS = 6  # the largest ones take turns
COMPARED_S = 0.35  # a step
CHANGE_LEVELS, NOISE_FACTOR = 5.0, 6.0  # grey levels of 255, and times the median change
JOINED_PX = (5, 3)  # height, width: legs and body of one person are one mover
LEAST_AREA = 20  # small pixels after that: less is noise
STEPS = 4  # sizes of crops; each costs one canvas in memory

Region = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the frame


class Movers:
    """What moves now: differences from the picture of a moment before.

    The motion gate's background would not do: while somebody is in view it keeps all that differs from the empty room.
    """

    def __init__(self) -> None:
        self._before: deque[tuple[float, Array]] = deque()

    def add(self, small: Array, time_s: float) -> None:
        """Every picture, in order."""
        if self._before and self._before[-1][1].shape != small.shape:
            self._before.clear()
        self._before.append((time_s, small))
        while len(self._before) > 1 and time_s - self._before[1][0] >= COMPARED_S:
            self._before.popleft()

    def find(self, frame_width_px: int) -> list[Region]:
        """Boxes in pixels of the frame around what moved since `COMPARED_S` before the last picture, largest first."""
        before, small = self._before[0][1], self._before[-1][1]
        moving = changed_pixels(before, small, levels=CHANGE_LEVELS, noise_factor=NOISE_FACTOR).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(moving, np.ones(JOINED_PX, np.uint8)))
        scale = frame_width_px / small.shape[1]
        found = sorted((row for row in stats[1:].tolist() if row[4] >= LEAST_AREA), key=lambda row: -row[4])
        return [
            (int(x * scale), int(y * scale), int((x + w) * scale), int((y + h) * scale))
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
