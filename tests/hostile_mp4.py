"""MP4 files that are made to crash, to fill the memory or to fill the disk of who copies their packets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}


def box(name: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return (8 + len(content)).to_bytes(4) + name + content


def numbers(*values: int) -> bytes:
    return b"".join((value % 2**32).to_bytes(4) for value in values)


def changed(mp4: bytes, changes: dict[bytes, bytes]) -> bytes:
    """The same file with other contents in the boxes of these names."""

    def boxes(data: bytes) -> Iterator[bytes]:
        while data:
            length = int.from_bytes(data[:4])
            name, content, data = data[4:8], data[8:length], data[length:]
            yield box(name, b"".join(boxes(content)) if name in _CONTAINERS else changes.get(name, content))

    return b"".join(boxes(mp4))


def of_codec(codec: str) -> bytes:
    """A whole file of another codec than H.264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def two_streams(killed: bytes) -> bytes:
    at = killed.index(b"trak") - 4
    trak = killed[at : at + int.from_bytes(killed[at : at + 4])]
    moov_at = killed.index(b"moov") - 4
    moov_end = moov_at + int.from_bytes(killed[moov_at : moov_at + 4])
    return killed[:moov_at] + box(b"moov", killed[moov_at + 8 : moov_end], trak) + killed[moov_end:]


def crashes_the_muxer(killed: bytes) -> bytes:
    """One changed byte in `stts` is a SIGSEGV of FFmpeg 8.1.2 at the end of the copy."""
    at = killed.index(b"stts") + 16
    return killed[:at] + b"\xff" + killed[at + 1 :]


def samples(closed: bytes, count: int, size_bytes: int) -> bytes:
    """As many samples of this size, all of them at the place of the first one. The file is as large as one sample."""
    at = closed.index(b"mdat") + 4
    return changed(
        closed,
        {
            b"stts": numbers(0, 1, count, 9000),
            b"stsz": numbers(0, size_bytes, count),
            b"stsc": numbers(0, 1, 1, 1, 1),
            b"stco": numbers(0, count, *[at] * count) if count < 100_000 else numbers(0, 1, at),
            b"stss": numbers(0, 1, 1),
        },
    ) + box(b"free", bytes(size_bytes))


def one_hole(closed: bytes, count: int, size_bytes: int) -> bytes:
    """As many samples of this size, one after the other from the end of the file on: the caller appends a hole."""

    def made(at: int) -> bytes:
        tables = {
            b"stts": numbers(0, 1, count, 9000),
            b"stsz": numbers(0, size_bytes, count),
            b"stsc": numbers(0, 1, 1, count, 1),
            b"stco": numbers(0, 1, at),
            b"stss": numbers(0, 1, 1),
        }
        return changed(closed, tables) + numbers(8 + count * size_bytes) + b"free"

    return made(len(made(0)))


def hostile_files(killed: bytes, closed: bytes) -> dict[str, bytes]:
    """By what is wrong with them; made of a clip as a kill leaves it, and of a finished one."""
    one_chunk = {b"stsc": numbers(0, 1, 1, 60_000_000, 1), b"stco": numbers(0, 1, closed.index(b"mdat") + 4)}
    many = {b"stts": numbers(0, 1, 60_000_000, 9000), b"stsz": numbers(0, 1, 60_000_000)}
    edit_list = box(b"edts", box(b"elst", numbers(0, 3, *[2**31 - 1, -1, 0x10000] * 3)))
    at = killed.index(b"moov") - 4
    mdia_at = closed.index(b"mdia") - 4
    trak_at, moov_at = closed.index(b"trak") - 4, closed.index(b"moov") - 4

    def longer(mp4: bytes, at: int, by: int) -> bytes:
        return mp4[:at] + (int.from_bytes(mp4[at : at + 4]) + by).to_bytes(4) + mp4[at + 4 :]

    with_edits = closed[:mdia_at] + edit_list + closed[mdia_at:]
    return {
        "codec changed": killed.replace(b"avc1", b"vp09"),
        "changed byte in stts": crashes_the_muxer(killed),
        "codec unknown": killed.replace(b"avc1", b"xxxx"),
        "MPEG-4": of_codec("mpeg4"),
        "two streams": two_streams(killed),
        "60 million samples": changed(closed, many | one_chunk),
        "samples at one place": samples(closed, 11_000, 1_000_000),
        "table longer than its box": changed(closed, {b"stsz": numbers(0, 0, 2**32 - 1)}),
        "huge box": killed[:at] + numbers(1) + b"moov" + numbers(2**31, 0) + killed[at + 16 :],
        "box of length 0": killed[:at] + numbers(0) + killed[at + 4 :],
        "truncated": killed[:400],
        "edit list": longer(longer(with_edits, trak_at, len(edit_list)), moov_at, len(edit_list)),
        "negative times": killed.replace(b"tfdt\x01\0\0\0", b"tfdt\x01\0\0\0\xff\xff\xff\xff"),
        "time runs backwards": changed(closed, {b"stts": numbers(0, 1, 2**32 - 1, 2**32 - 1)}),
        "deep": box(b"moov", *[b"\0\0\x10\0trak"] * 5000),
    }
