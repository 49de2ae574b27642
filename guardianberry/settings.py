"""Checks that the constants at the top of the script can work together."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from guardianberry.armed import ArmedHours

_WHOLE_NUMBERS = (
    "FRAME_WIDTH_PX", "FRAME_HEIGHT_PX", "BITRATE_BPS", "DETECTOR_INPUT_WIDTH_PX", "MAX_DET", "DETECTIONS_TO_START",
)  # fmt: skip
_NUMBERS = (
    "MAX_RECORDING_DURATION_S", "MIN_GAP_BETWEEN_VIDEO_START_S", "PERSON_GONE_AFTER_S", "PRE_ROLL_S", "CONF_THRES",
    "IOU_THRES", "INFERENCE_AT_LEAST_EVERY_S", "FRAME_RATE_FPS", "MIN_FREE_DISK_BYTES",
    "HEARTBEAT_S",
)  # fmt: skip
_TEXTS = ("WEIGHTS", "STREAM_URL", "VIDEOS_BUCKET", "IMAGES_BUCKET", "CAMERA_NAME", "ARMED_HOURS")
_NAMES = (
    *_WHOLE_NUMBERS, *_NUMBERS, *_TEXTS, "CAMERA_OPTIONS", "IGNORE_ZONES", "LIVE_UPLOAD", "SERVER_SIDE_ENCRYPTION",
)  # fmt: skip
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}|arn:[^/]+[:/].+")  # what boto3 accepts; other servers have other rules
# What the daemon sets itself on the camera program's command line, or what would end it or send its video elsewhere.
# Abbreviations count: the program takes "--out" for --output.
_OWN_CAMERA_OPTIONS = (
    "--nopreview", "--timeout", "--width", "--height", "--framerate", "--inline", "--intra", "--bitrate", "--codec",
    "--flush", "--low-latency", "--libav-format", "--libav-video-codec", "--libav-video-codec-opts", "--libav-audio",
    "--mode", "--output", "--listen", "--help", "--version", "--list-cameras", "--config", "--frames", "--segment",
    "--circular", "--split", "--signal", "--keypress", "--initial",
    "-n", "-t", "-g", "-b", "-o", "-l", "-h", "-c", "-s", "-k", "-i",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9 '()&+_-]{0,40}")  # what aws/alert_mail.py lets into a mail
_STREAM = re.compile(r"tcp://[^\s:/]+:[0-9]{1,5}")


def by_name(constants: Mapping[str, Any]) -> SimpleNamespace:
    """The script's globals, constants only, as attributes."""
    return SimpleNamespace(**{name: value for name, value in constants.items() if name.isupper()})


def find_problems(constants: Mapping[str, Any]) -> list[str]:
    """One sentence for each constant that is wrong; empty when all are right."""
    c = by_name(constants)
    return [*_missing(c), *_wrong_types(c)] or [problem for holds, problem in _rules(c) if not holds]


def option_names(options: Sequence[str]) -> list[str]:
    """The names among a command line's words: --rotation of "--rotation", "180"; "-0.5" is a value."""
    words = [word for word in options if re.match(r"--?[^-\d.]", word)]
    return [word.partition("=")[0] if word.startswith("--") else word[:2] for word in words]


def _missing(c: SimpleNamespace) -> Iterator[str]:
    """A constant that was deleted, or whose name was changed."""
    unknown = set(vars(c)).difference(_NAMES)
    for name in _NAMES:
        if not hasattr(c, name):
            similar = difflib.get_close_matches(name, unknown, n=1, cutoff=0.8)
            yield f"{name} is missing" + (f": is it {similar[0]}, spelt wrong?" if similar else "")


