"""The arithmetic around a YOLOv5 network: letterbox, decoding and non-maximum suppression."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from guardianberry.detection.darkness import brightened, is_dark

Array = NDArray[Any]
GRID_PX = 32  # the coarsest stride: sides of the network's input are multiples of it
GREY = 114  # what YOLOv5 pads with


class Person(NamedTuple):
    """A box in pixels of the frame, inside the frame, and the score, 0 to 1."""

    x1: float
    y1: float
    x2: float
    y2: float
    confidence: float


class Letterbox:
    """How a frame becomes the network's input, and how boxes come back.

    As `letterbox` in utils/augmentations.py (with auto=True) and `scale_boxes` in utils/general.py of YOLOv5, tag v7.0.
    The frame is scaled so that its long side is `long_side_px` (rounded up to a multiple of 32), then padded with grey
    to multiples of 32, not to a square.
    """

    def __init__(self, height_px: int, width_px: int, long_side_px: int) -> None:
        side_px = math.ceil(long_side_px / GRID_PX) * GRID_PX
        ratio = min(side_px / height_px, side_px / width_px)
        self.frame_px = (height_px, width_px)
        self.scaled_px = (max(round(height_px * ratio), 1), max(round(width_px * ratio), 1))
        pad_y_px, pad_x_px = ((side_px - scaled_px) % GRID_PX for scaled_px in self.scaled_px)
        self.top_px, self.left_px = round(pad_y_px / 2 - 0.1), round(pad_x_px / 2 - 0.1)
        self.input_px = (self.scaled_px[0] + pad_y_px, self.scaled_px[1] + pad_x_px)
        # As scale_boxes computes it: from the padded size, and with halves of pixels.
        self._gain = min(self.input_px[0] / height_px, self.input_px[1] / width_px)
        self._offset_px = (
            (self.input_px[1] - width_px * self._gain) / 2,
            (self.input_px[0] - height_px * self._gain) / 2,
        )
        self._canvas = None
        if self.input_px != self.frame_px:
            self._canvas = np.full((*self.input_px, 3), GREY, np.uint8)
            bottom_px, right_px = self.top_px + self.scaled_px[0], self.left_px + self.scaled_px[1]
            self._inner = self._canvas[self.top_px : bottom_px, self.left_px : right_px]

    def pack(self, frame: Array) -> Array:
        """[1, height, width, 3] for the network, a dark picture brightened; the frame itself is not changed.

        Without a copy, if the frame has the right size and is not dark. Else the next call may overwrite the array.
        """
        if self._canvas is None:
            if is_dark(frame):
                return brightened(frame)[None]
            return np.require(frame, np.uint8, ["C", "W"])[None]  # OpenVINO reads only writeable memory in place
        if self.scaled_px == self.frame_px:
            np.copyto(self._inner, frame)
        else:
            cv2.resize(frame, self.scaled_px[::-1], dst=self._inner, interpolation=cv2.INTER_LINEAR)
        if is_dark(self._inner):
            np.copyto(self._inner, brightened(self._inner))
        return self._canvas[None]

    def unpack(self, boxes: Array) -> Array:
        """Corner boxes [n, 4] from the network's input back to the frame, clipped to it."""
        x_px, y_px = self._offset_px
        height_px, width_px = self.frame_px
        boxes = (boxes - np.array([x_px, y_px, x_px, y_px], np.float32)) / np.float32(self._gain)
        return np.clip(boxes, 0, np.array([width_px, height_px, width_px, height_px], np.float32))


class Head:
    """Decodes one raw head map [1, anchors * outputs, rows, columns], as `Detect` in models/yolo.py of YOLOv5 v7.0.

    `outputs` is 6 an anchor (x, y, w, h, objectness, person), or 5 where objectness alone is the score.
    """

    def __init__(self, stride_px: int, anchors_px: Array, outputs: int) -> None:
        self._stride_px, self._anchors_px, self._outputs = stride_px, anchors_px, outputs

    def decode(self, raw: Array, conf_thres: float) -> Array:
        """[n, 5]: centre x, y, width, height in input pixels, and the score, where that is above `conf_thres`."""
        _, _, rows, columns = raw.shape
        maps = raw.reshape(len(self._anchors_px), self._outputs, rows, columns)
        # score = objectness * class <= objectness: one comparison of raw values leaves a handful of cells to decode.
        anchor, row, column = np.nonzero(maps[:, 4] > _logit(conf_thres))
        values = maps[anchor, :, row, column].astype(np.float32)
        values = 0.5 * (np.tanh(0.5 * values) + 1)  # the sigmoid, in a form that cannot overflow
        score = values[:, 4] if self._outputs == 5 else values[:, 4] * values[:, 5]
        cell = np.stack((column, row), 1).astype(np.float32)
        centre = (values[:, :2] * 2 - 0.5 + cell) * self._stride_px
        size = (values[:, 2:4] * 2) ** 2 * self._anchors_px[anchor]
        return np.concatenate((centre, size, score[:, None]), 1)[score > conf_thres]


def suppress(corners: Array, iou_thres: float, max_det: int) -> list[int]:
    """Non-maximum suppression: indices of the boxes that stay, at most `max_det`. `corners` is sorted, best first.

    A box goes when it overlaps a better one that stays by more than `iou_thres` (intersection over union).
    """
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    remaining = np.arange(len(corners))
    kept: list[int] = []
    while len(remaining) and len(kept) < max_det:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        other = corners[remaining]
        sides = np.minimum(corners[best, 2:], other[:, 2:]) - np.maximum(corners[best, :2], other[:, :2])
        shared = np.clip(sides, 0, None).prod(1)
        remaining = remaining[shared <= iou_thres * (areas[best] + areas[remaining] - shared)]
    return kept


def _logit(probability: float) -> float:
    if not 0 < probability < 1:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))
