"""The boxes of which an MP4 file is made, at its top level (ISO/IEC 14496-12, section 4.2)."""

import os
from collections.abc import Iterator
from typing import NamedTuple

_MAX_BOXES = 1_000_000  # two boxes a frame: more than an hour at 100 frames a second; bounds the time for any file


class Box(NamedTuple):
    """`end_bytes` is the offset behind it; of a box that was cut off, this is behind the end of the file."""

    name: bytes
    end_bytes: int


def read_boxes(descriptor: int, size_bytes: int) -> Iterator[Box]:
    """Each box of an open file of this size. Only the last one may be cut off.

    Raises ValueError where something follows that is no box, and OSError where the file cannot be read.
    """
    offset = 0
    for _ in range(_MAX_BOXES):
        header = os.pread(descriptor, 16, offset)
        if len(header) < 8:
            return
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:16])
        elif length == 0:  # up to the end of the file
            length = size_bytes - offset
        if length < 8:
            raise ValueError(f"no box at byte {offset}")
        offset += length
        yield Box(header[4:8], offset)
        if offset > size_bytes:
            return