def _wrong_types(c: SimpleNamespace) -> Iterator[str]:
    """A number in quotes, say."""
    for names, types, expected in (
        (_WHOLE_NUMBERS, int, "a whole number"),
        (_NUMBERS, (int, float), "a number"),
        (_TEXTS, str, "text in quotes"),
    ):
        for name in names:
            value = getattr(c, name, None)
            if hasattr(c, name) and not isinstance(value, types):
                yield f"{name} must be {expected}, and is {value!r}"
    options = getattr(c, "CAMERA_OPTIONS", ())
    if not isinstance(options, (tuple, list)) or not all(isinstance(word, str) for word in options):
        yield f'CAMERA_OPTIONS must be words in quotes, like ("--rotation", "180"), and is {options!r}'


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
        yield 64 <= size_px <= 4096 and size_px % 2 == 0, f"{name} must be even (H.264) and lie between 64 and 4096"
    every = "INFERENCE_AT_LEAST_EVERY_S must be above 0 and at most MAX_RECORDING_DURATION_S"
    yield 0 < c.INFERENCE_AT_LEAST_EVERY_S <= longest, f"{every}, or people who stand still are missed"
    yield isinstance(c.LIVE_UPLOAD, bool), "LIVE_UPLOAD must be True or False"
    polygons = "IGNORE_ZONES must be polygons like (((0, 0), (0.3, 0), (0.3, 1)),): points from 0 to 1"
    yield _are_zones(c.IGNORE_ZONES), polygons
    yield c.DETECTOR_INPUT_WIDTH_PX >= 64, "DETECTOR_INPUT_WIDTH_PX must be at least 64"
    yield c.FRAME_RATE_FPS >= 1, "FRAME_RATE_FPS must be at least 1"
    least_bps = max(200_000, int(0.05 * c.FRAME_WIDTH_PX * c.FRAME_HEIGHT_PX * c.FRAME_RATE_FPS))
    too_low = f"BITRATE_BPS is in bits per second, at least {least_bps} for this size: the Pi's encoder stops below it"
    yield c.BITRATE_BPS >= least_bps, too_low
    for name in option_names(c.CAMERA_OPTIONS):
        is_own = any(own == name or (name.startswith("--") and own.startswith(name)) for own in _OWN_CAMERA_OPTIONS)
        yield not is_own, f"CAMERA_OPTIONS must not have {name}: the daemon sets that itself"
    is_words = not c.CAMERA_OPTIONS or c.CAMERA_OPTIONS[0].startswith("-")
    is_words = is_words and not any(re.search(r"^-*$|^-.*\s|\0", word) for word in c.CAMERA_OPTIONS)
    yield is_words, 'CAMERA_OPTIONS must have a name and its value as two words, like ("--rotation", "180")'
    is_url = _STREAM.fullmatch(c.STREAM_URL) and int(c.STREAM_URL.rpartition(":")[2]) < 65536
    yield is_url, "STREAM_URL must look like tcp://127.0.0.1:8888"
    for name in ("VIDEOS_BUCKET", "IMAGES_BUCKET"):
        alone = f"{name} must be the bucket's name alone, without s3:// and slashes"
        yield _BUCKET.fullmatch(getattr(c, name)), alone
    two = "VIDEOS_BUCKET and IMAGES_BUCKET must differ: each new object in the images bucket alerts somebody"
    yield c.VIDEOS_BUCKET != c.IMAGES_BUCKET, two
    yield c.MIN_FREE_DISK_BYTES >= 0, "MIN_FREE_DISK_BYTES must not be negative"
    yield _NAME.fullmatch(c.CAMERA_NAME), "CAMERA_NAME must be at most 40 ASCII letters, digits, spaces and '()&+-_"
    seldom = "HEARTBEAT_S must be 0 (off) or lie between 60 and 3600: 15 minutes without one are told as silence"
    yield c.HEARTBEAT_S == 0 or 60 <= c.HEARTBEAT_S <= 3600, seldom
    try:
        ArmedHours(c.ARMED_HOURS)
    except ValueError as error:
        yield False, f"ARMED_HOURS: {error}"


def _are_zones(zones: Any) -> bool:
    """A list of polygons with three points or more, each two fractions of the picture."""
    try:
        return all(len(zone) >= 3 and all(0 <= float(x) <= 1 and 0 <= float(y) <= 1 for x, y in zone) for zone in zones)
    except (TypeError, ValueError):
        return False
