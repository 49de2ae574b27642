"""Fixtures for the tests that run the real process, and what the run says at its end about checks that were skipped."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from guardianberry.detection.weights import find_graph
from tests.daemon import ROOT, WEIGHTS, install_models

TOLD = pytest.StashKey[dict[str, str]]()  # test to the output of the process in which it ran
# A word of the reason of a skip, and how to get what is missing; the first that fits.
HOW_TO_GET = {
    "shared/": "not published: footage, weights and evaluation sets of this project, beside its folder",
    "faketime": "sudo apt install faketime",
    "chromium": "sudo apt install chromium",
    "strace": "sudo apt install strace",
    "openssl": "sudo apt install openssl",
    "gcc": "sudo apt install gcc libc6-dev",
    "cron": "sudo apt install cron, and sudo tests/run",
    "name server": "sudo tests/run",
    "root can read": "tests/run as an ordinary user",
    "root": "sudo tests/run",
    "util-linux": "sudo apt install util-linux",
    "torch": "env/bin/python -m pip install -r requirements-dev.txt",
    "camera program": "a machine without a camera program",
}

# Files that take the longest, by `tests/run --durations=0`; each process begins with two of them. Those that mostly
# wait stand among those that compute, so that both CPUs are busy from the beginning to the end.
LONGEST = (
    *("test_end_to_end", "test_camera", "test_motion", "test_camera_faults", "test_disk_faults", "test_launch"),
    *("test_endurance", "test_weights", "test_s3_faults", "test_demo", "test_security", "test_aws_credentials"),
    *("test_clock_process", "test_doctor", "test_aws", "test_uploader", "test_other_users", "test_visitors"),
    *("test_live_process", "test_training", "test_stand_in_camera", "test_loop_watchdog", "test_kill"),
    *("test_recovery", "test_aws_watch", "test_alert_lane", "test_disk", "test_adapter", "test_preparation"),
    *("test_armed", "test_hostile_s3", "test_stream"),
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder shared by all test processes, with the model for tests converted already."""
    of_all = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        of_all = of_all.parent
    folder = of_all / "installed" / "models"
    with (of_all / "models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            install_models(folder)
        find_graph(WEIGHTS, folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of LONGEST first, then those with the most tests: the small ones fill what is left at the end."""
    tests = Counter(item.path for item in items)
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path.stem, len(rank)), -tests[item.path], item.path))


def pytest_collection_finish() -> None:
    """What the modules have made stays: the garbage collector, at each full round, need not walk through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a full round takes 0.3 s here, and by default they are frequent


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that fork in a pytest of their own: this one has threads by now, and a fork could hang on a lock.

    Those of a file share it, because it imports torch first; what it said of each test is kept in the session.
    """
    if not needs_own_process(pyfuncitem) or "TEST_HAS_ITS_OWN_PROCESS" in os.environ:
        return None
    told = pyfuncitem.session.stash.setdefault(TOLD, {})
    if pyfuncitem.nodeid not in told:
        items = pyfuncitem.session.items
        names = [item.nodeid for item in items if item.path == pyfuncitem.path and needs_own_process(item)]
        told |= dict.fromkeys(names, output_of_own_process(names))
    output = told[pyfuncitem.nodeid]
    (result,) = re.findall(rf"^{re.escape(pyfuncitem.nodeid)} ([A-Z]+)", output, re.MULTILINE) or ["missing"]
    if result == "SKIPPED":
        pytest.skip(output)
    assert result == "PASSED", output
    return True


def needs_own_process(item: pytest.Item) -> bool:
    return item.get_closest_marker("own_process") is not None


def output_of_own_process(names: list[str]) -> str:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *names]
    env = os.environ | {"TEST_HAS_ITS_OWN_PROCESS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False).stdout


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    if skipped:
        terminalreporter.section("checks that this machine cannot make")
        for line in missing(skipped):
            terminalreporter.write_line(line)


def missing(reasons: Iterable[str]) -> list[str]:
    """What to install or do for checks that were skipped for these reasons, a line each."""
    lines = Counter(f"{reason.removeprefix('Skipped: ')} -> {how_to_get(reason)}" for reason in reasons)
    return [f"{count} skipped: {line}" for line, count in sorted(lines.items())]


def how_to_get(reason: str) -> str:
    return next((how for word, how in HOW_TO_GET.items() if word in reason.lower()), "")
