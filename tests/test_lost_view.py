"""The view is lost: what is told, within 90 s, and what is not."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from guardianberry.detection.lost_view import LEARNT_S, ViewGuard

Picture = np.ndarray
HEIGHT_PX, WIDTH_PX = 120, 160
SETTLED_S = 180
SWITCHED_S = 120  # twice as long as it takes to be told
NOISE_PICTURES = 12
ROWS, COLUMNS = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]


@functools.cache
def scene(seed: int = 1) -> Picture:
    """Furniture: rectangles of many sizes and greys, with a little texture."""
    random = np.random.default_rng(seed)
    picture = np.full((HEIGHT_PX, WIDTH_PX), 110, np.float32)
    for _ in range(40):
        x, y, w, h = random.integers([0, 0, 6, 6], [150, 110, 60, 50])
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), float(random.integers(20, 230)), -1)
    return picture + random.normal(0, 6, picture.shape).astype(np.float32)


def spot(x: int, y: int, width_px: float) -> Picture:
    return np.exp(-((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / (2 * width_px**2)).astype(np.float32)


def blurred(picture: Picture) -> Picture:
    return cv2.GaussianBlur(picture, (0, 0), 2)


def sprayed(picture: Picture) -> Picture:
    drops = cv2.GaussianBlur(np.random.default_rng(3).normal(0, 1, picture.shape), (0, 0), 6)
    return np.where(drops > np.quantile(drops, 0.12), 0.15 * picture + 150, picture).astype(np.float32)


def shaken(picture: Picture) -> Picture:
    return np.roll(picture, tuple(np.random.default_rng().integers(-1, 2, 2)), (0, 1))


def play(
    guard: ViewGuard, change: Callable[[Picture], Picture], begin_s: float, seconds: float
) -> list[tuple[float, str]]:
    """What is told, and how many seconds after `begin_s`."""
    told = []
    for second in range(int(seconds)):
        seen = np.clip(change(scene()) + noise_pictures()[second % NOISE_PICTURES], 0, 255).astype(np.float32)
        if reason := guard.lost(seen, begin_s + second):
            told.append((float(second), reason))
    return told


@functools.cache
def noise_pictures() -> list[Picture]:
    """Of a sensor; more than the guard takes the mean of."""
    random = np.random.default_rng(7)
    return [random.normal(0, 1.2, (HEIGHT_PX, WIDTH_PX)).astype(np.float32) for _ in range(NOISE_PICTURES)]


@functools.cache
def _settled_guard() -> ViewGuard:
    guard = ViewGuard()
    assert play(guard, lambda picture: picture, 0, SETTLED_S) == []
    return guard


def settled_guard() -> ViewGuard:
    """One that has seen its scene for SETTLED_S."""
    return copy.deepcopy(_settled_guard())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda picture: np.full_like(picture, 10), "covered"),
        (lambda picture: np.full_like(picture, 120), "covered"),
        (lambda picture: cv2.GaussianBlur(picture, (0, 0), 20) / 3, "covered"),
        (sprayed, "covered"),
        (lambda picture: np.roll(picture, 24, 1), "turned"),
        (lambda picture: np.roll(picture, (15, 40), (0, 1)), "turned"),
        (lambda picture: scene(2), "turned"),
        (blurred, "focus"),
    ],
    ids=["black", "grey", "hand", "spray", "shifted", "turned", "elsewhere", "out of focus"],
)
def test_a_lost_view_is_told_once_within_90_s(change, reason):
    told = play(settled_guard(), change, SETTLED_S, 2 * SWITCHED_S)
    assert len(told) == 1, told
    assert told[0][0] <= 90
    assert reason in told[0][1]


def test_a_bare_scene_out_of_focus_is_told_though_noise_is_most_of_its_detail():
    """An empty road: three edges, and the noise of the camera."""
    bare = np.full((HEIGHT_PX, WIDTH_PX), 110, np.float32)
    cv2.rectangle(bare, (20, 30), (60, 50), 150, -1)
    cv2.line(bare, (0, 100), (159, 90), 140, 2)
    guard = ViewGuard()
    assert play(guard, lambda _: bare, 0, 180) == []
    ((told_s, reason),) = play(guard, lambda _: blurred(bare), 180, 120)
    assert told_s <= 90
    assert "focus" in reason


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture * 0.1,
        lambda picture: 255 * (picture.clip(0, 255) / 255) ** 0.45,
        lambda picture: picture * (0.3 + 1.1 * spot(140, 20, 50)),
        lambda picture: 0.3 * picture + 140,
        lambda picture: 0.8 * picture * spot(80, 60, 65) + 20,
        shaken,
    ],
    ids=["light off", "exposure", "lamp", "fog", "IR cut filter", "shake"],
)
def test_light_and_weather_are_not_told(change):
    guard = settled_guard()
    for begin_s in (SETTLED_S, SETTLED_S + 2 * SWITCHED_S):
        assert play(guard, change, begin_s, SWITCHED_S) == []
        assert play(guard, lambda picture: picture, begin_s + SWITCHED_S, SWITCHED_S) == []


def test_who_covers_the_lens_for_half_a_minute_is_not_told():
    guard = settled_guard()
    assert play(guard, lambda picture: np.full_like(picture, 90), SETTLED_S, 30) == []
    assert play(guard, lambda picture: picture, 210, 120) == []
    assert not guard.is_lost


def test_what_stays_is_learnt_and_the_former_scene_is_still_known():
    guard = settled_guard()
    assert len(play(guard, lambda picture: scene(2), SETTLED_S, LEARNT_S + SWITCHED_S)) == 1
    assert not guard.is_lost
    assert play(guard, lambda picture: picture, 2000, SWITCHED_S) == []
    assert play(guard, lambda picture: scene(2), 2000 + SWITCHED_S, SWITCHED_S) == []


def test_it_is_told_again_when_it_is_lost_again():
    guard = settled_guard()
    assert len(play(guard, lambda picture: np.full_like(picture, 120), SETTLED_S, 100)) == 1
    assert play(guard, lambda picture: picture, 280, 100) == []
    assert len(play(guard, lambda picture: np.full_like(picture, 120), 380, 100)) == 1
