"""Checks that the constants at the top of the script can work together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

_WHOLE_NUMBERS = (
    "FRAME_WIDTH_PX", "FRAME_HEIGHT_PX", "BITRATE_BPS", "DETECTOR_INPUT_WIDTH_PX", "MAX_DET", "DETECTIONS_TO_START",
)  # fmt: skip
_NUMBERS = (
    "MAX_RECORDING_DURATION_S", "MIN_GAP_BETWEEN_VIDEO_START_S", "PERSON_GONE_AFTER_S", "PRE_ROLL_S", "CONF_THRES",
    "IOU_THRES", "INFERENCE_AT_LEAST_EVERY_S", "FRAME_RATE_FPS", "MIN_FREE_DISK_BYTES",
)  # fmt: skip
_TEXTS = ("WEIGHTS", "STREAM_URL", "VIDEOS_BUCKET", "IMAGES_BUCKET")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}|arn:[^/]+[:/].+")  # what boto3 accepts; other servers have other rules
_STREAM = re.compile(r"tcp://[^\s:/]+:[0-9]{1,5}")


def by_name(constants: Mapping[str, Any]) -> SimpleNamespace:
    """The script's globals, constants only, as attributes."""
    return SimpleNamespace(**{name: value for name, value in constants.items() if name.isupper()})


def find_problems(constants: Mapping[str, Any]) -> list[str]:
    """One sentence for each constant that is wrong; empty when all are right."""
    c = by_name(constants)
    return list(_wrong_types(c)) or [problem for holds, problem in _rules(c) if not holds]


def _wrong_types(c: SimpleNamespace) -> Iterator[str]:
    """A number in quotes, say, or a constant that was deleted."""
    for names, types, expected in (
        (_WHOLE_NUMBERS, int, "a whole number"),
        (_NUMBERS, (int, float), "a number"),
        (_TEXTS, str, "text in quotes"),
    ):
        for name in names:
            value = getattr(c, name, None)
            if not isinstance(value, types):
                yield f"{name} must be {expected}, and is {value!r}"


def _rules(c: SimpleNamespace) -> Iterator[tuple[Any, str]]:
    """What must hold, and what to say where it does not."""
    yield 0 < c.CONF_THRES < 1, "CONF_THRES must lie between 0 and 1"
    yield 0 < c.IOU_THRES <= 1, "IOU_THRES must lie between 0 and 1"
    yield c.MAX_DET >= 1, "MAX_DET must be at least 1"
    yield 1 <= c.DETECTIONS_TO_START <= 5, "DETECTIONS_TO_START must lie between 1 and 5"
    yield c.PERSON_GONE_AFTER_S >= 0, "PERSON_GONE_AFTER_S must not be negative"
    half, longest = "at most half of MAX_RECORDING_DURATION_S", c.MAX_RECORDING_DURATION_S
    yield 0 <= c.PRE_ROLL_S <= longest / 2, f"PRE_ROLL_S must be {half}, or the clip ends before the event"
    gap = "MIN_GAP_BETWEEN_VIDEO_START_S must be at least MAX_RECORDING_DURATION_S, or clips would overlap"
    yield c.MIN_GAP_BETWEEN_VIDEO_START_S >= longest, gap
    for name in ("FRAME_WIDTH_PX", "FRAME_HEIGHT_PX"):
        size_px = getattr(c, name)
        yield size_px >= 64 and size_px % 2 == 0, f"{name} must be even (H.264) and at least 64"
    every = "INFERENCE_AT_LEAST_EVERY_S must be above 0 and at most MAX_RECORDING_DURATION_S"
    yield 0 < c.INFERENCE_AT_LEAST_EVERY_S <= longest, f"{every}, or people who stand still are missed"
    yield c.DETECTOR_INPUT_WIDTH_PX >= 64, "DETECTOR_INPUT_WIDTH_PX must be at least 64"
    yield c.FRAME_RATE_FPS >= 1, "FRAME_RATE_FPS must be at least 1"
    yield c.BITRATE_BPS >= 10_000, "BITRATE_BPS is in bits per second, so at least 10_000"
    is_url = _STREAM.fullmatch(c.STREAM_URL) and int(c.STREAM_URL.rpartition(":")[2]) < 65536
    yield is_url, "STREAM_URL must look like tcp://127.0.0.1:8888"
    for name in ("VIDEOS_BUCKET", "IMAGES_BUCKET"):
        alone = f"{name} must be the bucket's name alone, without s3:// and slashes"
        yield _BUCKET.fullmatch(getattr(c, name)), alone
    two = "VIDEOS_BUCKET and IMAGES_BUCKET must differ: each new object in the images bucket alerts somebody"
    yield c.VIDEOS_BUCKET != c.IMAGES_BUCKET, two
    yield c.MIN_FREE_DISK_BYTES >= 0, "MIN_FREE_DISK_BYTES must not be negative"
