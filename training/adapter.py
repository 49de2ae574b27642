"""Makes the adapter file of trained weights, and applies it.

    python -m training.adapter --official yolov5n.pt --average RUN/last.pt [RUN/last.pt ...] --out yolov5n-night.npz

Several runs from the same official weights are averaged: their mean is as good as the best of them or better
(arXiv 2203.05482). `--share` goes only a part of the way from the official weights (arXiv 2109.01903).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guardianberry.detection.adapter import STEP_SUFFIX, Adapter
from guardianberry.detection.conversion_child import adapt
from guardianberry.detection.openvino_model import file_sha256
from guardianberry.detection.yolov5 import Model, keep_person_only, load_checkpoint

STEPS_MAX = 127  # of int8


def learnt(model: Model) -> dict[str, Tensor]:
    """The tensors that training changes: everything but statistics, counters and anchors."""
    return {name: p.detach().float() for name, p in model.named_parameters()}


def make_adapter(official: Path, runs: list[Path], *, share: float = 1.0, bias: float = 0.0) -> Adapter:
    """`share` of the mean difference of some runs' weights to the official ones.

    `bias` is added to the raw objectness of every anchor: it moves all scores, and so sets what CONF_THRES means.
    """
    before = learnt(keep_person_only(load_checkpoint(official)))
    weights = [torch.load(run, map_location="cpu", weights_only=True) for run in runs]
    differences = {}
    for name, tensor in before.items():
        mean = torch.stack([w[name].float() for w in weights]).mean(0)
        differences[name] = ((mean - tensor) * share).numpy()
    for level in range(3):
        differences[f"model.24.m.{level}.bias"][4::6] += np.float32(bias)
    return Adapter(file_sha256(official), differences)


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write the file; convolutions are rounded to 255 steps a filter."""
    entries: dict[str, NDArray] = {"official_sha256": np.array(adapter.official_sha256)}
    for name, difference in adapter.differences.items():
        if difference.ndim < 2:
            entries[name] = difference.astype(np.float16)
            continue
        per_filter = np.abs(difference).reshape(len(difference), -1).max(1)
        # Half precision first: the steps are counted in what the reader will multiply with.
        step = np.maximum(per_filter / STEPS_MAX, np.finfo(np.float16).tiny).astype(np.float16)
        scaled = difference / step.astype(np.float32).reshape(-1, *[1] * (difference.ndim - 1))
        entries[name] = scaled.round().clip(-STEPS_MAX, STEPS_MAX).astype(np.int8)
        entries[name + STEP_SUFFIX] = step
    np.savez_compressed(path, **entries)  # type: ignore[arg-type]


def adapted(official: Path, adapter: Adapter) -> Model:
    """The official network, cut down to the person, with an adapter for it."""
    model = keep_person_only(load_checkpoint(official))
    adapt(model, adapter)
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.adapter", description="Makes the night adapter's file.")
    add = parser.add_argument
    add("--official", type=Path, required=True)
    add("--average", type=Path, nargs="+", required=True, help="last.pt of one run or more")
    add("--share", type=float, default=1.0, help="of the way from the official weights to the trained ones")
    add("--bias", type=float, default=0.0, help="added to raw objectness, so that CONF_THRES keeps its meaning")
    add("--out", type=Path, default=Path("models/yolov5n-night.npz"))
    args = parser.parse_args(arguments)
    write_adapter(args.out, make_adapter(args.official, args.average, share=args.share, bias=args.bias))


if __name__ == "__main__":
    main()
