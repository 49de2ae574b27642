"""Turns a data set into batches: which images, at which size, prepared ahead of time in processes of their own."""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from training.augment import training_example
from training.data import Dataset, Example

# What a batch looks like, by share of the schedule done: at first small and many, for the daemon's sizes in the end.
EARLY_PX, LATE_PX = 8 * 320 * 320, 16 * 320 * 320  # pixels a batch, whatever the size of its pictures
EARLY_SIZES = {192: 0.2, 256: 0.4, 320: 0.4}  # picture size in px: share of the batches
LATE_SIZES = {256: 0.1, 320: 0.35, 416: 0.35, 640: 0.2}  # the daemon looks at 640x480, where people are larger
LATE_FROM = 0.4
MOSAIC_SHARE = 0.6
FEW_MOSAICS_SHARE = 0.15
FEW_MOSAICS_FROM = 0.85  # the last pictures look like the daemon's
# Mosaics draw these sources (the end of the name) so many times as often: there are few pictures of animals and things.
OFTEN = {"nim": 10, "nra": 10, "ncm": 3, "nsc": 3}


class Picture(NamedTuple):
    images: Tensor  # uint8 [batch, 3, size, size], RGB, channels last in memory
    labels: Tensor  # float32 [n, 5]: image, centre x, y, w, h as fractions


def as_picture(pixels: np.ndarray, labels: np.ndarray) -> Picture:
    return Picture(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels))


def collate(examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of one size as a batch: RGB pixels [batch, size, size, 3] and labels as in Picture."""
    height_px, width_px = examples[0].bgr.shape[:2]
    rows = []
    for number, example in enumerate(examples):
        low, high = example.boxes[:, :2], example.boxes[:, 2:]
        row = np.concatenate(((low + high) / 2, high - low), 1) / np.array((width_px, height_px) * 2, np.float32)
        rows.append(np.concatenate((np.full((len(row), 1), number, np.float32), row), 1, dtype=np.float32))
    pixels = np.stack([example.bgr[:, :, ::-1] for example in examples])
    return pixels, np.concatenate(rows)


class PlannedBatch(NamedTuple):
    indexes: list[int]
    size_px: int
    mosaic_share: float


def plan_round(
    train: list[int], *, seed: int, round_number: int, rounds_per_epoch: int, progress: float
) -> list[PlannedBatch]:
    """One of the rounds that make an epoch, in which each image comes once. The same for the same arguments.

    Sizes and mosaics follow `progress`, the share of the schedule done when the round begins.
    """
    epoch, part = divmod(round_number, rounds_per_epoch)
    order = random.Random(f"{seed}/{epoch}").sample(train, len(train))[part::rounds_per_epoch]
    rng = random.Random(f"{seed}/{epoch}/{part}")
    sizes, batch_px = (EARLY_SIZES, EARLY_PX) if progress < LATE_FROM else (LATE_SIZES, LATE_PX)
    mosaic_share = MOSAIC_SHARE if progress < FEW_MOSAICS_FROM else FEW_MOSAICS_SHARE
    batches = []
    while order:
        size_px = rng.choices(list(sizes), list(sizes.values()))[0]
        count = max(batch_px // size_px**2, 1)
        batches.append(PlannedBatch(order[:count], size_px, mosaic_share))
        order = order[count:]
    if len(batches) > 1 and len(batches[-1].indexes) < 4:
        batches.pop()  # batch norm makes little sense of so few
    return batches


_worker: dict[str, Any] = {}  # set in each loader process only


def mosaic_partners(dataset: Dataset, train: list[int]) -> np.ndarray:
    """Indexes that a mosaic draws from, those of rare sources several times."""
    return np.array([i for i in train for _ in range(OFTEN.get(dataset.name(i).rpartition("_")[2], 1))])


def _start_worker(dataset: Dataset, train: list[int], seed: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the trainer decides when to stop
    cv2.setNumThreads(1)
    _worker.update(dataset=dataset, partners=mosaic_partners(dataset, train), seed=seed)


def _prepare(round_number: int, planned: PlannedBatch) -> tuple[np.ndarray, np.ndarray]:
    examples = [
        training_example(
            _worker["dataset"].__getitem__, index, _worker["partners"], size_px=planned.size_px,
            mosaic_share=planned.mosaic_share, seed=(_worker["seed"], round_number, index),
        )
        for index in planned.indexes
    ]  # fmt: skip
    return collate(examples)


class Loader:
    """Prepares the batches of a round ahead of time, in order, in processes of their own.

    Threads will not do: each torch call gives up the interpreter lock, and gets it back only 5 ms later where a
    loader thread computes; that halved the speed. Make it before the first torch computation: the processes fork.
    """

    def __init__(self, dataset: Dataset, train: list[int], *, seed: int, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, get_context("fork"), _start_worker, (dataset, train, seed))
        self._ahead = workers + 2
        self._pool.submit(os.getpid).result()  # fork now

    def batches(self, round_number: int, planned: list[PlannedBatch]) -> Iterator[Picture]:
        pending: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
        todo = iter(planned)
        try:
            for batch in todo:
                pending.append(self._pool.submit(_prepare, round_number, batch))
                if len(pending) > self._ahead:
                    yield as_picture(*pending.popleft().result())
            while pending:
                yield as_picture(*pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
