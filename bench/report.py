"""What the benches have in common: tables in Markdown, medians with their spread, and where results are kept."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("BENCH_RESULTS", ROOT / "bench" / "results"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and in brackets the smallest and the largest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of them do not exceed: no interpolation flatters it."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def write_section(name: str, lines: Sequence[str], **facts: Any) -> None:
    """Print a section of the report, keep it as results/NAME.md, and `facts` as results/NAME.json for the plots."""
    text = "\n".join(lines) + "\n"
    print(text, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    if facts:
        (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def machine() -> str:
    """One line about where this was measured."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


def busy_share(interval_s: float = 2.0) -> float:
    """Share of all CPUs that is in use right now: figures taken on a busy machine are worth little."""
    import psutil

    return psutil.cpu_percent(interval_s) / 100


def wait_until_quiet(limit_s: float, busy_limit: float = 0.05) -> bool:
    """Wait until others leave the machine alone, for at most `limit_s`; whether they do."""
    give_up_s = time.monotonic() + limit_s
    while (busy := busy_share(5.0)) > busy_limit:
        if time.monotonic() >= give_up_s:
            print(f"{100 * busy:.0f} % of the machine is busy with other things", flush=True)
            return False
    return True


def fill_in(document: Path) -> None:
    """Put the last results between the marks `<!-- NAME -->` and `<!-- end of NAME -->` of a Markdown document."""
    text = document.read_text(encoding="utf-8")
    for path in sorted(RESULTS.glob("*.md")):
        marks = f"<!-- {path.stem} -->\n", f"<!-- end of {path.stem} -->\n"
        if all(mark in text for mark in marks):
            before, rest = text.split(marks[0], 1)
            after = rest.split(marks[1], 1)[1]
            text = f"{before}{marks[0]}\n{path.read_text(encoding='utf-8').strip()}\n\n{marks[1]}{after}"
    document.write_text(text, encoding="utf-8")
