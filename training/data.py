"""Reads tars of images and YOLO labels; decodes each image once into a flat file of uint8 that is mapped into memory.

A shard is a tar of `NAME.webp` (or .jpg, .png) with `NAME.txt` beside it: one `class x y w h` line a person, centre and
size as fractions of the image. Shards are read one by one and each has its own cache, so they may arrive one by one.
"""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".webp", ".jpg", ".jpeg", ".png")
HELD_OUT_EVERY = 40  # every 40th image (2.5 %) is never trained on: it chooses the best epoch


class Example(NamedTuple):
    """One decoded image and its people; `boxes` is float32 [n, 4], x1 y1 x2 y2 in pixels of `bgr`."""

    name: str
    bgr: np.ndarray
    boxes: np.ndarray


def parse_labels(text: str) -> np.ndarray:
    """YOLO label lines as float32 [n, 4] of x1 y1 x2 y2, fractions of the image, clipped to it."""
    rows = [[float(value) for value in line.split()[1:5]] for line in text.splitlines() if line.strip()]
    centre_size = np.array(rows, np.float32).reshape(-1, 4)
    half = centre_size[:, 2:] / 2
    return np.concatenate((centre_size[:, :2] - half, centre_size[:, :2] + half), 1).clip(0, 1)


def read_tar(path: Path) -> Iterator[Example]:
    """Every image of a tar with its labels, in the tar's order; an image without a label file has no people."""
    with tarfile.open(path) as tar:
        texts: dict[str, str] = {}
        images: list[tarfile.TarInfo] = []
        for member in tar:
            file_name = PurePosixPath(member.name)
            if file_name.suffix.lower() in IMAGE_SUFFIXES:
                images.append(member)
            elif file_name.suffix == ".txt":
                texts[file_name.stem] = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
        for member in images:
            stem = PurePosixPath(member.name).stem
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if bgr is None:
                log.warning("%s: %s cannot be decoded; left out", path.name, member.name)
                continue
            height_px, width_px = bgr.shape[:2]
            scale = np.array((width_px, height_px, width_px, height_px), np.float32)
            yield Example(stem, bgr, parse_labels(texts.get(stem, "")) * scale)


class _Shard(NamedTuple):
    pixels: np.ndarray  # all images one after the other, flat uint8, mapped from disk
    names: np.ndarray
    offsets: np.ndarray  # int64 [images]
    sizes: np.ndarray  # int64 [images, 2]: height, width
    boxes: np.ndarray  # float32 [boxes, 4]
    box_starts: np.ndarray  # int64 [images + 1]


def _write_cache(tar_path: Path, pixels_path: Path, index_path: Path) -> None:
    names, sizes, boxes, offsets, box_starts, offset_bytes = [], [], [], [], [0], 0
    temporary = pixels_path.with_suffix(".tmp")
    with temporary.open("wb") as out:
        for example in read_tar(tar_path):
            names.append(example.name)
            offsets.append(offset_bytes)
            sizes.append(example.bgr.shape[:2])
            boxes.append(example.boxes)
            box_starts.append(box_starts[-1] + len(example.boxes))
            out.write(example.bgr.tobytes())
            offset_bytes += example.bgr.size
    os.replace(temporary, pixels_path)
    arrays = {"names": np.array(names), "offsets": np.array(offsets, np.int64), "sizes": np.array(sizes, np.int64)}
    all_boxes = np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32)
    np.savez(index_path, boxes=all_boxes, box_starts=np.array(box_starts, np.int64), **arrays)


def _open_shard(tar_path: Path, cache_folder: Path) -> _Shard:
    pixels_path, index_path = cache_folder / f"{tar_path.stem}.u8", cache_folder / f"{tar_path.stem}.npz"
    if not index_path.exists():  # written last: there is an index only where the pixels are complete
        cache_folder.mkdir(parents=True, exist_ok=True)
        log.info("decoding %s once, into %s", tar_path.name, cache_folder)
        _write_cache(tar_path, pixels_path, index_path)
    with np.load(index_path) as index:
        return _Shard(pixels=np.memmap(pixels_path, np.uint8, "r"), **{key: index[key] for key in index.files})


class Dataset:
    """All images of some shards, decoded; `dataset[i]` costs a view into memory. Safe to read from several threads."""

    def __init__(self, tar_paths: list[Path], cache_folder: Path) -> None:
        self._shards = [_open_shard(path, cache_folder) for path in tar_paths]
        self._places = [(s, i) for s, shard in enumerate(self._shards) for i in range(len(shard.names))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        shard_number, i = self._places[index]
        shard = self._shards[shard_number]
        height_px, width_px = (int(side) for side in shard.sizes[i])
        start = int(shard.offsets[i])
        bgr = shard.pixels[start : start + height_px * width_px * 3].reshape(height_px, width_px, 3)
        return Example(str(shard.names[i]), bgr, shard.boxes[shard.box_starts[i] : shard.box_starts[i + 1]])

    def name(self, index: int) -> str:
        """The image's name in its tar, without its ending."""
        shard_number, i = self._places[index]
        return str(self._shards[shard_number].names[i])

    def split(self) -> tuple[list[int], list[int]]:
        """Indexes to train on and indexes held out, disjoint, the same in every run over the same shards."""
        held_out = list(range(0, len(self), HELD_OUT_EVERY))
        return sorted(set(range(len(self))) - set(held_out)), held_out
