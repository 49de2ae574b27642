"""The curves of a run as a PNG, or of runs that went on from each other.

    python -m training.plot training/runs/first/history.json [training/runs/second/history.json ...] curve.png

Needs matplotlib.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """Losses on the left, metrics on the held-out images on the right; without matplotlib only a line in the log."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        log.info("no curve drawn: install matplotlib (training/requirements.txt)")
        return
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in ("box", "objectness", "teacher_box", "features"):
        left.plot(epochs, [row[name] for row in history], marker=".", label=name.replace("_", " "))
    for name in ("ap50", "ap50_95", "auc", "recall", "false_rate"):
        right.plot(epochs, [row[name] for row in history], marker=".", label=name)
    left.set(title="loss, mean of the epoch", xlabel="epoch", yscale="log")
    right.set(title="held-out images at 320 px", xlabel="epoch", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def chain(histories: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """One history of several, the epochs counted on."""
    rows: list[dict[str, float]] = []
    for history in histories:
        done = rows[-1]["epoch"] if rows else 0.0
        rows += [{**row, "epoch": done + row["epoch"]} for row in history]
    return rows


if __name__ == "__main__":
    *sources, target = map(Path, sys.argv[1:])
    draw_curves(chain([json.loads(source.read_text()) for source in sources]), target)
