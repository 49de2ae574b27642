"""Is the camera still looking at its scene? Covered, sprayed, turned away and out of focus are told; light is not.

The edges of the last seconds are compared with their slow average, as in Saglam and Temizel, "Real-time adaptive camera
tamper detection", AVSS 2009, and Lee et al., Sensors 2015, 15(5):10315. Two figures decide:

* correlation: the edges lie where they lay. It falls to zero when the lens is covered or the camera was turned, and
  hardly changes with the light, the exposure, fog, or the IR cut filter, because the contrast cancels out.
* sharpness: fine detail per coarse detail, where there is most of it. It falls when the lens is out of focus, and light
  changes both alike.

What stays for `LEARNT_S` after it was told is a known scene from then on, beside the others: a parked van is told once,
and so is a room that becomes completely dark, which looks the same as a covered lens.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from guardianberry.detection.motion import correlation, edge_strength, quantile
from guardianberry.detection.postprocess import Array

LOST_AFTER_S = 60.0  # somebody who passes close to the lens is gone by then
LEARNT_S = 600.0
KNOWN_AFTER_S = 60.0  # before that nothing is judged: the first pictures may show whoever mounts the camera
EVERY_S = 1.0
RECENT_PICTURES = 5  # their mean is judged: in the dark one picture holds more noise than edges
SCENE_S = 900.0  # the time constant of the average: shadows wander, leaves fall
MOST_SCENES = 4  # by day, by night, with the lamp, with the van
# With hysteresis, (lost below, back above): between what light, fog, the IR cut filter and shake leave, and what cover,
# spray, shift and blur leave, on the eight films of bench/view.py.
CORRELATION = (0.52, 0.6)
SHARPNESS = (0.62, 0.67)  # of the usual one
BLUR_PX = 5  # of the edge maps: a camera that shakes by a small pixel still sees the same edges
FINE_PX, COARSE_PX = 1.0, 4.0  # standard deviations of the blurs between which detail is fine or coarse
RICH_QUANTILE = 0.8  # of the coarse detail: elsewhere, as on a bare road, noise is all the fine detail there is
DARK_LEVELS = 24.0  # of 255: where nothing is brighter there is only noise, and darkness is a scene of its own


@dataclass
class _Scene:
    edges: Array
    sharpness: float
    is_dark: bool = False

    def learn(self, other: Self, share: float) -> None:
        self.edges = self.edges + np.float32(share) * (other.edges - self.edges)
        self.sharpness += share * (other.sharpness - self.sharpness)


class ViewGuard:
    """Call `lost` with every frame's small picture. Times are monotonic seconds. For one thread."""

    def __init__(self) -> None:
        self._recent: deque[Array] = deque(maxlen=RECENT_PICTURES)
        self._scenes: list[_Scene] = []
        self._begun_s = self._judged_s = 0.0
        self._bad_since_s: float | None = None
        self._told_s: float | None = None

    @property
    def is_lost(self) -> bool:
        """Told, and neither back nor learnt yet."""
        return self._told_s is not None

    def lost(self, small: Array, time_s: float) -> str:
        """Why the view is lost, once each time it is; else "". `small`: the motion gate's picture of the frame."""
        if not self._recent or self._recent[-1].shape != small.shape:
            self.__init__()  # type: ignore[misc]
            self._begun_s = time_s
        elif time_s - self._judged_s < EVERY_S:
            return ""
        elapsed_s, self._judged_s = time_s - self._judged_s, time_s
        self._recent.append(small)
        now = _scene_of(np.mean(self._recent, axis=0))
        if not self._scenes:
            self._scenes.append(now)
        if time_s - self._begun_s < KNOWN_AFTER_S:
            self._scenes[0].learn(now, 0.1)
            return ""
        reason, known = self._compare(now)
        if not reason:
            known.learn(now, 1 - math.exp(-elapsed_s / SCENE_S))
            self._bad_since_s = self._told_s = None
            return ""
        return self._tell(reason, now, time_s)

    def _compare(self, now: _Scene) -> tuple[str, _Scene]:
        """Why `now` is none of the known scenes ("" where it is one), and the known scene that is most like it."""
        if now.is_dark and (dark := next((scene for scene in self._scenes if scene.is_dark), None)):
            return "", dark
        known = max(self._scenes, key=lambda scene: correlation(now.edges, scene.edges, of_flat=0.0))
        if correlation(now.edges, known.edges, of_flat=0.0) < CORRELATION[self.is_lost]:
            return "covered or turned away", known
        if now.sharpness < SHARPNESS[self.is_lost] * known.sharpness:
            return "out of focus", known
        return "", known

    def _tell(self, reason: str, now: _Scene, time_s: float) -> str:
        if self._bad_since_s is None:
            self._bad_since_s = time_s
        if self._told_s is None:
            if time_s - self._bad_since_s < LOST_AFTER_S:
                return ""
            self._told_s = time_s
            return reason
        if time_s - self._told_s >= LEARNT_S:
            self._scenes = [*self._scenes, now][-MOST_SCENES:]
            self._bad_since_s = self._told_s = None
        return ""


def _scene_of(picture: Array) -> _Scene:
    """Strength of the edges by place, and how much of the detail is fine."""
    strength = edge_strength(picture)
    middle, coarse = cv2.GaussianBlur(picture, (0, 0), FINE_PX), cv2.GaussianBlur(picture, (0, 0), COARSE_PX)
    detail = cv2.absdiff(middle, coarse)
    rich = detail >= quantile(detail, RICH_QUANTILE)
    sharpness = float(cv2.absdiff(picture, middle)[rich].mean()) / (float(detail[rich].mean()) + 1e-6)
    is_dark = quantile(picture, 0.99) < DARK_LEVELS
    return _Scene(cv2.GaussianBlur(strength, (BLUR_PX, BLUR_PX), 0), sharpness, is_dark)
