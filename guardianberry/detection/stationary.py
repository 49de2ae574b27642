"""Detections that do not move: a coat on a hook that the network takes for a person is nobody new.

A box is still when one detection after the other lies in the same place (IoU above `SAME_PLACE_IOU`) for `STILL_S` and
nothing changed in it or beside it. A still box does not count as a person until something moves there again. It is
remembered for `REMEMBERED_S`, because light and noise make the network lose and find such a thing many times a day.

In doubt a person counts: after the start, after `forget`, after another picture (a camera that was turned), and one who
comes in and then stands still. Only a place that is already known as still is left out.

Motion is judged against the picture of about a second before, not against the background of the motion gate: the gate
keeps everything that differs from the empty room in motion while somebody is in view.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from guardianberry.detection.motion import changed_pixels, correlation, edge_strength, middle
from guardianberry.detection.postprocess import Array, Person

SAME_PLACE_IOU = 0.7
STILL_S = 5.0
REMEMBERED_S = 24 * 3600.0
MOST_PLACES = 50  # beyond that, nothing new is learnt until a place has not been seen for a while
# Between the two pictures that are compared. A person who stands still sways by some pixels within a second.
COMPARED_S = 0.8
MARGIN = 0.15  # of the box's longer side, added on each side: what moves beside it
# Grey levels of 255, after light was evened out and noise averaged. A change is real above both of them.
CHANGE_LEVELS = 6.0
NOISE_FACTOR = 6.0
# Share of the box's area that must have changed, and never less than so many small pixels.
CHANGED_SHARE = 0.01
CHANGED_LEAST = 2
# The picture is lighter or darker by this much, and most of its pixels changed (the median): a lamp. Motion cannot be
# told from shadows for a moment. Somebody large and near changes the mean alone.
LIGHT_LEVELS = 4.0
LIGHT_MEDIAN_LEVELS = 2.0
LIGHT_SETTLES_S = 2.0
# Correlation of the edges before and after a change of light. Below it the camera shows another picture.
SAME_SCENE_CORRELATION = 0.4


@dataclass
class _Place:
    """A place where a detection stands. `moved_s`: when something moved there last."""

    box: tuple[float, float, float, float]
    seen_s: float
    moved_s: float
    known_still: bool = False


class StationaryFilter:
    """Give it every inference, in order, those without a person too. Times are monotonic seconds. For one thread."""

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._pictures: deque[tuple[float, Array]] = deque()
        self._light_changed_s = -math.inf

    @property
    def known_still(self) -> int:
        """How many places are known as still now."""
        return sum(place.known_still for place in self._places)

    def forget(self) -> None:
        """Everything counts again: after a camera restart, or another picture."""
        self.__init__()  # type: ignore[misc]

    def people_who_count(
        self, people: Sequence[Person], small: Array, frame_width_px: int, time_s: float
    ) -> list[Person]:
        """`people` less those that are known as still. `small`: the motion gate's picture of the frame."""
        changed = self._changed_since(small, time_s)
        scale = small.shape[1] / frame_width_px
        self._places = [place for place in self._places if time_s - place.seen_s < _kept_s(place)]
        # A known place stays still although the network loses it: motion there is followed without a detection too.
        # While the light changes, a known place stays known, and no other place becomes still.
        for place in self._places:
            if _moves(changed, place.box, scale) if changed is not None else not place.known_still:
                place.moved_s = time_s
        return [person for person in people if self._counts(person, changed, scale, time_s)]

    def _counts(self, person: Person, changed: Array | None, scale: float, time_s: float) -> bool:
        box = person[:4]
        place = max(self._places, key=lambda known: _iou(known.box, box), default=None)
        if place is None or _iou(place.box, box) <= SAME_PLACE_IOU:
            if len(self._places) >= MOST_PLACES:
                self._places = [known for known in self._places if time_s - known.seen_s < STILL_S]
            if len(self._places) < MOST_PLACES:
                self._places.append(_Place(box, time_s, time_s))
            return True
        place.seen_s = time_s
        still = time_s - place.moved_s >= STILL_S
        if still:
            place.known_still = True
        else:
            place.box = box
        # A known place needs no five seconds again: a breath of wind at the coat is over when nothing moves any more.
        return not (still or (place.known_still and time_s - place.moved_s >= COMPARED_S))

    def _changed_since(self, small: Array, time_s: float) -> Array | None:
        """Which small pixels changed within the last second; None where that cannot be told."""
        if self._pictures and self._pictures[-1][1].shape != small.shape:
            self.forget()
        self._pictures.append((time_s, small))
        while len(self._pictures) > 1 and time_s - self._pictures[1][0] >= COMPARED_S:
            self._pictures.popleft()
        old_s, old = self._pictures[0]
        if time_s - old_s < COMPARED_S:
            return None
        if _is_other_light(old, small):
            self._light_changed_s = time_s
            if correlation(edge_strength(old), edge_strength(small), of_flat=1.0) < SAME_SCENE_CORRELATION:
                self.forget()
                return None
        if time_s - self._light_changed_s < LIGHT_SETTLES_S:
            return None
        return changed_pixels(old, small, levels=CHANGE_LEVELS, noise_factor=NOISE_FACTOR)


def _is_other_light(old: Array, small: Array) -> bool:
    if abs(cv2.mean(small)[0] - cv2.mean(old)[0]) <= LIGHT_LEVELS:
        return False
    return middle(cv2.absdiff(old, small)) > LIGHT_MEDIAN_LEVELS


def _kept_s(place: _Place) -> float:
    return REMEMBERED_S if place.known_still else STILL_S


def _moves(changed: Array, box: Sequence[float], scale: float) -> bool:
    margin = MARGIN * max(box[2] - box[0], box[3] - box[1])
    left, top = (max(0, math.floor((side - margin) * scale)) for side in box[:2])
    right, bottom = (math.ceil((side + margin) * scale) for side in box[2:])
    area = changed[top:bottom, left:right]
    return int(np.count_nonzero(area)) >= max(CHANGED_LEAST, CHANGED_SHARE * area.size)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two corner boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
