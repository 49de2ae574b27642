"""The real process under a clock that is wrong, is set while it records, and jumps: libfaketime, wall time alone."""

from __future__ import annotations

import itertools
import json
import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from bench.footage import FRAME_RATE_FPS, WITH_A_PERSON, first_units
from guardianberry.filenames import ImageName
from tests.daemon import ROOT, SMALL_INPUT, Daemon
from tests.h264 import decode
from tests.s3_server import S3Server

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
pytestmark = [
    pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime (Debian's package faketime)"),
    pytest.mark.slow,
]

CACHE_S = 1  # so often libfaketime looks at its file; at each look at the clock it would cost the most of the daemon
EFFECT_S = 2 * CACHE_S + 0.2  # libfaketime counts whole seconds, and so waits for the end of the second one
YEARS_S = 3 * 365 * 86400
LEFT_OVER = ImageName(1, 50, 640, 480)  # of an earlier run, its name is final
CLIP_S, GAP_S = 5, 6
EVENTS = {
    "MAX_RECORDING_DURATION_S": CLIP_S,
    "PRE_ROLL_S": 1,
    "MIN_GAP_BETWEEN_VIDEO_START_S": GAP_S,
    "CLOCK_WAIT_S": 10**9,
    "IMAGES_BUCKET": "images",
    "VIDEOS_BUCKET": "videos",
    **SMALL_INPUT,
}


@pytest.fixture
def s3():
    with S3Server() as server:
        server.create_bucket("images", "videos")
        yield server


def film(path: Path, *, events: int) -> Path:
    """A person of whom so many events are made, between 2 s and minutes of an empty room.

    In its first second the daemon would sleep before it dates an event, and libfaketime breaks Python's time.sleep.
    """
    units = first_units(WITH_A_PERSON.stop)
    with_a_person = (events * units[WITH_A_PERSON])[: (events * GAP_S - 1) * FRAME_RATE_FPS]
    path.write_bytes(b"".join(units[:20] + with_a_person + 40 * units[:50]))
    return path


class FakedDaemon(Daemon):
    """Its wall clock is off by what `offset` says; its monotonic clock is the machine's."""

    def __init__(self, folder: Path, models: Path, s3: S3Server, *, offset_s: int, events: int) -> None:
        self._offset_file = folder / "faketime"
        self.sync_file = folder / "synchronised"
        self.offset(offset_s)
        env = s3.environment() | {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset_file),
            "FAKETIME_CACHE_DURATION": str(CACHE_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # with it, who waits for the interpreter's lock computes meanwhile
            "STAND_IN_H264": str(film(folder / "footage.h264", events=events)),
            "STAND_IN_LOG": str(folder / "camera.jsonl"),
        }
        super().__init__(folder, models, env=env, clock_sync_file=self.sync_file, **EVENTS)
        # The camera keeps true time: libfaketime 0.9.10 breaks Python's time.sleep, which the stand-in needs (as does
        # a patient end of the daemon, hence the kill at the end of these tests).
        wrapper = folder / "bin" / "rpicam-vid"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {ROOT}/demo/rpicam-vid "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
        self._env["PATH"] = f"{wrapper.parent}:{self._env['PATH']}"

    def offset(self, seconds: int) -> None:
        """Within EFFECT_S."""
        new = self._offset_file.with_suffix(".new")
        new.write_text(f"{seconds:+d}", encoding="ascii")
        new.rename(self._offset_file)


def true_times_of_events(s3: S3Server, folder: Path) -> dict[int, tuple[int, float]]:
    """For each event in the bucket its event id, with the length of its clip by name and by packets."""
    images = {int(stored.metadata["recording_start_time"]) for stored in s3.objects("images")}
    found = {}
    for stored in (*s3.objects("images"), *s3.objects("videos")):
        assert datetime.fromisoformat(stored.metadata["local_time"]).timestamp() == int(
            stored.metadata["recording_start_time"]
        ), "the local time is that of the true event id"
    for stored in s3.objects("videos"):
        clip = folder / stored.key
        clip.write_bytes(stored.body)
        found[int(stored.metadata["recording_start_time"])] = (int(stored.metadata["duration"]), decode(clip)[1])
    assert set(found) == images - {LEFT_OVER.recording_start_time}, "image and clip of an event have the same event id"
    return found


def test_events_from_before_the_clock_was_set_are_held_and_then_truly_dated(tmp_path, models, s3):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / LEFT_OVER.encode()).write_bytes(b"\xff\xd8\xff\xff\xd9")
    with FakedDaemon(tmp_path, models, s3, offset_s=-YEARS_S, events=2) as daemon:
        seen_s = []
        for number in (1, 2):
            daemon.wait_for_log(r"event \d+:", count=number, timeout_s=90)
            seen_s.append(time.time())
        event_ids = [int(event_id) for event_id in re.findall(r"event (\d+):", daemon.log)]
        assert all(abs(event_id - (true - YEARS_S)) < 30 for event_id, true in zip(event_ids, seen_s, strict=True))
        daemon.wait_for_log("clip finished", count=1)
        new = set(daemon.pending()) - {f"images/{LEFT_OVER.encode()}"}
        assert all("/.held-" in name or "/.open-" in name for name in new), new
        assert not s3.keys("images") | s3.keys("videos"), "something left the house under a wrong clock"

        daemon.offset(0)  # in mid-clip
        time.sleep(EFFECT_S)
        daemon.sync_file.touch()
        daemon.wait_for_log("clock: synchronised")
        daemon.wait_for_log("video .*: uploaded", count=2)
        daemon.wait_for_log(f"image {LEFT_OVER.encode()}: uploaded")
        daemon.wait_for_log(r"image \S+: uploaded", count=3)
    found = true_times_of_events(s3, tmp_path)
    # An event is logged up to a second after its first frame: two tries of the disk, on a busy machine more.
    for event_id, true_s in zip(sorted(found), seen_s, strict=False):
        assert -5 < event_id - true_s < 1, "the event id is the true time of the event"
    gap_s = event_ids[1] - event_ids[0]
    assert abs((sorted(found)[1] - sorted(found)[0]) - gap_s) <= 1
    for duration, by_packets_s in found.values():
        assert duration == round(by_packets_s) == CLIP_S, (
            "the clip over which the clock was set is as long as the other"
        )


