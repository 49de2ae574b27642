"""Footage for the fault tests: a stand-in camera's stream of known pictures, and which of them a clip shows."""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import psutil

from bench.offline import SCENE, encode
from tests.daemon import ROOT

FRAME_RATE_FPS = 10
WITH_A_PERSON = slice(60, 120)  # frames of scene.mp4, from a key frame on


def write_footage(path: Path, units: slice = WITH_A_PERSON) -> list[bytes]:
    """An Annex-B file of these units of scene.mp4, for STAND_IN_H264; what identifies each of its pictures."""
    made = first_units(units.stop)[units.start :]
    path.write_bytes(b"".join(made))
    pictures = [slices_of(split_annex_b(unit)) for unit in made]
    assert len(set(pictures)) == len(pictures), "the footage has two equal pictures"
    return pictures


@functools.cache
def first_units(count: int) -> list[bytes]:
    """Access units of scene.mp4, every tenth a key frame. Encoding takes a second; the tests of a process share it."""
    encoded = encode(SCENE, frame_rate_fps=FRAME_RATE_FPS, persona="pi5")  # several slices a picture
    return list(itertools.islice(encoded, count))


def split_annex_b(unit: bytes) -> list[bytes]:
    return [part.rstrip(b"\0") for part in re.split(b"\0\0\1", unit) if part.strip(b"\0")]


def split_mp4(packet: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(packet):
        length = int.from_bytes(packet[offset : offset + 4])
        yield packet[offset + 4 : offset + 4 + length].rstrip(b"\0")
        offset += 4 + length


def slices_of(nal_units: Iterable[bytes]) -> bytes:
    """The coded picture alone, without parameter sets."""
    return b"".join(nal for nal in nal_units if nal[0] & 0x1F in (1, 5))


def pictures_in(path: Path, pictures: Sequence[bytes]) -> list[int]:
    """Which of the footage's pictures the clip shows; raises ValueError for one that is none of them."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]
    return [pictures.index(slices_of(split_mp4(packet))) for packet in packets]


def is_closed(path: Path) -> bool:
    """An MP4 that was closed has no fragments (moof boxes) any more."""
    data, offset = path.read_bytes(), 0
    while offset + 8 <= len(data):
        if data[offset + 4 : offset + 8] == b"moof":
            return False
        offset += int.from_bytes(data[offset : offset + 4]) or len(data)
    return True


def own_camera(folder: Path) -> dict[str, str]:
    """PATH with a camera program whose processes `cameras_in` can tell from those of others."""
    folder.mkdir(parents=True)
    (folder / "stand-in").symlink_to(ROOT / "demo" / "rpicam-vid")
    program = folder / "rpicam-vid"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/stand-in" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "STAND_IN_PERSONA": "pi5"}  # writes in pieces


def cameras_in(folder: Path) -> Iterator[psutil.Process]:
    """Those started from `own_camera(folder)` that are alive."""
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if any(word.startswith(str(folder)) for word in command) and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process
