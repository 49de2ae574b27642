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
    return list(_wrong_types(c)) or [advice for holds, advice in _rules(c) if not holds]


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


def _rules(c: SimpleNamespace) -> tuple[tuple[Any, str], ...]:
    return (
        (0 < c.CONF_THRES < 1, "CONF_THRES must lie between 0 and 1"),
        (0 < c.IOU_THRES <= 1, "IOU_THRES must lie between 0 and 1"),
        (c.MAX_DET >= 1, "MAX_DET must be at least 1"),
        (1 <= c.DETECTIONS_TO_START <= 5, "DETECTIONS_TO_START must lie between 1 and 5"),
        (c.PERSON_GONE_AFTER_S >= 0, "PERSON_GONE_AFTER_S must not be negative"),
        (
            0 <= c.PRE_ROLL_S <= c.MAX_RECORDING_DURATION_S / 2,
            "PRE_ROLL_S must be at most half of MAX_RECORDING_DURATION_S, or the clip ends before the event",
        ),
        (
            c.MIN_GAP_BETWEEN_VIDEO_START_S >= c.MAX_RECORDING_DURATION_S,
            "MIN_GAP_BETWEEN_VIDEO_START_S must be at least MAX_RECORDING_DURATION_S, or clips would overlap",
        ),
        (
            all(size >= 64 and size % 2 == 0 for size in (c.FRAME_WIDTH_PX, c.FRAME_HEIGHT_PX)),
            "FRAME_WIDTH_PX and FRAME_HEIGHT_PX must be even (H.264) and at least 64",
        ),
        (
            0 < c.INFERENCE_AT_LEAST_EVERY_S <= c.MAX_RECORDING_DURATION_S,
            "INFERENCE_AT_LEAST_EVERY_S must lie between 0 and MAX_RECORDING_DURATION_S, or people who stand still are"
            " missed",
        ),
        (c.DETECTOR_INPUT_WIDTH_PX >= 64, "DETECTOR_INPUT_WIDTH_PX must be at least 64"),
        (c.FRAME_RATE_FPS >= 1, "FRAME_RATE_FPS must be at least 1"),
        (c.BITRATE_BPS >= 10_000, "BITRATE_BPS is in bits per second, so at least 10_000"),
        (
            _STREAM.fullmatch(c.STREAM_URL) and int(c.STREAM_URL.rpartition(":")[2]) < 65536,
            "STREAM_URL must look like tcp://127.0.0.1:8888",
        ),
        *(
            (_BUCKET.fullmatch(getattr(c, name)), f"{name} must be the bucket's name alone, without s3:// and slashes")
            for name in ("VIDEOS_BUCKET", "IMAGES_BUCKET")
        ),
        (
            c.VIDEOS_BUCKET != c.IMAGES_BUCKET,
            "VIDEOS_BUCKET and IMAGES_BUCKET must differ: each new object in the images bucket alerts somebody",
        ),
        (c.MIN_FREE_DISK_BYTES >= 0, "MIN_FREE_DISK_BYTES must not be negative"),
    )
