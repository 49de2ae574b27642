"""Who is found at night: the official model, the bundled one and the night adapter, on real and on made nights.

`yolov5n.pt` is the official model by itself; all others see dark pictures brightened, as in the daemon.

    python -m bench.night [--adapter models/yolov5n-night.npz] [--width 416] [--precision f32]

Sets: real night pictures (`night/night_eval.tar`), the evaluation stills by day (`eval/*.tar`), and the same stills
made into the darkest night by `darkest_night` below, which training never uses. The score of an image is that of its
best box. Recalls are compared at equal false rates, because a threshold means something else to each model.
"""

from __future__ import annotations

import argparse
import csv
import io
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cv2
import numpy as np

import detect_and_upload as script
from bench.report import ROOT, table, write_section
from guardianberry.detection.adapter import adapted_name
from guardianberry.detection.conversion_child import convert_checkpoint
from guardianberry.detection.detector import Detector
from guardianberry.detection.postprocess import Letterbox
from guardianberry.detection.weights import Graph
from training.data import read_tar
from training.metrics import area_under_curve

FALSE_RATE = 0.03
OFFICIAL = "yolov5n.pt"
LOWEST_SCORE = 0.001
DARK_MEAN_LEVEL, READ_NOISE_LEVEL, DARK_JPEG_QUALITY = 16.0, 4.0, 45


class Still(NamedTuple):
    """A picture, whether somebody is in it, and the camera or clip that it is of."""

    bgr: np.ndarray
    has_person: bool
    group: str


def read_night(path: Path) -> list[Still]:
    """night_eval.tar: truth by image, out of its `image_level.csv`."""
    with tarfile.open(path) as tar:
        files = {Path(m.name).name: m for m in tar if m.isfile()}
        rows = csv.DictReader(io.TextIOWrapper(tar.extractfile(files["image_level.csv"])))  # type: ignore[arg-type]
        stills = []
        for row in rows:
            data = tar.extractfile(files[row["file"]]).read()  # type: ignore[union-attr]
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            stills.append(Still(bgr, row["has_person"] == "1", row["group"]))
    return stills


def read_stills(path: Path) -> list[Still]:
    """An evaluation tar; each picture is of another camera."""
    return [Still(example.bgr, len(example.boxes) > 0, example.name) for example in read_tar(path)]


def darkest_night(still: Still, seed: int) -> Still:
    """Grey, dim, with the shot and read noise of a high gain, then JPEG: a NoIR camera with hardly any light."""
    rng = np.random.default_rng(seed)
    light = cv2.cvtColor(still.bgr, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    levels = light**1.3 * (DARK_MEAN_LEVEL / max(float((light**1.3).mean()), 1e-3))
    noise = rng.standard_normal(light.shape, np.float32)
    levels = levels + noise * np.sqrt(READ_NOISE_LEVEL**2 + 2 * levels)
    grey = levels.clip(0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, DARK_JPEG_QUALITY])[1]
    return still._replace(bgr=cv2.imdecode(data, cv2.IMREAD_COLOR))


def fit(bgr: np.ndarray, width_px: int) -> np.ndarray:
    """The network's input as the daemon makes it of a frame: scaled, then padded to multiples of 32 px."""
    return Letterbox(*bgr.shape[:2], width_px).pack(np.ascontiguousarray(bgr))[0].copy()


def best_scores(stills: list[Still], graph: Graph, *, width_px: int, precision: str) -> np.ndarray:
    """The best box's score of each picture, 0 where there is none."""
    scores = np.zeros(len(stills))
    inputs = [fit(still.bgr, width_px) for still in stills]
    detector = None
    for i in sorted(range(len(inputs)), key=lambda i: inputs[i].shape):  # each change of size compiles the network anew
        height, width = inputs[i].shape[:2]
        detector = detector or Detector(
            graph, frame_width_px=width, frame_height_px=height, conf_thres=LOWEST_SCORE,
            iou_thres=script.IOU_THRES, max_det=1, precision=precision, threads=1,
        )  # fmt: skip
        people = detector.find_people(inputs[i])
        scores[i] = people[0].confidence if people else 0.0
    return scores


def group_weights(groups: Iterable[str]) -> np.ndarray:
    """Weights that sum to 1 and give each group the same sum."""
    _, place, sizes = np.unique(list(groups), return_inverse=True, return_counts=True)
    return 1 / sizes[place] / len(sizes)


class Result(NamedTuple):
    """One line of the table; the second four count each group (camera or clip) once."""

    recall_at_false_rate: float
    auc: float
    recall: float  # at CONF_THRES
    false_rate: float  # at CONF_THRES
    group_recall_at_false_rate: float
    group_auc: float
    group_recall: float
    group_false_rate: float


