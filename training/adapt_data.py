"""The pictures of one batch for the night adapter: which kinds, how they are cut out, what each network sees."""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

import numpy as np

from guardianberry.detection.darkness import DARK_MEAN_LEVEL, brightened, mean_level
from training.augment import GREY, _paste, flip, mosaic, recolour
from training.data import Dataset, Example
from training.night import at_night

SIZES_PX = {256: 0.3, 320: 0.55, 416: 0.15}  # side of the square pictures: share of the batches
BATCH_PX = 8 * 320 * 320  # pixels a batch
MOSAIC_SHARE = 0.2
NOBODY_SOURCES = ("nro", "ncm", "nsc", "nim", "nra")  # end of the name; nobody in them
OFTEN = {"nim": 20, "nra": 20, "ncm": 3, "nsc": 3}  # few pictures of animals and things: drawn so many times as often
NIGHT_HELD_OUT_EVERY = 8
DEGRADE_REAL_SHARE = 0.25  # real night pictures that the student sees made worse


class Kind(enum.Enum):
    """What a picture is."""

    NIGHT_PEOPLE = enum.auto()
    NIGHT_NOBODY = enum.auto()
    REAL_PEOPLE = enum.auto()
    REAL_NOBODY = enum.auto()
    DAY_PEOPLE = enum.auto()
    DAY_NOBODY = enum.auto()

    @property
    def nobody(self) -> bool:
        return self in (Kind.NIGHT_NOBODY, Kind.REAL_NOBODY, Kind.DAY_NOBODY)

    @property
    def real(self) -> bool:
        return self in (Kind.REAL_PEOPLE, Kind.REAL_NOBODY)


# Of 16 pictures. Where a picture shows too little, the student learns how often somebody is there: as often as not.
SHARES = {
    Kind.NIGHT_PEOPLE: 4, Kind.NIGHT_NOBODY: 5, Kind.REAL_PEOPLE: 1.5, Kind.REAL_NOBODY: 1.5, Kind.DAY_PEOPLE: 2,
    Kind.DAY_NOBODY: 2,
}  # fmt: skip


class View(NamedTuple):
    """One picture: what the teacher sees, what the student sees, the labels (px) and what it is."""

    clean: np.ndarray
    night: np.ndarray
    boxes: np.ndarray
    kind: Kind


class Pools(NamedTuple):
    """Indexes to draw from: of day pictures with and without people, of real night ones likewise."""

    people: np.ndarray
    nobody: np.ndarray
    real_people: np.ndarray
    real_nobody: np.ndarray


def night_split(night: Dataset) -> tuple[list[int], list[int]]:
    """Indexes of real night pictures to train on, and held out to choose by."""
    held_out = list(range(0, len(night), NIGHT_HELD_OUT_EVERY))
    return sorted(set(range(len(night))) - set(held_out)), held_out


def plan_batch(shards: Dataset, night: Dataset) -> Pools:
    """The pools, without what is held out."""
    people, nobody = [], []
    for i in shards.split()[0]:
        source = shards.name(i).rpartition("_")[2]
        (nobody if source in NOBODY_SOURCES else people).extend([i] * OFTEN.get(source, 1))
    train = night_split(night)[0]
    real_people = [i for i in train if len(night[i].boxes)]
    real_nobody = [i for i in train if not len(night[i].boxes)]
    return Pools(*(np.array(pool) for pool in (people, nobody, real_people, real_nobody)))


def _cut(example: Example, size_px: int, rng: np.random.Generator, *, lowest: float, highest: float) -> Example:
    """The picture at a random scale and place on a square canvas, at most a sixth of its sides stretched."""
    height_px, width_px = example.bgr.shape[:2]
    scale = size_px / max(height_px, width_px) * math.exp(rng.uniform(math.log(lowest), math.log(highest)))
    stretch = math.exp(rng.uniform(-0.12, 0.12))
    scaled_px = max(round(width_px * scale * stretch), 8), max(round(height_px * scale / stretch), 8)
    canvas = np.full((size_px, size_px, 3), GREY, np.uint8)
    left, top = (int(rng.uniform(min(0, size_px - side), max(0, size_px - side))) for side in scaled_px)
    boxes = _paste(canvas, (0, 0, size_px, size_px), example, scaled_px, (left, top))
    return Example(example.name, canvas, boxes)


def _draw(
    dataset: Dataset, pool: np.ndarray, size_px: int, rng: np.random.Generator, *, highest: float, mosaics: float
) -> Example:
    def fetch() -> Example:
        example = dataset[int(rng.choice(pool))]
        return flip(example) if rng.random() < 0.5 else example

    if rng.random() < mosaics:
        return mosaic([fetch() for _ in range(4)], size_px, rng)
    return _cut(fetch(), size_px, rng, lowest=0.7, highest=highest)


def prepare(pools: Pools, shards: Dataset, night: Dataset, rng: np.random.Generator) -> list[View]:
    """The pictures of one batch, all of one size, of the kinds in their shares."""
    size_px = int(rng.choice(list(SIZES_PX), p=list(SIZES_PX.values())))
    count = BATCH_PX // size_px**2
    views = []
    for kind, share in SHARES.items():
        wanted = count * share / sum(SHARES.values())
        number = int(wanted) + int(rng.random() < wanted % 1)
        views += [_view(kind, pools, shards, night, size_px, rng) for _ in range(number)]
    return views


def _view(kind: Kind, pools: Pools, shards: Dataset, night: Dataset, size_px: int, rng: np.random.Generator) -> View:
    if kind.real:
        pool = pools.real_nobody if kind.nobody else pools.real_people
        example = _draw(night, pool, size_px, rng, highest=2.2, mosaics=0.1)
        seen = example.bgr
        if rng.random() < DEGRADE_REAL_SHARE:
            seen = at_night(seen, example.boxes, rng)
        return View(example.bgr, as_the_network_sees(seen, rng), example.boxes, kind)
    pool = pools.nobody if kind.nobody else pools.people
    example = _draw(shards, pool, size_px, rng, highest=1.6, mosaics=MOSAIC_SHARE)
    clean = recolour(example.bgr, rng) if rng.random() < 0.3 else example.bgr
    if kind in (Kind.DAY_PEOPLE, Kind.DAY_NOBODY):
        return View(clean, clean, example.boxes, kind)
    return View(clean, as_the_network_sees(at_night(clean, example.boxes, rng), rng), example.boxes, kind)


def as_the_network_sees(picture_bgr: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """With what the daemon does to dark pictures; with `rng` a little more or less of it. Padding stays."""
    padding = (picture_bgr == GREY).all(2)
    seen = picture_bgr.copy()
    seen[padding] = picture_bgr[~padding].mean(0) if not padding.all() else GREY
    if mean_level(seen) > (rng.uniform(35, 65) if rng else DARK_MEAN_LEVEL):
        return picture_bgr
    strength = {"smoothing_px": rng.uniform(0.8, 1.4), "target_mean_level": rng.uniform(35, 75)} if rng else {}
    seen = brightened(seen, **strength)
    seen[padding] = GREY
    return seen
