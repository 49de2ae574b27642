"""Detections that do not move: what counts as a person, and when."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from guardianberry.detection import stationary
from guardianberry.detection.postprocess import Person
from guardianberry.detection.stationary import REMEMBERED_S, STILL_S, StationaryFilter

WIDTH_PX, SCALE = 640, 4
COAT = (100.0, 100.0, 180.0, 300.0)
DOOR = (400.0, 100.0, 480.0, 300.0)
NEAR = (180.0, 48.0, 440.0, 480.0)


class Room:
    """A textured room as the gate's small picture shows it; things can stand, move and be lit."""

    def __init__(self) -> None:
        self._noise = np.random.default_rng(1)
        self._wall = self._noise.uniform(60, 180, (120, 160)).astype(np.float32)
        self._other_wall = self._noise.uniform(60, 180, (120, 160)).astype(np.float32)
        self._coat = self._noise.uniform(0, 255, (50, 20)).astype(np.float32)
        self._person = self._noise.uniform(0, 255, (50, 24)).astype(np.float32)
        self.filter = StationaryFilter()
        self.time_s = 0.0
        self.light = 1.0
        self.turned = False

    def see(
        self,
        seconds: float,
        *boxes: tuple[float, ...],
        walks_at: tuple[float, ...] | None = None,
        near_width_px: Callable[[int], int] | None = None,
    ) -> list[int]:
        """How many count, inference for inference, 5 a second.

        Somebody walks to and fro in the box `walks_at`; somebody stands near the camera in light clothes.
        """
        counts = []
        for step in range(round(5 * seconds)):
            self.time_s += 0.2
            small = (self._other_wall if self.turned else self._wall).copy()
            small[25:75, 25:45] = self._coat
            if walks_at is not None:
                left = int(walks_at[0] / SCALE) + step % 7
                small[25:75, left : left + 24] = self._person
            if near_width_px is not None:
                small[12:, 45 : 45 + near_width_px(step)] = 250
            small = small * np.float32(self.light) + self._noise.normal(0, 1, small.shape).astype(np.float32)
            people = [Person(*box, 0.5) for box in boxes]
            counts.append(len(self.filter.people_who_count(people, small, WIDTH_PX, self.time_s)))
        return counts


def test_a_thing_that_stands_still_counts_for_some_seconds_and_then_no_more():
    room = Room()
    assert set(room.see(STILL_S - 1, COAT)) == {1}, "it fails open: an event may start"
    room.see(2, COAT)
    assert set(room.see(60, COAT)) == {0}
    assert room.filter.known_still == 1


def test_a_visitor_elsewhere_counts_at_once_beside_a_known_thing():
    room = Room()
    room.see(10, COAT)
    assert set(room.see(5, COAT, DOOR, walks_at=DOOR)) == {1}


def test_who_moves_in_the_place_of_a_known_thing_counts():
    room = Room()
    room.see(10, COAT)
    counts = room.see(5, COAT, walks_at=COAT)
    assert set(counts[5:]) == {1}


def test_who_comes_in_and_then_stands_still_counts_long_enough_for_an_event():
    room = Room()
    room.see(5, DOOR, walks_at=DOOR)
    assert set(room.see(STILL_S - 1.5, DOOR)) == {1}


def test_somebody_large_counts_each_time_although_the_picture_becomes_lighter():
    """In the same pose at the same place, which changes the mean of the picture as a lamp does."""
    room, counts = Room(), []
    for _ in range(6):
        room.see(2.8)
        counts += room.see(1.2, NEAR, near_width_px=lambda _: 60)
    assert set(counts) == {1}


def test_somebody_near_the_camera_who_leans_to_and_fro_counts_all_the_time():
    room = Room()
    room.see(3)
    assert set(room.see(60, NEAR, near_width_px=lambda step: (60, 64, 68, 72, 68, 64)[step % 6])) == {1}


def test_it_is_remembered_although_the_network_loses_it_for_an_hour():
    room = Room()
    room.see(10, COAT)
    room.see(3)
    room.time_s += 3600
    room.see(3)
    assert set(room.see(2, COAT)) == {0}


def test_after_a_day_without_being_seen_it_is_forgotten():
    room = Room()
    room.see(10, COAT)
    room.time_s += REMEMBERED_S + 1
    assert set(room.see(2, COAT)) == {1}


@pytest.mark.parametrize("light", [0.5, 1.3])
def test_a_lamp_makes_nobody_new(light: float):
    room = Room()
    room.see(10, COAT)
    room.light = light
    assert set(room.see(10, COAT)) == {0}
    room.light = 1.0
    assert set(room.see(10, COAT)) == {0}


def test_a_camera_that_was_turned_makes_everything_new():
    room = Room()
    room.see(10, COAT)
    room.turned, room.light = True, 1.3
    assert set(room.see(3, COAT)) == {1}


def test_forget_makes_everything_new():
    room = Room()
    room.see(10, COAT)
    room.filter.forget()
    assert set(room.see(3, COAT)) == {1}


def test_the_memory_is_bounded():
    room = Room()
    boxes = [
        (10.0 * (i % 10) * 6, 7.0 * (i // 10) * 6, 10.0 * (i % 10) * 6 + 50, 7.0 * (i // 10) * 6 + 38)
        for i in range(70)
    ]
    room.see(STILL_S + 2, *boxes)
    assert 0 < room.filter.known_still <= stationary.MOST_PLACES
