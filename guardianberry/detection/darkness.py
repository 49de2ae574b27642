"""Makes a dark picture fit for the network: its noise is smoothed, then it is brightened.

With hardly any light a camera gives a picture of a few levels with the noise of a high gain. Both steps are needed:
brightened alone, the noise looks like texture; smoothed alone, there are too few levels. What it brings: `bench.night`.
"""

from typing import Any

import cv2
from numpy.typing import NDArray

DARK_MEAN_LEVEL = 40.0  # of 255; a brighter picture stays as it is
TARGET_MEAN_LEVEL = 50.0
SMOOTHING_PX = 1.1  # standard deviation of the Gaussian, in pixels of the network's input
SAMPLE_EVERY_PX = 8


def mean_level(picture_bgr: NDArray[Any]) -> float:
    """Of a uint8 [height, width, 3] picture, 0 to 255, from some of its pixels."""
    return float(picture_bgr[::SAMPLE_EVERY_PX, ::SAMPLE_EVERY_PX].mean())


def is_dark(picture_bgr: NDArray[Any]) -> bool:
    """Whether a uint8 [height, width, 3] picture is one that `brightened` makes better."""
    return mean_level(picture_bgr) < DARK_MEAN_LEVEL


def brightened(
    picture_bgr: NDArray[Any], *, smoothing_px: float = SMOOTHING_PX, target_mean_level: float = TARGET_MEAN_LEVEL
) -> NDArray[Any]:
    """The same picture without most of its noise, in an array of its own."""
    smooth = cv2.GaussianBlur(picture_bgr, (0, 0), smoothing_px)
    return cv2.convertScaleAbs(smooth, alpha=max(target_mean_level / max(mean_level(smooth), 1.0), 1.0))
