"""Dark pictures are smoothed and brightened for the network, and only those."""

import numpy as np
import pytest

from guardianberry.detection.darkness import DARK_MEAN_LEVEL, TARGET_MEAN_LEVEL, brightened, is_dark
from guardianberry.detection.postprocess import GREY, Letterbox


def dark_edge(*, noise_levels: float) -> np.ndarray:
    """A grey picture, left half 10 and right half 22 levels, with noise."""
    light = np.full((256, 320), 10.0)
    light[:, 160:] = 22
    noisy = light + np.random.default_rng(3).normal(0, noise_levels, light.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[:, :, None], 3, 2)


def test_the_edge_in_a_dark_picture_stands_out_of_its_noise() -> None:
    def edge_over_noise(picture: np.ndarray) -> float:
        left, right = picture[:, :150], picture[:, 170:]
        return (right.mean() - left.mean()) / max(left.std(), right.std())

    picture = dark_edge(noise_levels=6)
    better = brightened(picture)
    assert better.mean() == pytest.approx(TARGET_MEAN_LEVEL, abs=2)
    assert edge_over_noise(better) > 3 * edge_over_noise(picture)


def test_a_black_picture_stays_black() -> None:
    assert not brightened(np.zeros((48, 64, 3), np.uint8)).any()


@pytest.mark.parametrize("size", [(256, 320), (128, 160), (200, 320)])  # as the network's input, smaller, with padding
def test_the_network_gets_a_dark_frame_brightened_and_the_frame_stays(size: tuple[int, int]) -> None:
    frame = dark_edge(noise_levels=2)[: size[0], 160 - size[1] // 2 : 160 + size[1] // 2].copy()
    before = frame.copy()
    letterbox = Letterbox(*size, 320)
    packed = letterbox.pack(frame)[0]
    rows = slice(letterbox.top_px, letterbox.top_px + letterbox.scaled_px[0])
    assert packed[rows].mean() == pytest.approx(TARGET_MEAN_LEVEL, abs=2)
    assert (np.delete(packed, rows, 0) == GREY).all()
    assert (frame == before).all()


def test_a_picture_with_enough_light_is_not_touched() -> None:
    level = int(DARK_MEAN_LEVEL)
    assert is_dark(np.full((48, 64, 3), level - 1, np.uint8))
    frame = np.full((256, 320, 3), level, np.uint8)
    assert not is_dark(frame)
    assert np.shares_memory(Letterbox(256, 320, 320).pack(frame), frame)
