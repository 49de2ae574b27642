"""Which people count in a frame: the motion gate, the detector on the frame or a crop of it, zones and still things."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guardianberry.detection.lost_view import ViewGuard
from guardianberry.detection.motion import MotionGate
from guardianberry.detection.postprocess import Person
from guardianberry.detection.regions import Movers, Region, crop_around
from guardianberry.detection.stationary import StationaryFilter
from guardianberry.detection.zones import Zone, outside

if TYPE_CHECKING:
    from guardianberry.camera.decoder import Frame
    from guardianberry.detection.detector import Detector

log = logging.getLogger(__name__)

WHOLES_BEFORE_CROP = 2  # without anybody: a crop must not take the turn in which the whole frame shows who comes in
CROPS_IN_A_ROW = 3
CROP_CONFIDENCE = 0.4  # enlarged, parts of cars and of trees score above CONF_THRES


class PeopleFinder:
    """Give it every frame, in order. For one thread.

    Where the whole frame has shown nobody `WHOLES_BEFORE_CROP` times and something small moves, the next inference is
    for a crop around it, and while crops show somebody, `CROPS_IN_A_ROW` of them are followed by one of the whole
    frame. So small people are found at no more cost, and a crop delays the whole frame by one inference.
    """

    def __init__(self, detector: Detector, *, inference_at_least_every_s: float, ignore_zones: Sequence[Zone]) -> None:
        self.detector = detector
        self._gate = MotionGate(inference_at_least_every_s=inference_at_least_every_s)
        self._movers = Movers()
        self._still = StationaryFilter()
        self._view = ViewGuard()
        self._zones = ignore_zones
        self._last_person: Person | None = None
        self._crops_in_a_row = 0
        self._wholes_in_a_row = 0  # without anybody
        self._found = True  # by the last inference
        self._last_found_by_crop = False  # the last time somebody was found
        self._turn = 0
        self._camera_launches = 0
        self._view_lost = ""

    @property
    def still_things(self) -> int:
        """How many places are known where something that looks like a person never moves."""
        return self._still.known_still

    @property
    def view_is_lost(self) -> bool:
        return self._view.is_lost

    def take_view_lost(self) -> str:
        """Why the camera does not see its scene any more, once each time; "" otherwise."""
        reason, self._view_lost = self._view_lost, ""
        return reason

    def find(self, frame: Frame, *, attentive: bool, camera_launches: int = 0) -> list[Person] | None:
        """The people who count, the surest first; None where the frame needs no inference, because nothing moves.

        `attentive`: a person was detected or may be there, so every frame needs one. When `camera_launches` changes,
        somebody may have moved the camera: everything counts again.
        """
        if camera_launches != self._camera_launches:
            self._camera_launches = camera_launches
            self._still.forget()
        is_needed = self._gate.needs_inference(frame.luma(), frame.arrival_s, attentive=attentive)
        self._view_lost = self._view.lost(self._gate.small, frame.arrival_s) or self._view_lost
        if not is_needed:
            return None
        bgr = frame.bgr
        height_px, width_px = bgr.shape[:2]
        crop = self._crop(width_px, height_px, frame.arrival_s)
        people = self.detector.find_people(bgr, crop)
        if crop:
            people = [person for person in people if person.confidence >= CROP_CONFIDENCE]
        people = outside(self._zones, people, width_px, height_px)
        counting = self._still.people_who_count(people, self._gate.small, width_px, frame.arrival_s)
        self._crops_in_a_row = self._crops_in_a_row + 1 if crop else 0
        self._found = bool(counting)
        self._last_found_by_crop = bool(crop) if counting else self._last_found_by_crop and not crop
        self._wholes_in_a_row = 0 if crop or counting else self._wholes_in_a_row + 1
        if counting:
            self._last_person = counting[0]
        elif crop:
            self._last_person = None  # is not where it was: whatever moves has its turn
        part = " (crop)" if crop else ""
        log.debug("frame %d%s: %d person(s), %d count", frame.number, part, len(people), len(counting))
        return counting

    def _crop(self, width_px: int, height_px: int, time_s: float) -> Region | None:
        """The part of the frame that is due for an inference; None for the whole."""
        self._movers.add(self._gate.small, time_s)
        if self._crops_in_a_row:
            is_due = self._found and self._crops_in_a_row < CROPS_IN_A_ROW
        else:
            is_due = self._wholes_in_a_row >= WHOLES_BEFORE_CROP or (self._last_found_by_crop and not self._found)
        if not is_due:
            return None
        input_width_px = self.detector.input_width_px
        person = self._last_person
        if person and (crop := crop_around(person[:4], width_px, height_px, input_width_px)):
            return crop
        boxes = self._movers.find(width_px)
        self._turn += 1
        return crop_around(boxes[self._turn % len(boxes)], width_px, height_px, input_width_px) if boxes else None
