"""Makes a day picture look as a camera without an infrared filter (NoIR), or a dim colour camera, sees at night.

What is imitated: grey from a random mix of the channels (cloth and plants reflect infrared otherwise than light), an IR
lamp whose light falls off, near people washed out, eyes and lamps that shine, little contrast, motion blur, the noise
of a high gain and what a camera's noise filter leaves of it, and compression. About 5 ms for a picture of 320 px.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

INFRARED_SHARE, DIM_GREY_SHARE = 0.4, 0.4  # the others are dim and keep some colour
MEAN_LEVELS = (8.0, 90.0)  # mean grey after exposure, 0 to 255, log-uniform
NOISE_LEVELS = (1.0, 28.0)  # standard deviation of the noise in grey levels, log-uniform
MOST_NOISE = 1.3  # of the picture's own standard deviation; under more nobody can be seen, and all of it is guessed
PAD_LEVEL = 114  # the daemon's padding around a picture stays as it is at night


def at_night(bgr: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A night version of a uint8 [height, width, 3] picture; `boxes` [n, 4], x1 y1 x2 y2 in px, are its people."""
    bgr = np.ascontiguousarray(bgr)
    padding = cv2.inRange(bgr, (PAD_LEVEL,) * 3, (PAD_LEVEL,) * 3) > 0  # type: ignore[arg-type]
    drawn = rng.random()
    infrared, grey = drawn < INFRARED_SHARE, drawn < INFRARED_SHARE + DIM_GREY_SHARE
    light = _mix_channels(bgr, rng, infrared=infrared) if grey else _fade(bgr, rng)
    light = cv2.pow(light, math.exp(rng.uniform(-0.4, 0.7)))  # the curve from scene to picture
    if infrared or rng.random() < 0.3:
        lamp = _lamp(light.shape[:2], rng)
        light *= lamp if light.ndim == 2 else lamp[:, :, None]
    if infrared and rng.random() < 0.4:
        _wash_out(light, boxes, rng)
    _shine(light, boxes, rng)
    if rng.random() < 0.35:
        light = _blur(light, rng)
    levels = _expose(light, rng)
    levels = _add_noise(levels, rng)
    picture = _compress(np.clip(levels, 0, 255).astype(np.uint8), rng)
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    picture[padding] = PAD_LEVEL
    return picture


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _mean_of_channels(picture: np.ndarray) -> np.ndarray:
    return cv2.transform(picture, np.full((1, 3), 1 / 3, np.float32))[:, :, None]


def _mix_channels(bgr: np.ndarray, rng: np.random.Generator, *, infrared: bool) -> np.ndarray:
    """One channel, 0 to 1. Infrared: any mix, red above all, now and then against the light's order."""
    weights = np.array((0.11, 0.59, 0.30))
    if infrared:
        weights = rng.dirichlet((0.8, 1.2, 2.0)) * 1.4 - rng.dirichlet((1.0, 1.0, 1.0)) * 0.4
    return np.clip(bgr.astype(np.float32) @ (weights / 255).astype(np.float32), 0, 1)


