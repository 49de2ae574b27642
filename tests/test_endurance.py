"""A short run of bench/endurance.py: nothing grows, no visit is missed while S3 fails now and then."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from bench.endurance import Endurance
from bench.footage import FRAME_RATE_FPS
from tests.daemon import SMALL_INPUT
from tests.s3_server import S3Server

# Twice as fast as the footage was filmed.
CONSTANTS = SMALL_INPUT | {
    "FRAME_RATE_FPS": 2 * FRAME_RATE_FPS,
    "PRE_ROLL_S": 2,
    "MAX_RECORDING_DURATION_S": 5,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 5,
}
DURATION_S = 28.0  # almost twice through the footage
WARM_UP_S = 10.0
MOST_GROWTH_MB = 6.4  # one picture in ten kept would be 24 MB, each clip kept 6.4 MB
EVENTS = 4


@pytest.mark.slow
def test_minutes_of_footage_and_a_failing_s3_leave_no_trace(tmp_path: Path, models: Path) -> None:
    with S3Server() as s3:
        report = Endurance(tmp_path, models, s3, seed=1, **CONSTANTS).run(
            DURATION_S, sample_every_s=0.25, quiet_s=(1.5, 4.5)
        )
    print("\n".join(report.lines(WARM_UP_S)))
    assert not report.wrong
    assert report.events >= EVENTS
    assert sum(report.faults.values()) >= 4
    settled = [sample.resident_mb for sample in report.samples if sample.at_s >= WARM_UP_S]
    third = len(settled) // 3
    assert statistics.median(settled[-third:]) - statistics.median(settled[:third]) < MOST_GROWTH_MB
