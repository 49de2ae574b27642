"""The line of the day, the log lines themselves, and their rotation."""

from __future__ import annotations

import getpass
import grp
import gzip
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardianberry.logs import JournalFormatter, LineFormatter, OncePerCause, formatter
from guardianberry.summary import DAY_S, DailySummary
from guardianberry.upload.queue import Pending
from guardianberry.upload.uploader import Counters
from tests.daemon import ROOT

EXAMPLE = ROOT / "docs" / "logrotate.example"
LOGROTATE = shutil.which("logrotate", path="/usr/sbin:/sbin:" + os.defpath)


class FakeUploader:
    def __init__(self, **counted: float) -> None:
        self.counted = counted

    def counters(self) -> Counters:
        return Counters(**self.counted)

    def pending(self) -> Pending:
        return Pending(1, 2)


# The line of the day


def test_the_line_tells_the_totals_since_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    uploads = FakeUploader(images=12, videos=1, failed_tries=3, worst_alert_latency_s=2.34)
    DailySummary(tmp_path, uploads, now_s=-2.5 * DAY_S).log_if_due(0, events=13, relaunches=1)
    assert re.sub(r"\d+\.\d GB", "12.3 GB", caplog.messages[0]) == (
        "since the start, 2 days ago: 13 events; 12 images and 1 video uploaded, 1 and 2 queued, 3 failed tries;"
        " slowest alert 2.3 s after its frame; camera relaunched 1 time; 12.3 GB free"
    )


def test_images_of_an_earlier_run_are_no_alerts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    DailySummary(tmp_path, FakeUploader(images=5), now_s=-DAY_S).log_if_due(0, events=0, relaunches=0)
    assert "; no alert; " in caplog.messages[0]


def test_one_line_a_day_by_the_monotonic_clock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    daily = DailySummary(tmp_path, FakeUploader(), now_s=1000.0)
    for hour in range(24):
        daily.log_if_due(1000.0 + hour * 3600, events=hour, relaunches=0)
    assert caplog.messages == []
    daily.log_if_due(1000.0 + DAY_S, events=5, relaunches=0)
    daily.log_if_due(1000.0 + DAY_S + 1, events=5, relaunches=0)
    assert [text[:39] for text in caplog.messages] == ["since the start, 1 day ago: 5 events; 0"]
    daily.log_if_due(1000.0 + 2 * DAY_S, events=6, relaunches=0)
    assert len(caplog.messages) == 2
    daily.log_if_due(1000.0 + 9.5 * DAY_S, events=6, relaunches=0)
    daily.log_if_due(1000.0 + 9.6 * DAY_S, events=6, relaunches=0)
    assert len(caplog.messages) == 3, "after a week without a call one line is due, not seven"


def test_a_disk_that_does_not_answer_costs_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    DailySummary(tmp_path / "gone", FakeUploader(), now_s=-DAY_S).log_if_due(0, events=0, relaunches=0)
    assert caplog.messages[0].endswith("unknown free")


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


# Rotation


def test_the_example_suits_the_line_for_cron() -> None:
    """launch.sh's own comment says where cron's line puts the log."""
    launcher = (ROOT / "launch.sh").read_text(encoding="utf-8")
    path = re.search(r"^(/\S+) \{", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert path is not None
    assert f">> {path[1]} 2>&1" in launcher


@pytest.mark.skipif(LOGROTATE is None, reason="needs the command logrotate")
def test_rotation_loses_no_line_of_a_writer_that_goes_on(tmp_path: Path) -> None:
    assert LOGROTATE is not None
    log, rules = tmp_path / "guardianberry.log", tmp_path / "rules"
    me, group = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name
    text = EXAMPLE.read_text(encoding="utf-8").replace("/home/pi/guardianberry.log", str(log))
    rules.write_text(text.replace("su pi pi", f"su {me} {group}"))
    rules.chmod(0o644)
    tmp_path.chmod(0o700)
    writer = subprocess.Popen(
        ["/bin/sh", "-c", f"'{sys.executable}' -uc 'while input(): print(1)' >> '{log}'"], stdin=subprocess.PIPE
    )
    assert writer.stdin is not None
    try:
        for count in (1, 2):
            writer.stdin.write(b"go\n" * 50)
            writer.stdin.flush()
            give_up_s = time.monotonic() + 20
            while not log.exists() or log.stat().st_size < 100:
                assert writer.poll() is None
                assert time.monotonic() < give_up_s
                time.sleep(0.02)
            for options in (["-d"], ["-f"]):
                answer = subprocess.run(
                    [LOGROTATE, *options, "-s", str(tmp_path / "state"), str(rules)],
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                )
                assert answer.returncode == 0, answer.stderr
                assert "error" not in answer.stderr.lower()
            assert log.stat().st_size == 0, "emptied, so the writer's next line is its first, not behind a hole"
            assert (tmp_path / f"guardianberry.log.{count}.gz").exists()
        for packed in tmp_path.glob("guardianberry.log.*.gz"):
            assert gzip.decompress(packed.read_bytes()) == b"1\n" * 50
    finally:
        writer.stdin.close()
        writer.wait(10)
