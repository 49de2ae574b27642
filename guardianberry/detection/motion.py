"""The motion gate: decides from brightness alone which frames need an inference, at a twenty-fifth of its cost.

Each frame is scaled down to about 160x120 and compared with a running background. An inference too many costs
milliseconds, a missed person costs the event: in doubt the answer is yes. Changes of light and exposure, sensor noise,
leaves and screens are learnt within half a minute, so that they do not cause an inference on every frame for ever.
"""

import math

import cv2
import numpy as np

from guardianberry.detection.postprocess import Array

SMALL_WIDTH_PX = 160
# Time constant of the background. A person who moves by one pixel of the small picture a second is still detected.
BACKGROUND_S = 8.0
# Time constant of the usual change at each place (leaves, screens, noise). Longer than a person needs to walk past.
USUAL_CHANGE_S = 30.0
# Grey levels (of 255). A change counts above FLOOR + USUAL_CHANGE_FACTOR times the usual change at its place. With
# noise alone that is more than five standard deviations.
FLOOR_LEVELS = 3.0
USUAL_CHANGE_FACTOR = 5.0
# Upper limit of the usual change: a change of about 60 levels counts everywhere.
MAX_USUAL_CHANGE_LEVELS = 12.0
# Frames need an inference for this long after the last motion: people pause.
HOLD_S = 0.5
# If more than half of the picture changed by this much, light or exposure changed. If it still differs by
# OTHER_PICTURE_LEVELS after the light is corrected for, the scene is new: night mode, or a camera that was turned.
LIGHT_LEVELS = 1.5
OTHER_PICTURE_LEVELS = 8.0


class MotionGate:
    """Decides frame by frame. It must get every decoded frame, in order. Times are monotonic seconds.

    Without motion one frame every `inference_at_least_every_s` needs an inference: it finds people who stand still.
    """

    def __init__(self, *, inference_at_least_every_s: float) -> None:
        self._inference_at_least_every_s = inference_at_least_every_s
        self.small: Array = np.zeros((0, 0), np.float32)  # the last frame, scaled down
        self._background = self.small
        self._usual_change = self._background
        self._last_s = self._inference_s = self._moved_s = -math.inf
        self._seen_frames = 0

    def needs_inference(self, luma: Array, time_s: float, *, attentive: bool) -> bool:
        """Whether the detector must run on this frame; True counts as an inference.

        `luma` is the frame's brightness, uint8 [height, width]; it is not changed. `attentive`: a person was detected
        or may be there. Then every frame needs an inference, and motion is not learnt as usual change.
        """
        self.small = shrink(luma)
        if self._moves(self.small, time_s, attentive=attentive):
            self._moved_s = time_s
        is_due = time_s - self._inference_s >= self._inference_at_least_every_s
        if not (attentive or is_due or time_s - self._moved_s < HOLD_S):
            return False
        self._inference_s = time_s
        return True

    def _moves(self, small: Array, time_s: float, *, attentive: bool) -> bool:
        """Compare with the background, then update the background."""
        if self._background.shape != small.shape:
            self._reset(small, time_s)
            return True
        change, deviation = self._compare(small)
        if middle(deviation - self._usual_change) > LIGHT_LEVELS:
            self._background = _relight(self._background, small)
            change, deviation = self._compare(small)
            if middle(deviation) > OTHER_PICTURE_LEVELS:
                self._reset(small, time_s)
                return True
        moving = deviation > FLOOR_LEVELS + USUAL_CHANGE_FACTOR * self._usual_change
        if attentive:
            # A known person does not become part of the background, which would show as motion once they leave.
            change[np.pad(moving, 1, "edge")] = 0
            deviation = self._usual_change
        self._learn(change, deviation, time_s)
        return bool(moving.any())

    def _compare(self, small: Array) -> tuple[Array, Array]:
        """The change, and its size in means of 3x3, what a person far away covers; without the outermost pixels."""
        change = small - self._background
        return change, np.abs(cv2.blur(change, (3, 3))[1:-1, 1:-1])

    def _learn(self, change: Array, deviation: Array, time_s: float) -> None:
        elapsed_s = time_s - self._last_s
        self._last_s = time_s
        self._seen_frames += 1
        # Plain averages at first, so that the noise is known after ten frames and not after half a minute.
        share = 1 / (self._seen_frames + 1)
        self._background += np.float32(max(share, 1 - math.exp(-elapsed_s / BACKGROUND_S))) * change
        share = max(share, 1 - math.exp(-min(elapsed_s, 1.0) / USUAL_CHANGE_S))
        usual = np.minimum(deviation, np.float32(MAX_USUAL_CHANGE_LEVELS))
        self._usual_change += np.float32(share) * (usual - self._usual_change)

    def _reset(self, small: Array, time_s: float) -> None:
        self._background = small
        self._usual_change = np.zeros((small.shape[0] - 2, small.shape[1] - 2), np.float32)
        self._last_s = time_s
        self._seen_frames = 0