def measure(scores: np.ndarray, stills: list[Still]) -> Result:
    people = np.array([still.has_person for still in stills])
    groups = np.array([still.group for still in stills])
    positive, negative = scores[people], scores[~people]
    # The lowest threshold at which no more than FALSE_RATE of the empty pictures are taken for people.
    threshold = np.sort(negative)[::-1][int(FALSE_RATE * len(negative))]
    wp, wn = group_weights(groups[people]), group_weights(groups[~people])
    order = np.argsort(negative)
    below = np.concatenate(([0.0], np.cumsum(wn[order])))
    left, right = (np.searchsorted(negative[order], positive, side=side) for side in ("left", "right"))  # type: ignore[call-overload]
    conf = script.CONF_THRES
    return Result(
        float((positive > threshold).mean()), area_under_curve(positive, negative),
        float((positive >= conf).mean()), float((negative >= conf).mean()),
        float(wp[positive > threshold].sum()), float(((below[left] + below[right]) / 2) @ wp),
        float(wp[positive >= conf].sum()), float(wn[negative >= conf].sum()),
    )  # fmt: skip


def source_lines(stills: list[Still], all_scores: dict[str, np.ndarray]) -> list[str]:
    """Recall of the night pictures by source, at each model's own threshold for FALSE_RATE."""
    people = np.array([s.has_person for s in stills])
    sources = np.array([s.group.partition("_")[0] for s in stills])
    names = [name for name in np.unique(sources[people]) if (sources[people] == name).sum() >= 20]
    rows = []
    for model, scores in all_scores.items():
        negative = np.sort(scores[~people])[::-1]
        found = scores > negative[int(FALSE_RATE * len(negative))]
        rows.append([model, *(f"{found[people & (sources == name)].mean():.3f}" for name in names)])
    head = [f"{name} ({(people & (sources == name)).sum()})" for name in names]
    return table(["recall of night_eval by source", *head], rows)


def collect(shared: Path) -> dict[str, list[Still]]:
    sets = {}
    if (shared / "night" / "night_eval.tar").exists():
        sets["night_eval"] = read_night(shared / "night" / "night_eval.tar")
    dark: list[Still] = []
    for path in sorted((shared / "eval").glob("*.tar")):
        sets[f"{path.stem} by day"] = stills = read_stills(path)
        dark += stills
    if dark:
        sets["both as darkest night"] = [darkest_night(still, seed) for seed, still in enumerate(dark)]
    return sets


def graphs(options: argparse.Namespace, folder: Path) -> list[Graph]:
    official = options.shared / "weights" / "yolov5n.pt"
    found = [Graph(ROOT / "models" / "guardianberry-n.xml", "guardianberry-n.xml")]
    if official.exists():
        convert_checkpoint(official, folder / "official.xml", half=False)
        found[:0] = [Graph(folder / "official.xml", name) for name in (OFFICIAL, f"{OFFICIAL} brightened")]
        for number, adapter in enumerate(options.adapter):
            out = folder / f"adapted{number}.xml"
            convert_checkpoint(official, out, adapter, half=False)
            name = adapted_name(official)
            found.append(Graph(out, name if len(options.adapter) == 1 else f"{name} {adapter.stem}"))
    return found


def row(name: str, model: str, result: Result) -> list[str]:
    digits = (3, 4, 3, 3) * 2
    return [name, model, *(f"{value:.{places}f}" for value, places in zip(result, digits, strict=True))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--adapter", type=Path, nargs="*", default=[ROOT / "models" / "yolov5n-night.npz"])
    add("--width", type=int, default=script.DETECTOR_INPUT_WIDTH_PX, help="long side of the network's input, px")
    add("--precision", default="f32", help='the same on every machine; "" for what this CPU does best')
    add("--shared", type=Path, default=ROOT.parent / "shared")
    add("--sets", nargs="*", help="only these sets")
    options = parser.parse_args()
    rows, by_source = [], []
    with tempfile.TemporaryDirectory() as folder:
        models = graphs(options, Path(folder))
        for name, stills in collect(options.shared).items():
            if options.sets and name not in options.sets:
                continue
            ways = {"width_px": options.width, "precision": options.precision}
            scores = {}
            for graph in models:
                as_published = mock.patch("guardianberry.detection.postprocess.is_dark", return_value=False)
                with as_published if graph.model_name == OFFICIAL else nullcontext():
                    scores[graph.model_name] = best_scores(stills, graph, **ways)
            rows += [row(name, model, measure(values, stills)) for model, values in scores.items()]
            if name == "night_eval":
                by_source = ["", *source_lines(stills, scores)]
    conf = script.CONF_THRES
    columns = [f"recall at false rate {FALSE_RATE}", "AUC", f"recall at {conf}", f"false rate at {conf}"]
    lines = [
        f"Input {options.width} px, {options.precision or 'best precision'}. By image, then with each camera or clip"
        " counted once (by group).",
        "",
        *table(["set", "model", *columns, *(f"{column}, by group" for column in columns)], rows),
        *by_source,
    ]
    write_section("night", lines)


if __name__ == "__main__":
    main()
