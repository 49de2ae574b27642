"""The line of the day, and the log lines themselves."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardianberry.logs import JournalFormatter, LineFormatter, OncePerCause, formatter
from guardianberry.summary import DAY_S, DailySummary
from guardianberry.upload.queue import Pending
from guardianberry.upload.sender import Counters
from tests.daemon import ROOT


class FakeUploader:
    def __init__(self, **counted: float) -> None:
        self.counted = counted

    def counters(self) -> Counters:
        return Counters(**self.counted)

    def pending(self) -> Pending:
        return Pending(1, 2)


# The line of the day


def log_if_due(
    summary: DailySummary, now_s: float, *, events: int = 0, relaunches: int = 0, still_things: int = 0
) -> None:
    """And wait for the thread that writes the line."""
    summary.log_if_due(now_s, events=events, relaunches=relaunches, still_things=still_things)
    for thread in threading.enumerate():
        if thread.name == "summary":
            thread.join(10)


def test_the_line_tells_the_totals_since_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    uploads = FakeUploader(images=12, videos=1, failed_tries=3, worst_alert_latency_s=2.34)
    log_if_due(DailySummary(tmp_path, uploads, now_s=-2.5 * DAY_S), 0, events=13, relaunches=1, still_things=2)
    assert re.sub(r"\d+\.\d GB", "12.3 GB", caplog.messages[0]) == (
        "since the start, 2 days ago: 13 events; 12 images and 1 video uploaded, 1 and 2 queued, 3 failed tries;"
        " slowest alert 2.3 s after its frame; camera relaunched 1 time; 2 still things that look like people;"
        " 12.3 GB free"
    )


def test_images_of_an_earlier_run_are_no_alerts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_if_due(DailySummary(tmp_path, FakeUploader(images=5), now_s=-DAY_S), 0)
    assert "; no alert; " in caplog.messages[0]


def test_one_line_a_day_by_the_monotonic_clock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    daily = DailySummary(tmp_path, FakeUploader(), now_s=1000.0)
    for hour in range(24):
        log_if_due(daily, 1000.0 + hour * 3600, events=hour)
    assert caplog.messages == []
    log_if_due(daily, 1000.0 + DAY_S, events=5)
    log_if_due(daily, 1000.0 + DAY_S + 1, events=5)
    assert [text[:39] for text in caplog.messages] == ["since the start, 1 day ago: 5 events; 0"]
    log_if_due(daily, 1000.0 + 2 * DAY_S, events=6)
    assert len(caplog.messages) == 2
    log_if_due(daily, 1000.0 + 9.5 * DAY_S, events=6)
    log_if_due(daily, 1000.0 + 9.6 * DAY_S, events=6)
    assert len(caplog.messages) == 3, "after a week without a call one line is due, not seven"


def test_a_disk_that_hangs_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    answer = threading.Event()

    class HangingUploader(FakeUploader):
        def pending(self) -> Pending:
            answer.wait(10)
            return Pending(1, 2)

    summary = DailySummary(tmp_path, HangingUploader(), now_s=-DAY_S)
    summary.log_if_due(0, events=0, relaunches=0, still_things=0)
    assert any(thread.name == "summary" for thread in threading.enumerate())
    answer.set()


def test_a_disk_that_does_not_answer_costs_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_if_due(DailySummary(tmp_path / "gone", FakeUploader(), now_s=-DAY_S), 0)
    assert any(line.endswith("unknown free") for line in caplog.messages)


# The lines


def test_a_fault_is_new_once_until_it_is_over() -> None:
    faults = OncePerCause()
    causes = ("stalled", "stalled", ("bucket", 1), "stalled", ("bucket", 1))
    assert [faults.is_new(cause) for cause in causes] == [True, False, True, False, False]
    assert faults.forget(lambda cause: cause == "stalled") == 2, "the repetitions that were not logged"
    assert faults.is_new("stalled")
    assert not faults.is_new(("bucket", 1)), "another fault goes on"
    assert faults.forget() == 2


def test_faults_without_end_take_no_memory_without_end() -> None:
    faults = OncePerCause()
    for number in range(5000):
        faults.is_new(number)
    forgotten: list[object] = []
    faults.forget(lambda cause: forgotten.append(cause) is None)
    assert forgotten == list(range(4000, 5000))


def entry(text: str, level: int = logging.INFO, exception: BaseException | None = None) -> logging.LogRecord:
    info = (type(exception), exception, None) if exception else None
    return logging.LogRecord("guardianberry", level, "", 0, "%s", (text,), info)


@given(st.text(max_size=200))
def test_a_message_cannot_forge_a_line(text: str) -> None:
    first, *more = LineFormatter().format(entry(text)).splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d .* INFO    ", first)
    assert all(line.startswith("    | ") for line in more)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join([first, *more]))


def test_a_traceback_cannot_forge_a_line() -> None:
    shown = LineFormatter().format(entry("it broke", logging.ERROR, OSError("x\n2026-01-01 00:00:00,000 INFO    fine")))
    assert shown.splitlines()[-1] == "    | 2026-01-01 00:00:00,000 INFO    fine"


@pytest.mark.parametrize(
    ("level", "priority"), [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 2)]
)
def test_lines_for_the_journal_carry_their_priority(level: str, priority: int) -> None:
    shown = JournalFormatter().format(entry("one\ntwo", getattr(logging, level)))
    assert shown == f"<{priority}>one\n<{priority}>    | two"


def test_the_journal_is_known_by_its_socket(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as file:
        status = os.fstat(file.fileno())
        named = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert isinstance(formatter(file.fileno(), named), JournalFormatter)
        other = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"}  # inherited, stderr led elsewhere since
        for environment in (other, {}):
            assert not isinstance(formatter(file.fileno(), environment), JournalFormatter)


def test_a_log_that_nobody_reads_delays_nothing() -> None:
    """The pipe to launch.sh is full: its disk hangs, say."""
    program = "import detect_and_upload as script, logging\nscript.set_up_logging(verbose=False)\n"
    program += "for number in range(10_000): logging.getLogger('guardianberry').info('line %d', number)"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.wait(30) == 0
        assert "line 0\n" in process.stderr.read()
    finally:
        process.kill()
