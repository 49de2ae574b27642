"""All benches, one after the other: `python -m bench [--quick] [NAME ...]`; then the plots, and the tables in the docs.

Leave the machine alone meanwhile: where two CPUs share one core's arithmetic units, whatever runs on the other one
makes the detector up to 1.7 times slower, and torch less so. --quick runs every bench for some seconds, to see that
all of them work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from bench import report

QUICK = {
    "inference": ["--rounds", "2"],
    "recording": ["--rounds", "3"],
    "startup": ["--rounds", "2"],
    "latency": ["--events", "5"],
    "daemon": ["--seconds", "5", "--rates", "10"],
    "motion": [],
    "false_starts": [],
    "memory": [],
    "input_size": ["416"],
    "close_look": ["--quick"],
    "far_people": ["--quick"],
    "still_things": ["--quick"],
    "view": ["--quick"],
    "faulty_disk": ["--events", "1"],
    "broken_network": ["--rounds", "1", "--alerts", "2"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(QUICK))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--wait-s", type=float, default=0, help="wait so long for a quiet machine before each bench")
    options = parser.parse_args()
    if unknown := set(options.names) - set(QUICK):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    failed, env = [], dict(os.environ)
    scratch = tempfile.TemporaryDirectory(prefix="bench-quick-")  # goes with this process
    if options.quick:
        env["BENCH_RESULTS"] = scratch.name  # what is published stays
    for name in options.names or QUICK:
        report.wait_until_quiet(options.wait_s)
        started_s = time.monotonic()
        command = [sys.executable, "-m", f"bench.{name}", *(QUICK[name] if options.quick else [])]
        print(f"\n### {name}\n", flush=True)
        if subprocess.run(command, cwd=report.ROOT, env=env).returncode != 0:
            failed.append(name)
        print(f"({name}: {time.monotonic() - started_s:.0f} s)", flush=True)
    if not options.quick:
        subprocess.run([sys.executable, "-m", "bench.plots"], cwd=report.ROOT)
        subprocess.run([sys.executable, "-m", "bench.summary"], cwd=report.ROOT)
        for document in ("README.md", "docs/performance.md"):
            report.fill_in(report.ROOT / document)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
