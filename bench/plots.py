"""PNG plots of the last results, for README and docs/performance.md: `python -m bench.plots` (needs matplotlib).

Reads bench/results/*.json, writes docs/*.png; leaves out what has not been measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.report import RESULTS, ROOT

DOCS = ROOT / "docs"
OURS, THEIRS = "#2a7f62", "#b55a30"
PARTS = ("read", "decode", "bgr", "gate", "detect", "image", "write", "upload", "rest")


def figure(path: Path, draw: Any, facts: dict[str, Any]) -> None:
    picture, axes = plt.subplots(figsize=(7, 3.6), dpi=110, layout="constrained")
    draw(axes, facts)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture.savefig(path, metadata={"Software": None})
    plt.close(picture)
    print(path.relative_to(ROOT))


def draw_latency(axes: Axes, facts: dict[str, Any]) -> None:
    for name, colour, label in (("ours_s", OURS, "this daemon"), ("baseline_s", THEIRS, "loop like the original's")):
        values = sorted(facts[name])
        if values:
            shares = [(index + 1) / len(values) for index in range(len(values))]
            axes.step([values[0], *values], [0, *shares], where="post", color=colour, label=f"{label} ({len(values)})")
    axes.set_xscale("log")
    axes.set_xlabel("seconds from the frame's last byte to the object in S3")
    axes.set_ylabel("share of the alerts")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)


def draw_cpu(axes: Axes, facts: dict[str, Any]) -> None:
    scenes = facts["scenes"]
    left = [0.0] * len(scenes)
    for index, part in enumerate(PARTS):
        values = [100 * max(0.0, scene["ours"]["cpu"][part]) for scene in scenes.values()]
        axes.barh(list(scenes), values, left=left, label=part, color=plt.get_cmap("tab10")(index))
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("per cent of one core (scene and frames a second)")
    axes.legend(frameon=False, ncols=3, fontsize=8)


def draw_memory(axes: Axes, facts: dict[str, Any]) -> None:
    for name, scene in facts["scenes"].items():
        times_s, resident_mb = zip(*scene["ours"]["resident"], strict=True)
        axes.plot(times_s, resident_mb, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("resident memory, MiB")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, ncols=3, fontsize=8)


def draw_theft(axes: Axes, facts: dict[str, Any]) -> None:
    for name, ages_s in facts["newest_view_s"].items():
        if values := sorted(ages_s):
            shares = [(index + 1) / len(values) for index in range(len(values))]
            axes.step([values[0], *values], [0, *shares], where="post", label=f"{name} ({len(values)})")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds from the newest view that S3 has to the kill")
    axes.set_ylabel("share of the kills")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


PLOTS = {
    "latency": ("latency", draw_latency),
    "cpu": ("daemon", draw_cpu),
    "memory": ("daemon", draw_memory),
    "theft": ("theft", draw_theft),
}


def main() -> None:
    for name, (source, draw) in PLOTS.items():
        path = RESULTS / f"{source}.json"
        if path.exists():
            figure(DOCS / f"{name}.png", draw, json.loads(path.read_text(encoding="utf-8")))
        else:
            print(f"{name}: nothing measured yet ({path.relative_to(ROOT)})")


if __name__ == "__main__":
    main()
