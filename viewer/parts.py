"""Joined again: the parts of a clip that its camera could not finish, as one file that plays.

A clip under way is only ever appended to, and its parts are byte ranges of it, so their bytes in order are the
beginning of the clip. What `_bytes_of_part` returns is all that joining knows of a part.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from viewer.archive import Archive, write_whole
from viewer.objects import MOST_BYTES, Name, Role, is_mp4

_SAMPLES = 50
_SAMPLE_BYTES = 48
SUPERSEDED = "the clip has it"


def _bytes_of_part(archive: Archive, name: Name) -> bytes:
    """The clip's bytes that this part carries: the one place to change when parts are encrypted."""
    return archive.path(name).read_bytes()


def joined_path(archive: Archive, event: str) -> Path:
    return archive.folder / "joined" / f"{event}.mp4"


def join(archive: Archive, event: str, parts: list[Name]) -> Path | None:
    """One MP4 of the parts in order up to the first one that is missing; None where nothing could be played.

    `parts` are in the folder. The file is made anew only when parts have come in.
    """
    in_order = sorted(parts)
    unbroken = [name for place, name in enumerate(in_order) if name.number == in_order[0].number + place]
    sizes = [archive.items[name].size for name in unbroken]
    while sum(sizes) > MOST_BYTES[Role.CLIP]:
        sizes.pop()
    unbroken = unbroken[: len(sizes)]
    target = joined_path(archive, event)
    if not unbroken or not is_mp4(_bytes_of_part(archive, unbroken[0])[:8]):
        return None
    if not target.is_file() or target.is_symlink() or target.stat().st_size != sum(sizes):
        write_whole(target, (_bytes_of_part(archive, name) for name in unbroken))
    return target


def supersede(archive: Archive, event: str, parts: list[Name]) -> None:
    """The whole clip has all that the parts have: they give way to it."""
    for name in parts:
        archive.items[name].refused = SUPERSEDED
        archive.path(name).unlink(missing_ok=True)
    joined_path(archive, event).unlink(missing_ok=True)


def contains(clip: Path, joined: Path) -> bool:
    """Whether the pictures of `joined` are in `clip`. Its boxes may differ, the camera's own bytes may not."""
    whole = clip.read_bytes()
    payloads = list(_payloads(joined.read_bytes()))
    step = max(1, len(payloads) // _SAMPLES)
    samples = [payload[len(payload) // 2 :][:_SAMPLE_BYTES] for payload in (payloads[::-1])[::step]]
    return bool(samples) and all(sample in whole for sample in samples)


def _payloads(data: bytes) -> Iterator[bytes]:
    """What stands in the file's whole mdat boxes."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > len(data):
            return
        if kind == b"mdat" and size > 8:
            yield data[at + 8 : at + size]
        at += size
