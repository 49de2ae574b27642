"""The names of event files: the only home of their format.

    videos/{recording_start_time}-{duration}-{max_people_found}-{max_confidence}-{inference_time_ms}-{width}-{height}.mp4
    images/{recording_start_time}-{confidence}-{width}-{height}.jpg
    videos/{recording_start_time}-{confidence}-{width}-{height}.best.jpg

Every field is a decimal integer without sign. `recording_start_time` is Unix seconds, the same for the image and the
video of one event; durations are seconds, confidences per cent, sizes pixels.

A file that must not be uploaded yet has a prefix that starts with a dot:

    .held-{boot}-{monotonic_ms}-{name}  an event from before the clock was set (see clock.py)
    .open-{name}                        a clip that is being written; the name, plain or held, is kept up to date
    .damaged-{name}                     a clip that cannot be finished without harm (see recording/finish_child.py)
    .part-{anything}                    a copy or an image that is being written; removed after a crash
"""

import dataclasses
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

_SECONDS_IN_TURN = 20
_DIGITS = 15  # at most: far beyond any date or size, and nothing overflows
_NUMBER = rf"(0|[1-9][0-9]{{0,{_DIGITS - 1}}})"

OPEN_PREFIX = ".open-"
PART_PREFIX = ".part-"
DAMAGED_PREFIX = ".damaged-"
_HELD_PATTERN = re.compile(r"\.held-([0-9a-f]{8})-([0-9]{1,15})-(.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class _Name:
    suffix: ClassVar[str]
    recording_start_time: int

    def encode(self) -> str:
        """Raises ValueError for a field that `parse` would not take back."""
        encoded = "-".join(str(value) for value in dataclasses.astuple(self)) + self.suffix
        if parse(encoded) != self:
            raise ValueError(f"{self} does not fit the file name format")
        return encoded


@dataclass(frozen=True)
class VideoName(_Name):
    """What the name of a clip says about its event."""

    suffix = ".mp4"
    duration: int
    max_people_found: int
    max_confidence: int
    inference_time_ms: int
    width: int
    height: int


@dataclass(frozen=True)
class _PictureName(_Name):
    confidence: int
    width: int
    height: int


class ImageName(_PictureName):
    """What the name of an alert image says about its event."""

    suffix = ".jpg"


class BestName(_PictureName):
    """What the name of the best picture of an event says. It lies in videos/, because no alert hangs on it."""

    suffix = ".best.jpg"


EventName = VideoName | ImageName | BestName
_AnyName = TypeVar("_AnyName", bound=EventName)
_PATTERNS: dict[type[EventName], re.Pattern[str]] = {
    name_type: re.compile("-".join([_NUMBER] * len(dataclasses.fields(name_type))) + re.escape(name_type.suffix))
    for name_type in (VideoName, ImageName, BestName)
}


@dataclass(frozen=True)
class HeldName:
    """An event file that is held until the clock is set: `monotonic_ms` is the event's time since boot `boot`."""

    boot: str
    monotonic_ms: int
    name: EventName

    def encode(self) -> str:
        return f".held-{self.boot}-{self.monotonic_ms}-{self.name.encode()}"


def parse(name: str) -> EventName | None:
    """The fields of a finished event file's name; None for every other name, which is then left alone."""
    for name_type, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(name):
            return name_type(*(int(field) for field in match.groups()))
    return None


def parse_open(name: str) -> VideoName | HeldName | None:
    """The name of a clip that was being written; None for every other file name."""
    if not name.startswith(OPEN_PREFIX):
        return None
    inner = name.removeprefix(OPEN_PREFIX)
    held = parse_held(inner)
    parsed = held.name if held else parse(inner)
    return (held or parsed) if isinstance(parsed, VideoName) else None


def parse_held(name: str) -> HeldName | None:
    """The fields of a held file's name; None for every other name."""
    match = _HELD_PATTERN.fullmatch(name)
    inner = parse(match[3]) if match else None
    return HeldName(match[1], int(match[2]), inner) if match and inner else None


def with_event_id(name: _AnyName, event_id: int) -> _AnyName:
    """The same name with another start time: `event_id`, modulo what fits the format."""
    return dataclasses.replace(name, recording_start_time=event_id % 10**_DIGITS)


def free_path(folder: Path, name: EventName) -> Path:
    """Where `name` can be put without replacing another event's file: itself, or with a start a few seconds later.

    Where many of the next seconds are taken, a chance one of them: a card full of names must not take hours.
    """
    start, path, tries = name.recording_start_time, folder / name.encode(), 0
    while os.path.lexists(path):
        tries += 1
        later_s = tries if tries <= _SECONDS_IN_TURN else random.randrange(2 ** min(tries - 15, 40))
        path = folder / with_event_id(name, start + later_s).encode()
    return path
