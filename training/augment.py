"""Cheap augmentation on uint8 BGR images: mosaic, scale, stretch, flip, HSV, grey. Labels follow the pixels.

Everything works on crops of the source, so no pixel is resized that does not reach the result; one image of 320 px
takes about 2 ms of one core, so that one loader process keeps up with the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from training.data import Example

GREY = 114  # what YOLOv5 pads with, and what the daemon's letterbox pads with
MIN_VISIBLE = 0.15  # share of a person's box that must remain in the picture for the label to stay
MIN_SIDE_PX = 3
STRETCH = 0.25  # widths and heights are scaled apart by up to e**0.25: many training images were stretched to squares
HSV_GAINS = (0.015, 0.7, 0.4)  # YOLOv5's
GREY_SHARE = 0.1  # infrared night pictures have no colour
DARK_SHARE = 0.1


def letterbox(example: Example, width_px: int, height_px: int) -> Example:
    """The whole image, aspect kept, centred on a grey canvas of the size asked for."""
    source_height_px, source_width_px = example.bgr.shape[:2]
    scale = min(width_px / source_width_px, height_px / source_height_px)
    scaled_px = round(source_width_px * scale), round(source_height_px * scale)
    left_px, top_px = (width_px - scaled_px[0]) // 2, (height_px - scaled_px[1]) // 2
    canvas = np.full((height_px, width_px, 3), GREY, np.uint8)
    area = (0, 0, width_px, height_px)
    boxes = _paste(canvas, area, example, scaled_px, (left_px, top_px))
    return Example(example.name, canvas, boxes)


def flip(example: Example) -> Example:
    """Mirrored left to right."""
    width_px = example.bgr.shape[1]
    boxes = example.boxes.copy()
    boxes[:, [0, 2]] = width_px - example.boxes[:, [2, 0]]
    return Example(example.name, example.bgr[:, ::-1], boxes)


def single(example: Example, size_px: int, rng: np.random.Generator) -> Example:
    """One image on a square canvas, at a random scale and place; parts may leave the picture."""
    canvas = np.full((size_px, size_px, 3), GREY, np.uint8)
    scaled_px = _random_scaled_px(example, size_px, rng, lowest=0.6, highest=1.5)
    place = tuple(int(rng.uniform(min(0, size_px - side), max(0, size_px - side))) for side in scaled_px)
    boxes = _paste(canvas, (0, 0, size_px, size_px), example, scaled_px, place)  # type: ignore[arg-type]
    return Example(example.name, canvas, boxes)


def mosaic(examples: list[Example], size_px: int, rng: np.random.Generator) -> Example:
    """Four images around a random centre, each at its own scale, corner to corner, as in YOLOv5."""
    canvas = np.full((size_px, size_px, 3), GREY, np.uint8)
    x, y = (int(rng.uniform(0.25, 0.75) * size_px) for _ in range(2))
    areas = ((0, 0, x, y), (x, 0, size_px, y), (0, y, x, size_px), (x, y, size_px, size_px))
    boxes = []
    for quadrant, (area, example) in enumerate(zip(areas, examples, strict=True)):
        scaled_px = _random_scaled_px(example, size_px, rng, lowest=0.4, highest=1.3)
        left_px = x - scaled_px[0] if quadrant in (0, 2) else x
        top_px = y - scaled_px[1] if quadrant in (0, 1) else y
        boxes.append(_paste(canvas, area, example, scaled_px, (left_px, top_px)))
    return Example(examples[0].name, canvas, np.concatenate(boxes))


def recolour(bgr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random hue, saturation and brightness; sometimes no colour at all, sometimes dark, like pictures of the night."""
    gains = rng.uniform(-1, 1, 3) * HSV_GAINS + 1
    levels = np.arange(256, dtype=np.float64)
    hue, saturation, value = cv2.split(cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV))
    if rng.random() < DARK_SHARE:
        gains[2] *= rng.uniform(0.25, 0.8)
    saturation_gain = 0.0 if rng.random() < GREY_SHARE else gains[1]
    tables = ((levels * gains[0]) % 180, (levels * saturation_gain).clip(0, 255), (levels * gains[2]).clip(0, 255))
    channels = (hue, saturation, value)
    changed = [cv2.LUT(c, t.astype(np.uint8)) for c, t in zip(channels, tables, strict=True)]
    return cv2.cvtColor(cv2.merge(changed), cv2.COLOR_HSV2BGR)


