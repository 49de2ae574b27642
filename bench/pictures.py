"""Small pictures of real films as the motion gate makes them, and what light, weather and hands do to them.

For `bench.view` and `bench.still_things`, which play a day: only what the guards compare is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from bench.offline import CLIPS, SCENE

SIZE_PX = (160, 120)
ROWS, COLUMNS = np.mgrid[0 : SIZE_PX[1], 0 : SIZE_PX[0]]
Change = Callable[[np.ndarray], np.ndarray]


def films() -> list[Path]:
    return [SCENE, *sorted(CLIPS.glob("*.mp4"))]


def small_pictures(film: Path, every_s: float = 1.0) -> list[np.ndarray]:
    """float32 [120, 160], one each `every_s`."""
    pictures, due_s = [], 0.0
    with av.open(str(film)) as container:
        for frame in container.decode(video=0):
            if frame.time + 1e-6 >= due_s:
                due_s = frame.time + every_s
                grey = cv2.resize(frame.to_ndarray(format="gray"), SIZE_PX, interpolation=cv2.INTER_AREA)
                pictures.append(grey.astype(np.float32))
    return pictures


def _spot(x: int, y: int, width_px: float) -> np.ndarray:
    return np.exp(-((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / (2 * width_px**2)).astype(np.float32)


def _sprayed(picture: np.ndarray) -> np.ndarray:
    drops = cv2.GaussianBlur(np.random.default_rng(3).normal(0, 1, picture.shape), (0, 0), 6)
    return np.where(drops > np.quantile(drops, 0.12), 0.15 * picture + 150, picture)


def _shaken(picture: np.ndarray) -> np.ndarray:
    return np.roll(picture, tuple(np.random.default_rng().integers(-1, 2, 2)), (0, 1))


LIGHT: dict[str, Change] = {
    "light at half": lambda p: 0.5 * p,
    "light at 8 %": lambda p: 0.08 * p,
    "exposure": lambda p: 255 * (p / 255) ** 0.45,
    "lamp": lambda p: p * (0.3 + 1.1 * _spot(140, 20, 50)),
    "fog": lambda p: 0.3 * p + 140,
    "IR cut filter": lambda p: 0.8 * p * _spot(80, 60, 65) + 0.18 * (255 - p) + 20,
    "shake": _shaken,
}
LOST: dict[str, Change] = {
    "black cover": lambda p: np.full_like(p, 10),
    "grey cover": lambda p: np.full_like(p, 90),
    "hand": lambda p: cv2.GaussianBlur(p, (0, 0), 15) / 3,
    "spray": _sprayed,
    "shifted by 1/8": lambda p: np.roll(p, 20, 1),
    "turned": lambda p: np.roll(p, (15, 40), (0, 1)),
    "blur, 6 px of 640": lambda p: cv2.GaussianBlur(p, (0, 0), 1.5),
    "blur, 10 px of 640": lambda p: cv2.GaussianBlur(p, (0, 0), 2.5),
}


def with_noise(picture: np.ndarray, random: np.random.Generator, levels: float = 1.2) -> np.ndarray:
    noisy = picture + random.normal(0, levels, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.float32)
