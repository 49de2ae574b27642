"""The README's table: the figures that matter most, from the last results of the other benches.

    python -m bench.summary

Reads bench/results/*.json, writes bench/results/summary.md; leaves out what has not been measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

from bench.report import RESULTS, percentile, table, write_section

HEAD = ["what", "this daemon", "against", "ratio"]
ORIGINAL = "a loop like the original's"


def facts(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def inference(found: dict[str, Any]) -> Iterator[list[str]]:
    for threads, words in ((1, "one thread"), (2, "two threads")):
        medians = found["medians"][f"640x480 {threads} best"]
        yield [
            f"frame in, people out, 640x480, {words}",
            f"{medians['ours_ms']:.1f} ms",
            f"PyTorch eager, same weights: {medians['eager_ms']:.1f} ms",
            f"{medians['times_faster']:.1f}",
        ]


def daemon(found: dict[str, Any]) -> Iterator[list[str]]:
    for scene, words in (("idle 10", "empty room, 10 fps"), ("people 10", "people in view, 10 fps")):
        ours, theirs = (found["scenes"][scene][who] for who in ("ours", "baseline"))
        yield [
            f"CPU of the whole daemon, {words}",
            f"{100 * ours['cpu']['all']:.1f} % of a core",
            f"{ORIGINAL}: {100 * theirs['cpu']['all']:.0f} %",
            f"{theirs['cpu']['all'] / ours['cpu']['all']:.0f}",
        ]
    ours = found["scenes"]["people 10"]["ours"]
    seen = min(100.0, 100 * ours["looks"] / ours["sent"])  # the two are counted some milliseconds apart
    yield ["frames looked at with people in view, 10 fps", f"{seen:.0f} %", "", ""]
    ours, theirs = (found["scenes"]["people 30"][who]["peak_mb"] for who in ("ours", "baseline"))
    yield [
        "peak memory, people in view, 30 fps",
        f"{ours:.0f} MiB",
        f"{ORIGINAL}: {theirs:.0f} MiB",
        f"{theirs / ours:.1f}",
    ]


def latency(found: dict[str, Any]) -> Iterator[list[str]]:
    ours, theirs = found["ours_s"], found["baseline_s"]
    for share, words in ((0.5, "median"), (0.99, "99th percentile")):
        mine, other = percentile(ours, share), percentile(theirs, share)
        yield [
            f"first frame with a person to the image in S3, {words} of {len(ours)}",
            f"{mine:.2f} s",
            f"{ORIGINAL}, {len(theirs)} alerts: {other:.2f} s",
            f"{other / mine:.0f}",
        ]


def theft(found: dict[str, Any]) -> Iterator[list[str]]:
    for uplink in ("4 Mbit/s", "300 kbit/s"):
        ages_s = found["newest_view_s"][uplink]
        what = f"camera taken in mid-event, {uplink} up: newest view in S3, the worst of {len(ages_s)} kills"
        yield [what, f"{max(ages_s):.1f} s before", "", ""]


def recording(found: dict[str, Any]) -> Iterator[list[str]]:
    clips = list(found["ratios"].values())
    for how in clips[0]:
        worst = min(ratios[how] for ratios in clips)
        yield [f"CPU of recording, the worst of {len(clips)} clips", "packets copied", how, f"{worst:.0f}"]


def startup(found: dict[str, Any]) -> Iterator[list[str]]:
    first_looks_s = [start["first look done"] for start in found["starts"]]
    yield ["start of the process to the first look", f"{statistics.median(first_looks_s):.1f} s", "", ""]


def main() -> None:
    makers = {"latency": latency, "theft": theft, "daemon": daemon, "inference": inference, "recording": recording}
    makers |= {"startup": startup}
    rows = [row for name, make in makers.items() if (found := facts(name)) for row in make(found)]
    write_section("summary", table(HEAD, rows))


if __name__ == "__main__":
    main()