def training_example(
    fetch: Callable[[int], Example], index: int, others: np.ndarray, *, size_px: int, mosaic_share: float, seed: tuple
) -> Example:
    """The augmented picture for `index`; the same for the same seed. `others` are the indexes a mosaic draws from."""
    rng = np.random.default_rng(seed)
    if rng.random() < mosaic_share:
        indexes = [index, *rng.choice(others, 3)]
        picture = mosaic([_maybe_flip(fetch(int(i)), rng) for i in indexes], size_px, rng)
    else:
        picture = single(_maybe_flip(fetch(index), rng), size_px, rng)
    return Example(picture.name, recolour(picture.bgr, rng), picture.boxes)


def _maybe_flip(example: Example, rng: np.random.Generator) -> Example:
    return flip(example) if rng.random() < 0.5 else example


def _random_scaled_px(
    example: Example, size_px: int, rng: np.random.Generator, *, lowest: float, highest: float
) -> tuple[int, int]:
    """Width and height to draw an image at: a log-uniform share of the canvas, slightly stretched."""
    height_px, width_px = example.bgr.shape[:2]
    scale = size_px / max(height_px, width_px) * math.exp(rng.uniform(math.log(lowest), math.log(highest)))
    stretch = math.exp(rng.uniform(-STRETCH, STRETCH) / 2)
    return max(round(width_px * scale * stretch), 8), max(round(height_px * scale / stretch), 8)


def _paste(
    canvas: np.ndarray,
    area: tuple[int, int, int, int],
    example: Example,
    scaled_px: tuple[int, int],
    place: tuple[int, int],
) -> np.ndarray:
    """Draw the image, scaled, with its top left corner at `place`, only inside `area`; returns its boxes there."""
    x1, y1 = max(area[0], place[0]), max(area[1], place[1])
    x2, y2 = min(area[2], place[0] + scaled_px[0]), min(area[3], place[1] + scaled_px[1])
    if x2 - x1 < 1 or y2 - y1 < 1:
        return np.zeros((0, 4), np.float32)
    height_px, width_px = example.bgr.shape[:2]
    scale_x, scale_y = scaled_px[0] / width_px, scaled_px[1] / height_px
    source_x1, source_y1 = int((x1 - place[0]) / scale_x), int((y1 - place[1]) / scale_y)
    source_x2 = min(math.ceil((x2 - place[0]) / scale_x), width_px)
    source_y2 = min(math.ceil((y2 - place[1]) / scale_y), height_px)
    crop = example.bgr[source_y1:source_y2, source_x1:source_x2]
    shrinks = scale_x < 1 and scale_y < 1
    canvas[y1:y2, x1:x2] = cv2.resize(
        crop, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    boxes = example.boxes * np.array((scale_x, scale_y) * 2, np.float32) + np.array(place * 2, np.float32)
    return clip_boxes(boxes, (x1, y1, x2, y2))


def clip_boxes(boxes: np.ndarray, area: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes cut to an area; those of which too little remains are dropped."""
    low, high = np.array(area[:2] * 2, np.float32), np.array(area[2:] * 2, np.float32)
    cut = boxes.clip(low, high)
    sides, sides_before = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    visible = sides.prod(1) / (sides_before.prod(1) + 1e-9)
    return cut[(visible >= MIN_VISIBLE) & (sides.min(1, initial=np.inf) >= MIN_SIDE_PX)].astype(np.float32)
