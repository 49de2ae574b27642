"""The motion gate: which frames need the detector, judged from brightness alone at a twenty-fifth of a look's cost.

Each frame is shrunk to about 160x120 and compared with a running background. The gate errs towards opening: a look too
many costs milliseconds, a person missed costs the event. What it must not do is stay open for ever because of light,
the camera's own exposure, noise, leaves or a screen, so all of these are learnt within half a minute.

Glossary: a look is one run of the detector; the gate is open for a frame when that frame needs a look.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SMALL_WIDTH_PX = 160
# What stands still this long fades into the background. Someone who creeps across one small pixel a second does not.
BACKGROUND_S = 8.0
# Leaves, screens and noise are expected where they have been for so long. Longer than anybody takes to pass.
RESTLESS_S = 30.0
# Grey levels (of 255). A change counts above FLOOR + RESTLESSNESS_FACTOR times what is usual at its place; with noise
# alone that is more than five standard deviations.
FLOOR_LEVELS = 3.0
RESTLESSNESS_FACTOR = 5.0
# However restless a place is, a change of about 60 levels counts there: rather look too often.
MAX_RESTLESSNESS_LEVELS = 12.0
# Motion is followed for so long after it was seen last: people pause.
HOLD_S = 0.5
# More than half of the picture off by this much is light or exposure, not people; and if it is off by that much even
# with the light evened out, it is another picture: night mode, a camera that was turned.
LIGHT_LEVELS = 1.5
OTHER_PICTURE_LEVELS = 8.0


class MotionGate:
    """Decides frame by frame; give it every decoded frame, in order. Times are monotonic seconds.

    Whoever stands perfectly still is found by the look that is due every `max_blind_s` whatever the picture shows.
    """

    def __init__(self, *, max_blind_s: float) -> None:
        self._max_blind_s = max_blind_s
        self._background: Array = np.zeros((0, 0), np.float32)
        self._restlessness = self._background
        self._last_s = self._look_s = self._moved_s = -math.inf
        self._seen_frames = 0

    def needs_look(self, luma: Array, time_s: float, *, attentive: bool) -> bool:
        """Whether the detector has to see this frame; a yes counts as a look.

        `luma` is the frame's brightness, uint8 [height, width], only read. `attentive`: people are known or suspected,
        so every frame is looked at; and what moves meanwhile is not taken for restlessness.
        """
        if self._moves(shrink(luma), time_s, attentive=attentive):
            self._moved_s = time_s
        is_due = time_s - self._look_s >= self._max_blind_s
        if not (attentive or is_due or time_s - self._moved_s < HOLD_S):
            return False
        self._look_s = time_s
        return True

    def _moves(self, small: Array, time_s: float, *, attentive: bool) -> bool:
        """Compare with the background, then let it follow."""
        if self._background.shape != small.shape:
            self._start_afresh(small, time_s)
            return True
        change, deviation = self._compare(small)
        if _middle(deviation - self._restlessness) > LIGHT_LEVELS:
            self._background = _relight(self._background, small)
            change, deviation = self._compare(small)
            if _middle(deviation) > OTHER_PICTURE_LEVELS:
                self._start_afresh(small, time_s)
                return True
        moving = deviation > FLOOR_LEVELS + RESTLESSNESS_FACTOR * self._restlessness
        if attentive:
            # People known as such leave no ghost behind that would keep the gate open.
            change[np.pad(moving, 1, "edge")] = 0
            deviation = self._restlessness
        self._learn(change, deviation, time_s)
        return bool(moving.any())

    def _compare(self, small: Array) -> tuple[Array, Array]:
        """Change pixel by pixel, and its size with the noise smoothed away."""
        change = small - self._background
        return change, np.abs(_blur(change))

    def _learn(self, change: Array, deviation: Array, time_s: float) -> None:
        elapsed_s = time_s - self._last_s
        self._last_s = time_s
        self._seen_frames += 1
        # In the beginning plain averages: after ten frames the noise is known, not after half a minute.
        share = 1 / (self._seen_frames + 1)
        self._background += np.float32(max(share, 1 - math.exp(-elapsed_s / BACKGROUND_S))) * change
        share = max(share, 1 - math.exp(-min(elapsed_s, 1.0) / RESTLESS_S))
        usual = np.minimum(deviation, np.float32(MAX_RESTLESSNESS_LEVELS))
        self._restlessness += np.float32(share) * (usual - self._restlessness)

    def _start_afresh(self, small: Array, time_s: float) -> None:
        self._background = small
        self._restlessness = np.zeros((small.shape[0] - 2, small.shape[1] - 2), np.float32)
        self._last_s = time_s
        self._seen_frames = 0


def shrink(luma: Array) -> Array:
    """Averages over squares, as float32, about SMALL_WIDTH_PX wide. Averaging takes most of the noise away."""
    side_px = max(1, round(luma.shape[1] / SMALL_WIDTH_PX))
    height_px, width_px = (length // side_px * side_px for length in luma.shape)
    rows: Array = luma[0:height_px:side_px].astype(np.uint32 if side_px > 16 else np.uint16)  # bytes would wrap at 255
    for offset in range(1, side_px):
        rows += luma[offset:height_px:side_px]
    total: Array = rows[:, 0:width_px:side_px].copy()
    for offset in range(1, side_px):
        total += rows[:, offset:width_px:side_px]
    return total.astype(np.float32) * np.float32(1 / side_px**2)


def _blur(picture: Array) -> Array:
    """Means of 3x3, without the outermost pixels: a person far away is that large, noise is smaller."""
    rows = picture[:-2] + picture[1:-1]
    rows += picture[2:]
    total = rows[:, :-2] + rows[:, 1:-1]
    total += rows[:, 2:]
    total *= np.float32(1 / 9)
    return total


def _middle(picture: Array) -> float:
    """About the median; a sixteenth of the pixels is enough for that."""
    return float(np.median(picture[::4, ::4]))


def _relight(background: Array, small: Array) -> Array:
    """The background as the light of `small` shows it: the gain and the offset that explain most pixels."""
    was, now = background[::3, ::3].ravel(), small[::3, ::3].ravel()
    for _ in range(3):
        gain, offset = _line(was, now)
        error = np.abs(now - (gain * was + offset))
        kept = error <= np.quantile(error, 0.7)  # people, lamps and glare are not the light of the scene
        was, now = was[kept], now[kept]
    return np.clip(np.float32(gain) * background + np.float32(offset), 0, 255)


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Least squares; a flat picture shows an offset alone."""
    mean_x, mean_y = float(x.mean()), float(y.mean())
    spread = float(((x - mean_x) ** 2).mean())
    gain = float(((x - mean_x) * (y - mean_y)).mean()) / spread if spread > 1 else 1.0
    gain = max(gain, 0.0)  # no light turns a picture into its negative
    return gain, mean_y - gain * mean_x
