"""Which frames and which part of them the detector gets, and which people count."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from guardianberry.detection.finder import CROPS_IN_A_ROW, PeopleFinder
from guardianberry.detection.postprocess import Person
from guardianberry.detection.regions import Movers, crop_around
from guardianberry.detection.zones import outside

WIDTH_PX, HEIGHT_PX = 640, 480
SMALL_PERSON = Person(300, 200, 320, 240, 0.6)
LARGE_PERSON = Person(200, 100, 330, 470, 0.9)


class FakeFrame(NamedTuple):
    number: int
    arrival_s: float
    bgr: np.ndarray

    def luma(self) -> np.ndarray:
        return self.bgr[:, :, 0]


class FakeDetector:
    """Finds people of at least 32 px in the network's input, as the real one does, and notes what it was shown."""

    input_width_px = 416
    last_ms = 0.0

    def __init__(self) -> None:
        self.people: list[Person] = []
        self.shown: list[tuple[int, int, int, int] | None] = []

    def find_people(self, frame_bgr: np.ndarray, crop: tuple[int, int, int, int] | None = None) -> list[Person]:
        self.shown.append(crop)
        left, top, right, bottom = crop or (0, 0, WIDTH_PX, HEIGHT_PX)
        enlarged = self.input_width_px / (right - left)
        return [
            person
            for person in self.people
            if (person.y2 - person.y1) * enlarged >= 32
            and left <= person.x1 and person.x2 <= right and top <= person.y1 and person.y2 <= bottom
        ]  # fmt: skip


class Yard:
    """A textured yard in which one rectangle walks."""

    def __init__(self, *, zones=()) -> None:
        self.detector = FakeDetector()
        self.finder = PeopleFinder(self.detector, inference_at_least_every_s=1, ignore_zones=zones)  # type: ignore[arg-type]
        self._wall = np.random.default_rng(1).integers(80, 160, (HEIGHT_PX, WIDTH_PX, 1), np.uint8).repeat(3, 2)
        self._number = 0
        self.found: list[list[Person] | None] = []

    def see(self, frames: int, walker: Person | None = None, *, attentive: bool = False) -> list[list[Person] | None]:
        found = []
        for _ in range(frames):
            picture = self._wall.copy()
            if walker is not None:
                x, y = int(walker.x1) + self._number % 7, int(walker.y1)
                picture[y : int(walker.y2), x : x + int(walker.x2 - walker.x1)] = 255
            self.detector.people = [walker] if walker else []
            found.append(self.finder.find(FakeFrame(self._number, self._number / 10, picture), attentive=attentive))  # type: ignore[arg-type]
            self._number += 1
        return found


def test_a_still_room_is_looked_at_once_a_second_and_as_a_whole():
    yard = Yard()
    yard.see(100)
    assert 10 <= len(yard.detector.shown) <= 25
    assert set(yard.detector.shown[-5:]) == {None}


def test_small_people_are_found_in_crops_around_what_moves():
    yard = Yard()
    yard.see(50)
    found = yard.see(20, SMALL_PERSON, attentive=True)
    assert sum(bool(people) for people in found) >= 20 * CROPS_IN_A_ROW // (CROPS_IN_A_ROW + 1) - 3
    first = next(people for people in found if people)
    assert first[0] == SMALL_PERSON, "in the frame's own pixels"


def test_no_more_inferences_than_frames_and_whole_frames_keep_their_turn():
    yard = Yard()
    yard.see(50)
    yard.detector.shown.clear()
    yard.see(20, SMALL_PERSON, attentive=True)
    assert len(yard.detector.shown) == 20
    assert yard.detector.shown.count(None) >= 20 // (CROPS_IN_A_ROW + 1)
    runs = "".join("w" if crop is None else "c" for crop in yard.detector.shown)
    assert "c" * (CROPS_IN_A_ROW + 1) not in runs


def test_large_people_are_found_in_the_whole_frame_at_once():
    yard = Yard()
    yard.see(50)
    yard.detector.shown.clear()
    found = yard.see(10, LARGE_PERSON, attentive=True)
    assert all(found)
    assert set(yard.detector.shown) == {None}


def test_a_crop_without_anybody_is_followed_by_the_whole_frame():
    yard = Yard()
    yard.see(50)
    yard.detector.shown.clear()
    yard.see(9, SMALL_PERSON._replace(y2=205), attentive=True)  # a cat: too small even enlarged
    runs = "".join("w" if crop is None else "c" for crop in yard.detector.shown)
    assert "cc" not in runs
    assert "c" in runs


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((300, 200, 320, 240), (230, 160, 390, 280)),  # never smaller than 160 px
        ((0, 0, 20, 40), (0, 0, 160, 120)),  # at the edge
        ((620, 440, 640, 480), (480, 360, 640, 480)),
        ((100, 100, 200, 400), None),  # large
        ((0, 100, 300, 200), None),  # too wide for a crop that enlarges
    ],
)
def test_the_crop_is_inside_the_frame_and_has_its_shape(box, expected):
    assert crop_around(box, WIDTH_PX, HEIGHT_PX, 416) == expected


def test_a_frame_that_the_network_sees_at_its_own_size_has_no_crops():
    assert crop_around((300, 200, 320, 240), 416, 312, 416) is None


def test_movers_are_told_apart_the_largest_first():
    before = np.full((120, 160), 100, np.float32)
    now = before.copy()
    now[20:30, 20:24] = now[60:80, 100:106] = 200
    now[5, 5] = 110  # noise
    movers = Movers()
    movers.add(before, 0.0)
    assert movers.find(WIDTH_PX) == []
    movers.add(now, 0.4)
    found = movers.find(WIDTH_PX)
    assert len(found) == 2
    for (left, top, right, bottom), (x, y, w, h) in zip(found, [(100, 60, 6, 20), (20, 20, 4, 10)], strict=True):
        assert left <= 4 * x
        assert top <= 4 * y
        assert right >= 4 * (x + w)
        assert bottom >= 4 * (y + h)


ZONE = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))


def test_who_stands_in_a_zone_does_not_count_and_who_reaches_into_it_does():
    inside, reaching = Person(400, 100, 450, 300, 0.9), Person(100, 100, 500, 300, 0.9)
    assert outside((ZONE,), [inside, reaching], WIDTH_PX, HEIGHT_PX) == [reaching]
    assert outside((), [inside], WIDTH_PX, HEIGHT_PX) == [inside]


def test_a_zone_is_applied_to_what_the_finder_returns():
    yard = Yard(zones=(ZONE,))
    yard.see(50)
    right = LARGE_PERSON._replace(x1=400, x2=530)
    assert not any(yard.see(5, right, attentive=True))
    assert all(yard.see(5, LARGE_PERSON, attentive=True)[1:])
