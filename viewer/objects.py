"""What may be believed of an object. A stolen camera key can write any key, metadata and body into both buckets.

Names are taken apart by patterns and built anew from UUIDs and numbers, integers are parsed and bounded, text loses
what is not printable, and a body must begin as its kind of file begins.
"""

from __future__ import annotations

import enum
import re
import struct
import urllib.parse
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

IMAGES, VIDEOS = "images", "videos"  # the two buckets, whatever they are called

_UUID = r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_BEAT = re.compile(r"alive/([^/]{1,200})/[0-9]{1,11}", re.ASCII)
_INTEGER = re.compile(r"[0-9]{1,15}", re.ASCII)
_SERIAL = re.compile(r"[0-9A-Za-z]{1,64}", re.ASCII)
_OFFSET = re.compile(r"[0-9T:.\-]{10,40}([+-])([01][0-9]):?([0-5][0-9])", re.ASCII)
_MOST_OFFSET_MIN = 14 * 60
_MOST_PIXELS = 50_000_000
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}  # markers of JPEG; no camera writes them before the size
_CAMERA_CHARACTERS = 40
_CAMERA_NAMESPACE = uuid.UUID("2f9d41c8-70b5-4a6e-93f2-1e8b6c0a5d74")  # the daemon's
_MAX_EARLY_S = 3600  # S3 refuses uploads from a clock that is further ahead of its own


class Role(enum.StrEnum):
    """What an object is to its event."""

    IMAGE = "image"
    CLIP = "clip"
    BEST = "best"  # the best picture of the event
    PART = "part"  # a byte range of the clip while it was recorded
    STILL = "still"  # a picture in place of parts that a slow uplink could not take


_KEYS: dict[Role, tuple[str, re.Pattern[str]]] = {
    Role.IMAGE: (IMAGES, re.compile(_UUID + r"\.jpg", re.ASCII)),
    Role.CLIP: (VIDEOS, re.compile(_UUID + r"\.mp4", re.ASCII)),
    Role.BEST: (VIDEOS, re.compile(rf"best/{_UUID}\.jpg", re.ASCII)),
    Role.PART: (VIDEOS, re.compile(rf"live/{_UUID}/([0-9]{{4}})\.part", re.ASCII)),
    Role.STILL: (VIDEOS, re.compile(rf"live/{_UUID}/([0-9]{{4}})\.jpg", re.ASCII)),
}
_FILES = {
    Role.IMAGE: "images/{}.jpg",
    Role.CLIP: "clips/{}.mp4",
    Role.BEST: "best/{}.jpg",
    Role.PART: "parts/{}-{:04}.part",
    Role.STILL: "parts/{}-{:04}.jpg",
}
MOST_BYTES = {
    Role.IMAGE: 10_000_000,
    Role.CLIP: 200_000_000,
    Role.BEST: 10_000_000,
    Role.PART: 50_000_000,
    Role.STILL: 10_000_000,
}


@dataclass(frozen=True, order=True)
class Name:
    """An object that belongs to an event. `uuid` is the object's own, or the event's where the key holds that."""

    role: Role
    uuid: str
    number: int = 0

    @property
    def file(self) -> str:
        """Where it goes in the folder; made of nothing but the UUID and the number."""
        return _FILES[self.role].format(self.uuid, self.number)


def parse_key(bucket: str, key: str) -> Name | None:
    """None for every key that is no event's."""
    for role, (home, pattern) in _KEYS.items():
        if home == bucket and (match := pattern.fullmatch(key)):
            return Name(role, match[1], int(match[2]) if pattern.groups > 1 else 0)
    return None


def parse_beat(key: str) -> str | None:
    """The camera of a heartbeat's key; None for other keys."""
    match = _BEAT.fullmatch(key)
    return clean_text(urllib.parse.unquote(match[1])) if match else None


def beat_of(serial: str) -> str:
    """What `parse_beat` returns for the heartbeats of the camera with this serial number."""
    return str(uuid.uuid5(_CAMERA_NAMESPACE, serial))


@dataclass(frozen=True)
class Facts:
    """What an object's metadata says, after it has been checked; None or "" where it says nothing usable."""

    start: int  # Unix seconds
    offset_min: int | None  # of the camera's local time to UTC
    camera: str
    serial: str
    event: str
    people: int | None
    confidence: int | None  # per cent
    duration_s: int | None


def read_facts(metadata: Mapping[str, str], *, modified: int) -> Facts:
    """`modified`: when the object arrived, by S3's own clock; it stands in for a start that cannot be true."""
    # Some servers hand names back in another case, or with hyphens.
    told = {name.lower().replace("-", "_"): value for name, value in metadata.items()}
    start = _integer(told, "recording_start_time", least=1, most=modified + _MAX_EARLY_S)
    serial = told.get("rpi_serial_no", "")
    event = told.get("event", "")
    duration_s = _integer(told, "duration", most=86_400)
    return Facts(
        start=modified if start is None else start,
        offset_min=_offset_min(told.get("local_time", "")),
        camera=clean_text(told.get("camera_name", "")),
        serial=serial if _SERIAL.fullmatch(serial) else "",
        event=event if re.fullmatch(_UUID, event, re.ASCII) else "",
        people=_integer(told, "max_people_found", most=1000),
        confidence=_integer(told, "max_confidence" if "max_confidence" in told else "confidence", most=100),
        duration_s=_integer(told, "duration_s", most=86_400) if duration_s is None else duration_s,
    )


def clean_text(text: str) -> str:
    """One short line without control characters and without marks that turn the direction of writing."""
    return "".join(c if c.isprintable() else " " for c in text[: 4 * _CAMERA_CHARACTERS]).strip()[:_CAMERA_CHARACTERS]


def _integer(told: Mapping[str, str], name: str, *, least: int = 0, most: int) -> int | None:
    text = told.get(name, "")
    return int(text) if _INTEGER.fullmatch(text) and least <= int(text) <= most else None


def _offset_min(local_time: str) -> int | None:
    match = _OFFSET.fullmatch(local_time)
    if not match:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    return None if minutes > _MOST_OFFSET_MIN else -minutes if match[1] == "-" else minutes


def content_problem(role: Role, head: bytes, size_bytes: int) -> str:
    """Why a body is not what its name says, told by its first bytes; "" where it is."""
    if size_bytes == 0:
        return "it is empty"
    if role is Role.CLIP:
        return "" if is_mp4(head) else "it is no MP4"
    if role is Role.PART:
        return ""  # only the joined file can be judged
    pixels = _jpeg_pixels(head)
    if pixels is None:
        return "it is no JPEG"
    return "" if 0 < pixels <= _MOST_PIXELS else "the picture is too large"


def is_mp4(head: bytes) -> bool:
    return head[4:8] == b"ftyp"


def _jpeg_pixels(head: bytes) -> int | None:
    """What the picture's header says; None where there is no such header in `head`."""
    if head[:3] != b"\xff\xd8\xff":
        return None
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", head, at + 1)
        if marker in _WITHOUT_LENGTH:
            return None  # a browser passes over it, and would find another size than we do
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return int(height) * int(width)
        at += 2 + length
    return None