def shrink(luma: Array) -> Array:
    """Means over squares, as float32, about SMALL_WIDTH_PX wide. The mean removes most of the noise."""
    side_px = max(1, round(luma.shape[1] / SMALL_WIDTH_PX))
    height_px, width_px = luma.shape[0] // side_px, luma.shape[1] // side_px
    whole = luma[: height_px * side_px, : width_px * side_px]
    rows = whole[::side_px].astype(np.uint16)  # bytes would wrap at 255
    for offset in range(1, side_px):
        rows += whole[offset::side_px]
    # As floats, because OpenCV rounds means of integers.
    columns = cv2.resize(rows.astype(np.float32), (width_px, height_px), interpolation=cv2.INTER_AREA)
    return columns / np.float32(side_px)


def changed_pixels(before: Array, now: Array, *, levels: float, noise_factor: float) -> Array:
    """Which pixels of two small pictures differ, bool: by more than `levels` and than `noise_factor` median changes."""
    difference = np.abs(cv2.blur(now - before, (3, 3)))
    return difference > max(levels, noise_factor * middle(difference))


def edge_strength(small: Array) -> Array:
    return cv2.magnitude(cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1))


def correlation(a: Array, b: Array, *, of_flat: float) -> float:
    """Of two pictures, -1 to 1; `of_flat` where one of them is uniform."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm else of_flat


def middle(picture: Array) -> float:
    """About the median, from a sixteenth of the pixels."""
    return quantile(picture[::4, ::4], 0.5)


def quantile(values: Array, share: float) -> float:
    """As np.quantile, which takes up to seven times as long, and 1 MB of memory: it loads numpy.ma."""
    ordered = values.flatten()
    place = share * (ordered.size - 1)
    low, high = math.floor(place), math.ceil(place)
    ordered.partition((low, high))
    return float(ordered[low]) * (1 - place + low) + float(ordered[high]) * (place - low)


def _relight(background: Array, small: Array) -> Array:
    """The background in the light of `small`: scaled and shifted by the gain and offset that explain most pixels."""
    was, now = background[::3, ::3].ravel(), small[::3, ::3].ravel()
    for _ in range(3):
        gain, offset = _fit_line(was, now)
        error = np.abs(now - (gain * was + offset))
        kept = error <= quantile(error, 0.7)  # people, lamps and glare differ from the light of the scene
        was, now = was[kept], now[kept]
    return np.clip(np.float32(gain) * background + np.float32(offset), 0, 255)


def _fit_line(x: Array, y: Array) -> tuple[float, float]:
    """Gain and offset by least squares. A uniform picture gives an offset only; the gain is never negative."""
    mean_x, mean_y = float(x.mean()), float(y.mean())
    spread = float(((x - mean_x) ** 2).mean())
    gain = float(((x - mean_x) * (y - mean_y)).mean()) / spread if spread > 1 else 1.0
    gain = max(gain, 0.0)
    return gain, mean_y - gain * mean_x