def test_a_clock_that_jumps_while_recording_changes_no_length_and_loses_nothing(tmp_path, models, s3):
    """Forth in the first event and back in the second."""
    jumps_s = (3600, -7200)
    with FakedDaemon(tmp_path, models, s3, offset_s=0, events=3) as daemon:
        daemon.sync_file.touch()
        for number in (1, 2):
            daemon.wait_for_log(r"event \d+:", count=number, timeout_s=90)
            daemon.offset(sum(jumps_s[:number]))
            daemon.wait_for_log("video .*: uploaded", count=number, timeout_s=90)
        daemon.wait_for_log("video .*: uploaded", count=3, timeout_s=90)
    found = true_times_of_events(s3, tmp_path)
    event_ids = [int(event_id) for event_id in re.findall(r"event (\d+):", daemon.log)]
    for (earlier, later), jump_s in zip(itertools.pairwise(event_ids), jumps_s, strict=True):
        assert jump_s - 60 < later - earlier < jump_s + 60, "the next event id does not follow the clock"
        assert found[earlier][0] == CLIP_S, "the clip over which the clock jumped has not its full length"
        assert found[earlier][1] == pytest.approx(CLIP_S, abs=0.3)
    assert "WARNING" not in daemon.log, "something took the jump for a fault"
    sent = [json.loads(line) for line in (tmp_path / "camera.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({entry["pid"] for entry in sent if "pid" in entry}) == 1, "the camera was restarted"
