"""How much of the teacher's weights is in a student's: `python -m training.likeness TEACHER.pt STUDENT.pt`.

For each convolution that both have in the same place, batch norm folded in: the cosine between the two weight tensors
as they are (1: a copy, 0: nothing in common), and the mean over the student's filters of the largest cosine with any
filter of the teacher's, which also finds copies in another order of the outputs. The last column is what filters of
random numbers would reach.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from guardianberry.detection.yolov5 import Model, fuse, load_checkpoint
from training.export import load_trained


def best_match(ours: Tensor, theirs: Tensor) -> float:
    """Mean over the rows of `ours` of the largest cosine with a row of `theirs`; both [filters, weights]."""
    cosines = nn.functional.normalize(ours, dim=1) @ nn.functional.normalize(theirs, dim=1).T
    return float(cosines.max(1).values.mean())


@torch.no_grad()
def compare(student: Model, teacher: Model) -> list[tuple[str, float, float, float]]:
    """Per convolution: name, cosine as they are, best match, best match of random filters."""
    theirs = {name: m.weight for name, m in teacher.named_modules() if isinstance(m, nn.Conv2d)}
    rows = []
    for name, module in student.named_modules():
        if not isinstance(module, nn.Conv2d) or theirs[name].shape != module.weight.shape:
            continue  # the heads differ in their classes
        ours, other = module.weight.flatten(1), theirs[name].flatten(1)
        cosine = float(nn.functional.cosine_similarity(ours.flatten(), other.flatten(), dim=0))
        noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
        rows.append((name, cosine, best_match(ours, other), best_match(noise, other)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path, help="best.pt of a run")
    options = parser.parse_args()
    rows = compare(fuse(load_trained(options.student)), fuse(load_checkpoint(options.teacher)))
    for name, *figures in rows:
        print(name.ljust(30), *(f"{figure:6.3f}" for figure in figures))
    print("mean".ljust(30), *(f"{sum(column) / len(rows):6.3f}" for column in list(zip(*rows, strict=True))[1:]))


if __name__ == "__main__":
    main()