def _fade(bgr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour with less saturation and a cast: sodium lamps, blue hour, a white balance that gave up."""
    colour = bgr.astype(np.float32) / 255
    grey = _mean_of_channels(colour)
    colour = grey + (colour - grey) * np.float32(rng.uniform(0.0, 1.0))
    return colour * rng.uniform(0.6, 1.0, 3).astype(np.float32)


def _lamp(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Light of a lamp beside the lens: falls off from a place near the middle, to a rest at the corners."""
    height, width = shape
    x, y = width * rng.uniform(0.2, 0.8), height * rng.uniform(0.2, 0.8)
    radius = max(height, width) * rng.uniform(0.25, 0.9)
    columns, rows = np.arange(width, dtype=np.float32) - np.float32(x), np.arange(height, dtype=np.float32)[:, None]
    distance = (columns**2 + (rows - np.float32(y)) ** 2) / np.float32(radius**2)
    rest = np.float32(rng.uniform(0.02, 0.4))
    return rest + (1 - rest) / (1 + distance) ** np.float32(rng.uniform(0.7, 2.5))


def _wash_out(light: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> None:
    """Who is near the lamp is overexposed: the box's ellipse becomes bright and flat, with soft edges. In place."""
    for x1, y1, x2, y2 in boxes[:6].astype(int):
        if rng.random() < 0.5 or x2 - x1 < 4 or y2 - y1 < 4:
            continue
        patch = light[y1:y2, x1:x2]
        rows = np.linspace(-1, 1, patch.shape[0], dtype=np.float32)[:, None]
        columns = np.linspace(-1, 1, patch.shape[1], dtype=np.float32)
        share = np.clip(1.2 - rows**2 - columns**2, 0, 1) * np.float32(rng.uniform(0.2, 0.8))
        bright = 1 - (1 - np.minimum(patch, 1)) * np.float32(rng.uniform(0.1, 0.6))
        patch += (bright - patch) * share
    np.clip(light, 0, 1.5, out=light)


def _shine(light: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> None:
    """Lamps and reflectors anywhere, pairs of eyes anywhere and in heads. In place."""
    height, width = light.shape[:2]
    white = 1.5 if light.ndim == 2 else (1.5, 1.5, 1.5)
    if rng.random() < 0.15:
        for _ in range(int(rng.integers(1, 5))):
            place = int(rng.uniform(0, width)), int(rng.uniform(0, height))
            glow = np.zeros_like(light)
            cv2.circle(glow, place, int(rng.uniform(1, 7)), white, -1)
            light += cv2.GaussianBlur(glow, (0, 0), rng.uniform(0.7, 5))
    pairs = [(rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, 7))] if rng.random() < 0.12 else []
    for x1, y1, x2, y2 in boxes[:3]:
        if rng.random() < 0.1 and y2 - y1 > 40:
            pairs.append(((x1 + x2) / 2, y1 + (y2 - y1) * rng.uniform(0.05, 0.13), (x2 - x1) * 0.12))
    for x, y, gap in pairs:
        for side in (-0.5, 0.5):
            cv2.circle(light, (int(x + side * gap), int(y)), int(rng.integers(0, 2)), white, -1, cv2.LINE_AA)


def _blur(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Out of focus, or moved during a long exposure."""
    if rng.random() < 0.5:
        return cv2.GaussianBlur(light, (0, 0), rng.uniform(0.5, 1.8))
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, math.pi)
    step = np.array((math.cos(angle), math.sin(angle))) * length / 2
    middle = np.array((length / 2, length / 2))
    begin, end = (tuple(int(v) for v in middle + sign * step) for sign in (-1, 1))
    cv2.line(kernel, begin, end, 1.0)  # type: ignore[call-overload]
    return cv2.filter2D(light, -1, kernel / max(kernel.sum(), 1))


def _expose(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey levels: the mean where the gain puts it, little contrast at times, black not always at zero."""
    mean = _log_uniform(rng, *MEAN_LEVELS)
    levels = light * np.float32(min(mean / max(float(light.mean()), 0.01), 400))
    if rng.random() < 0.4:
        levels = mean + (levels - mean) * np.float32(rng.uniform(0.25, 0.9))
    return levels + np.float32(rng.uniform(0, 14) if rng.random() < 0.4 else 0)


def _add_noise(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shot and read noise, fine or in blots, at times smoothed by the camera, at times with the gain after it."""
    strength = _log_uniform(rng, *NOISE_LEVELS)
    height, width = levels.shape[:2]
    blot = int(rng.choice((1, 1, 1, 2, 3)))
    shape = (-(-height // blot), -(-width // blot), *levels.shape[2:])
    noise = rng.standard_normal(shape, np.float32)
    if blot > 1:
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(1.4)
    if levels.ndim == 3 and rng.random() < 0.5:
        noise = noise * np.float32(0.4) + _mean_of_channels(noise) * np.float32(1.4)
    shot = np.sqrt(np.maximum(levels, 0) / 40 + np.float32(rng.uniform(0.1, 1.0)))
    most = MOST_NOISE / blot * float(levels.std()) / float(shot.mean())
    noisy = levels + noise * shot * np.float32(min(strength, most))
    if rng.random() < 0.3:
        noisy = cv2.GaussianBlur(noisy, (0, 0), rng.uniform(0.5, 1.3))
    if rng.random() < 0.3:
        noisy = (noisy - np.float32(rng.uniform(0, 8))) * np.float32(_log_uniform(rng, 0.5, 3))
    return noisy


def _compress(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """JPEG at a low quality, at times at a lower resolution."""
    height, width = picture.shape[:2]
    if rng.random() < 0.2:
        small = max(int(width * rng.uniform(0.5, 0.9)), 8), max(int(height * rng.uniform(0.5, 0.9)), 8)
        picture = cv2.resize(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (width, height))
    if rng.random() < 0.7:
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(12, 85))])[1]
        flag = cv2.IMREAD_GRAYSCALE if picture.ndim == 2 else cv2.IMREAD_COLOR
        picture = cv2.imdecode(data, flag)
    return picture
