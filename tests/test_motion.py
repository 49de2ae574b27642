"""The motion gate: nobody slips through, and neither light nor noise nor leaves keep it open."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import detect_and_upload as script
from bench import offline
from guardianberry.detection.motion import MotionGate, shrink

RATE_FPS = 10
NEVER_S = 1e9
HEIGHT_PX, WIDTH_PX = 480, 640
LONGEST_FRAMES = 10 * RATE_FPS  # of each film; an event begins in it wherever the film has one
INPUT_WIDTH_PX = 256  # as many events begin as with the daemon's 416, for 40 % of the computing
MAX_DELAY_FRAMES = 3  # of a start, against an inference on every frame


@functools.cache
def room() -> np.ndarray:
    """A picture with edges of all strengths, dark and bright places."""
    blocks = np.random.default_rng(1).integers(40, 200, (24, 32))
    return np.kron(blocks, np.ones((20, 20), np.int16)).astype(np.int16)


@functools.cache
def noise_pictures(levels: float) -> list[np.ndarray]:
    random = np.random.default_rng(2)
    return [random.normal(0, levels, (HEIGHT_PX, WIDTH_PX)).astype(np.int16) for _ in range(12)]


class Sensor:
    """Adds noise and keeps the bytes in range, as a camera does."""

    def __init__(self, noise_levels: float) -> None:
        self._noise = noise_pictures(noise_levels)
        self._random = np.random.default_rng(5)

    def show(self, picture: np.ndarray) -> np.ndarray:
        noise = self._noise[self._random.integers(len(self._noise))]
        return np.clip(picture + noise, 0, 255).astype(np.uint8)


def play(
    gate: MotionGate, scene: Callable[[float], np.ndarray], seconds: float, *, start_s: float = 0.0, noise: float = 1.0
) -> np.ndarray:
    """Whether each frame of `scene` (a picture at a time) needs an inference while no person is suspected."""
    sensor = Sensor(noise)
    times_s = start_s + np.arange(round(seconds * RATE_FPS)) / RATE_FPS
    return np.array([gate.needs_inference(sensor.show(scene(t)), t, attentive=False) for t in times_s])


def with_person(picture: np.ndarray, x_px: float, y_px: int, *, contrast: int, height_px: int = 20) -> np.ndarray:
    picture = picture.copy()
    width_px = max(2, height_px * 7 // 20)
    picture[y_px : y_px + height_px, round(x_px) : round(x_px) + width_px] += contrast
    return picture


@functools.cache
def _settled_gate(noise: float, inference_at_least_every_s: float) -> MotionGate:
    gate = MotionGate(inference_at_least_every_s=inference_at_least_every_s)
    play(gate, lambda _: room(), 20, noise=noise)
    return gate


def settled_gate(noise: float = 1.0, inference_at_least_every_s: float = NEVER_S) -> MotionGate:
    """One that has seen an empty room for 20 s."""
    return copy.deepcopy(_settled_gate(noise, inference_at_least_every_s))


@pytest.mark.parametrize("noise", [0, 3, 10, 25])
def test_an_empty_room_needs_no_inference_however_noisy_the_sensor(noise):
    gate = settled_gate(noise)
    assert play(gate, lambda _: room(), 30, start_s=20, noise=noise).mean() < 0.03


def test_the_first_frame_needs_an_inference():
    assert MotionGate(inference_at_least_every_s=NEVER_S).needs_inference(room().astype(np.uint8), 0.0, attentive=False)


@pytest.mark.parametrize("speed_px_s", [5, 10, 60])
@pytest.mark.parametrize("contrast", [-12, 12])
@pytest.mark.parametrize("noise", [1, 4])
def test_a_slow_walker_far_away_needs_inferences(speed_px_s, contrast, noise):
    gate = settled_gate(noise)
    open_ = play(
        gate,
        lambda t: with_person(room(), 100 + speed_px_s * (t - 20), 200, contrast=contrast),
        8,
        start_s=20,
        noise=noise,
    )
    assert open_[2:].all()


def test_a_change_of_any_size_counts_bytes_do_not_wrap():
    """Sums and differences of bytes wrap at 256: a change of 16 levels squares to 0."""
    for change in (-160, -128, -64, -16, 16, 64, 128):
        gate = MotionGate(inference_at_least_every_s=NEVER_S)
        plain = np.full((HEIGHT_PX, WIDTH_PX), 120 if change > 0 else 200, np.int16)
        play(gate, lambda _, p=plain: p, 2)
        assert play(
            gate, lambda _, p=plain, c=change: with_person(p, 300, 200, contrast=c, height_px=60), 0.5, start_s=2
        ).all()


def test_someone_who_stands_still_is_found_by_the_inference_that_is_due():
    gate = settled_gate(inference_at_least_every_s=1.0)
    open_ = play(gate, lambda _: with_person(room(), 300, 200, contrast=30), 40, start_s=20)
    inferences = np.nonzero(open_)[0]
    assert np.diff([0, *inferences, len(open_)]).max() <= 1.0 * RATE_FPS  # at least one a second, for ever
    assert open_[-10 * RATE_FPS :].mean() <= 0.11  # and no more than that once the picture is known


def test_every_frame_needs_an_inference_while_people_are_known_or_suspected():
    gate = settled_gate()
    luma = Sensor(1).show(room())
    assert not gate.needs_inference(luma, 20.0, attentive=False)
    assert all(gate.needs_inference(luma, 20.1 + i / RATE_FPS, attentive=True) for i in range(50))
    assert not gate.needs_inference(luma, 25.2, attentive=False)


def test_people_who_leave_cause_no_motion_afterwards():
    gate, sensor = settled_gate(), Sensor(1)
    person = with_person(room(), 300, 150, contrast=80, height_px=200)
    for i in range(30 * RATE_FPS):
        gate.needs_inference(sensor.show(person), 20 + i / RATE_FPS, attentive=i > 3)
    assert play(gate, lambda _: room(), 20, start_s=50)[5 * RATE_FPS :].mean() < 0.03


@pytest.mark.parametrize("levels_per_s", [0.5, 3, 20])
def test_daylight_that_comes_and_goes_keeps_the_gate_closed(levels_per_s):
    gate = settled_gate()
    open_ = play(gate, lambda t: room() + round(20 * np.sin(levels_per_s / 20 * (t - 20))), 30, start_s=20)
    assert open_.mean() < 0.1


@pytest.mark.parametrize("gain", [0.6, 0.9, 1.1, 1.25])
def test_an_exposure_step_is_over_within_two_seconds(gain):
    gate = settled_gate()
    open_ = play(gate, lambda _: (room() * gain).astype(np.int16), 20, start_s=20)
    assert not open_[2 * RATE_FPS :].any()


def test_somebody_so_close_that_the_exposure_changes_causes_no_motion_afterwards():
    gate, sensor = settled_gate(), Sensor(1)
    darker = (room() * 0.75).astype(np.int16)
    close = darker.copy()
    close[60:, 150:350] = 230  # a quarter of the picture
    for i in range(10 * RATE_FPS):
        gate.needs_inference(sensor.show(close), 20 + i / RATE_FPS, attentive=True)
    assert not play(gate, lambda _: darker, 10, start_s=30)[2 * RATE_FPS :].any()


def test_a_walker_is_seen_right_after_an_exposure_step():
    gate = settled_gate()
    darker = (room() * 0.8).astype(np.int16)
    play(gate, lambda _: darker, 3, start_s=20)
    open_ = play(gate, lambda t: with_person(darker, 100 + 10 * (t - 23), 200, contrast=12), 5, start_s=23)
    assert open_[2:].all()


INFRARED = {
    "other brightness everywhere": np.random.default_rng(6).permutation(room()[::20, ::20]).repeat(20, 0).repeat(20, 1),
    "negative": (240 - room() // 2).astype(np.int16),
}


@pytest.mark.parametrize("infrared", INFRARED.values(), ids=INFRARED)
def test_night_mode_opens_the_gate_and_it_closes_again(infrared):
    gate = settled_gate()
    open_ = play(gate, lambda _: infrared, 20, start_s=20, noise=6)
    assert open_[0]
    assert not open_[3 * RATE_FPS :].any()


def leaves(t: float, levels: int = 40) -> np.ndarray:
    """The room with a tree in one corner that looks different in every frame."""
    cells = np.random.default_rng(round(t * RATE_FPS)).integers(-levels, levels, (10, 20))
    picture = room().copy()
    picture[40:140, 400:600] += cells.repeat(10, 0).repeat(10, 1)
    return picture


def test_leaves_in_the_wind_are_learnt_and_hide_nobody_elsewhere():
    gate = MotionGate(inference_at_least_every_s=NEVER_S)
    play(gate, leaves, 60)
    assert play(gate, leaves, 20, start_s=60).mean() < 0.2
    walk = play(gate, lambda t: with_person(leaves(t), 100 + 10 * (t - 80), 300, contrast=12), 5, start_s=80)
    assert walk[2:].all()


def test_no_storm_in_the_leaves_hides_somebody_close_to_the_camera():
    gate = MotionGate(inference_at_least_every_s=NEVER_S)
    play(gate, lambda t: leaves(t, 200), 60)
    quiet = with_person(room(), 450, 60, contrast=100, height_px=70)
    assert play(gate, lambda _: quiet, 0.3, start_s=61).all()


def test_people_in_view_are_not_learnt_as_usual_change():
    gate, sensor = settled_gate(), Sensor(1)
    for i in range(20 * RATE_FPS):
        pacing = with_person(room(), 300 + 40 * np.sin(i), 150, contrast=80, height_px=100)
        gate.needs_inference(sensor.show(pacing), 20 + i / RATE_FPS, attentive=True)
    play(gate, lambda _: room(), 3, start_s=40)
    walk = play(gate, lambda t: with_person(room(), 290 + 10 * (t - 43), 200, contrast=16), 5, start_s=43)
    assert walk[2:].all()


def test_a_camera_that_was_away_or_a_clock_that_stands_does_no_harm():
    gate = settled_gate()
    luma = Sensor(1).show(room())
    assert not gate.needs_inference(luma, 20.0, attentive=False)
    assert not gate.needs_inference(luma, 20.0, attentive=False)
    assert not gate.needs_inference(luma, 100_000.0, attentive=False)
    assert not play(gate, lambda _: room(), 5, start_s=100_000).any()


@pytest.mark.parametrize("size_px", [(480, 640), (960, 1280), (479, 641), (240, 320), (70, 90), (3000, 4000)])
def test_any_size_of_frame_will_do_and_a_change_of_size_too(size_px):
    gate = settled_gate()
    rows, columns = (np.arange(size) * full // size for size, full in zip(size_px, (HEIGHT_PX, WIDTH_PX), strict=True))
    frame = room()[rows][:, columns].astype(np.uint8)
    frame.setflags(write=False)  # the decoder's own picture
    for i in range(10):
        gate.needs_inference(frame, 20 + i / RATE_FPS, attentive=False)
    assert not gate.needs_inference(frame, 22.0, attentive=False)
    changed = with_person(frame, size_px[1] // 2, size_px[0] // 2, contrast=50, height_px=size_px[0] // 5)
    assert gate.needs_inference(changed, 22.1, attentive=False)


def test_shrinking_averages_squares():
    luma = np.random.default_rng(4).integers(0, 256, (480, 640)).astype(np.uint8)
    luma[:40] = 255  # sixteen of them are more than a byte holds
    assert np.allclose(shrink(luma), luma.reshape(120, 4, 160, 4).mean((1, 3)))
    wide = np.full((2048, 5120), 255, np.uint8)  # 32x32 of them are more than 16 bits hold
    assert (shrink(wide) == 255).all()


# --- on real video, against an inference on every frame

WITHOUT_EVENTS = {"intel_car-detection.mp4", "moonfire_clip.mp4"}  # there is none to be lost
VIDEOS = [offline.SCENE, *sorted(path for path in offline.CLIPS.glob("*.mp4") if path.name not in WITHOUT_EVENTS)]


@pytest.fixture(scope="module")
def finder(models: Path) -> offline.Detector:
    return offline.detector(models, INPUT_WIDTH_PX)


@pytest.mark.slow
@pytest.mark.parametrize("video", VIDEOS, ids=lambda path: path.name)
def test_no_event_is_lost_or_late_on_real_video(video: Path, finder):
    seen = offline.see(finder, video, frame_rate_fps=RATE_FPS, at_most_frames=LONGEST_FRAMES)
    without = offline.play(seen, gate=None)
    # Without motion one inference a minute: the events must be found by their motion.
    through = offline.play(seen, gate=MotionGate(inference_at_least_every_s=60))
    assert len(through.starts_s) == len(without.starts_s) > 0
    for plain_s, gated_s in zip(without.starts_s, through.starts_s, strict=True):
        assert gated_s - plain_s <= MAX_DELAY_FRAMES / RATE_FPS + 1e-6


def test_clips_are_at_hand():
    if not offline.CLIPS.is_dir():
        pytest.skip("the CCTV clips (../shared/clips) are not on this machine; only the demo scene was played")
    assert len(VIDEOS) > 1


def test_inferences_without_motion_are_frequent_enough():
    """A person in view for the time of a short event is in several of them, even if nothing seems to move."""
    assert 0 < script.INFERENCE_AT_LEAST_EVERY_S <= script.PRE_ROLL_S
