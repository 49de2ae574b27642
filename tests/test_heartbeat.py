"""Heartbeats: what they tell, when they come, and that no alert waits for one. With the daemon: test_aws.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guardianberry import machine
from guardianberry.heartbeat import Heartbeat
from guardianberry.upload.errors import NO_PERMISSION, UploadError
from guardianberry.upload.queue import Pending
from guardianberry.upload.upload_file import camera_uuid, event_uuid
from tests.fakes import FakeClock
from tests.s3_server import S3Server, free_port
from tests.test_aws_watch import HEARTBEAT
from tests.upload_rig import SERIAL, Rig

DAY_S = 86_400
EVERY_S = 300


class FakeUploader:
    camera_name = "Front door"

    def __init__(self) -> None:
        self.may_send, self.fails, self.tries = True, False, 0
        self.oldest: int | None = None
        self.worst_s = 0.0
        self.sent: list[tuple[int, dict[str, Any]]] = []

    def may_upload_now(self) -> bool:
        return self.may_send

    def put_heartbeat(self, at: int, content: bytes) -> None:
        self.tries += 1
        if self.fails:
            raise UploadError(NO_PERMISSION, "HTTP 403")
        self.sent.append((at, json.loads(content)))

    def pending(self) -> Pending:
        return Pending(1, 2, self.oldest)

    def take_worst_alert_latency_s(self) -> float:
        worst_s, self.worst_s = self.worst_s, 0.0
        return worst_s


class Rigged:
    """A heartbeat under a clock of the test's, and what it asks."""

    def __init__(self, folder: Path) -> None:
        for name in ("images", "videos"):
            (folder / name).mkdir()
        self.clock = FakeClock(now_s=5000.0)
        self.uploader = FakeUploader()
        self.camera, self.events = SimpleNamespace(relaunches=0), SimpleNamespace(started=0)
        self.duty = SimpleNamespace(off_reason="", asked_s=5000.0)
        self.power: list[str] | None = None
        self.looks = True
        self.view_lost = False
        self.beat = Heartbeat(
            folder,
            every_s=EVERY_S,
            uploader=self.uploader,
            camera=self.camera,
            events=self.events,
            duty=self.duty,
            wall=self.clock.wall,
            monotonic=self.clock,
            ask_power=lambda: self.power,
        )

    def sent_within(self, duration_s: float) -> list[dict[str, Any]]:
        """A second at a time, as the thread does; the loop looks at a frame in each."""
        before = len(self.uploader.sent)
        for _ in range(round(duration_s)):
            self.clock.sleep(1)
            if self.looks and not self.duty.off_reason:
                self.beat.note_inference(self.clock(), view_lost=self.view_lost)
            self.beat.send_if_due()
        return [content for _, content in self.uploader.sent[before:]]


@pytest.fixture
def rigged(tmp_path: Path) -> Rigged:
    return Rigged(tmp_path)


def test_it_tells_what_the_watch_reads(rigged: Rigged) -> None:
    rigged.events.started, rigged.camera.relaunches, rigged.power = (
        2,
        1,
        ["under-voltage now", "too hot since the boot"],
    )
    rigged.uploader.worst_s, rigged.uploader.oldest = 0.1534, int(rigged.clock.wall()) - 89
    [told] = rigged.sent_within(1)
    free_bytes = told.pop("free_disk_bytes")
    assert free_bytes > 1_000_000
    assert told == {
        "camera_name": "Front door",
        "time": int(rigged.clock.wall()),
        "waiting_images": 1,
        "waiting_videos": 2,
        "oldest_waiting_s": 90,
        "events_today": 2,
        "worst_alert_latency_s": 0.153,
        "camera_relaunches": 1,
        "throttled": "under-voltage now, too hot since the boot",
        "armed": True,
        "dark_since": None,
    }
    assert [at for at, _ in rigged.uploader.sent] == [told["time"]]
    assert set(told) | {"free_disk_bytes"} == set(HEARTBEAT)


def test_without_events_and_faults_it_says_none(rigged: Rigged) -> None:
    [told] = rigged.sent_within(1)
    named = ("oldest_waiting_s", "worst_alert_latency_s", "throttled", "dark_since")
    assert [told[name] for name in named] == [None, None, "", None]


def test_one_every_five_minutes_each_with_a_time_of_its_own(rigged: Rigged) -> None:
    told = rigged.sent_within(4 * EVERY_S)
    assert [later["time"] - told[0]["time"] for later in told] == [0, EVERY_S, 2 * EVERY_S, 3 * EVERY_S]


def test_a_hung_camera_is_silence_and_one_that_is_back_is_told_at_once(rigged: Rigged) -> None:
    assert len(rigged.sent_within(1.5 * EVERY_S)) == 2
    rigged.looks = False
    assert rigged.sent_within(20 * 60) == []
    rigged.looks = True
    assert len(rigged.sent_within(1)) == 1


def test_it_is_silent_before_the_first_frame(rigged: Rigged) -> None:
    rigged.looks = False
    assert rigged.sent_within(2 * EVERY_S) == []


def test_off_duty_it_goes_on_while_the_loop_runs(rigged: Rigged) -> None:
    rigged.duty.off_reason = "the file disarmed"
    for _ in range(EVERY_S + 10):
        rigged.duty.asked_s = rigged.clock()
        rigged.sent_within(1)
    assert [content["armed"] for _, content in rigged.uploader.sent] == [False, False]
    assert rigged.sent_within(20 * 60) == [], "the loop hangs"


def test_not_while_an_alert_is_uploaded(rigged: Rigged) -> None:
    rigged.uploader.may_send = False
    assert rigged.sent_within(40) == []
    rigged.uploader.may_send = True
    assert len(rigged.sent_within(1)) == 1


def test_one_that_fails_is_tried_once_and_logged_once(rigged: Rigged, caplog: pytest.LogCaptureFixture) -> None:
    rigged.uploader.fails = True
    assert rigged.sent_within(3 * EVERY_S) == []
    assert rigged.uploader.tries == 3
    [line] = caplog.messages
    assert line.startswith("heartbeat: not sent (")
    assert line.endswith("; the next one is tried in 300 s")
    rigged.uploader.fails = False
    assert len(rigged.sent_within(EVERY_S)) == 1
    rigged.uploader.fails = True
    rigged.sent_within(EVERY_S)
    assert len(caplog.messages) == 2, "a new fault"


def test_counts_begin_anew_at_midnight(rigged: Rigged) -> None:
    rigged.events.started, rigged.uploader.worst_s = 3, 0.4
    first = rigged.sent_within(EVERY_S)[0]
    rigged.uploader.worst_s = 0.2
    second = rigged.sent_within(EVERY_S)[0]
    assert [told["worst_alert_latency_s"] for told in (first, second)] == [0.4, 0.4], "the worst of the day"
    rigged.clock.sleep(DAY_S)
    rigged.beat.send_if_due()  # a frame of yesterday: nothing is sent, and the day begins
    rigged.events.started = 4
    [told] = rigged.sent_within(EVERY_S)
    assert (told["events_today"], told["worst_alert_latency_s"]) == (1, None)


def test_it_tells_since_when_the_view_is_lost(rigged: Rigged) -> None:
    rigged.sent_within(1)
    rigged.view_lost = True
    lost_at = int(rigged.clock.wall()) + 1
    assert [told["dark_since"] for told in rigged.sent_within(2 * EVERY_S)] == [lost_at] * 2
    rigged.view_lost = False
    assert [told["dark_since"] for told in rigged.sent_within(EVERY_S)] == [None]


def test_a_disk_that_is_gone_costs_no_heartbeat(rigged: Rigged, tmp_path: Path) -> None:
    (tmp_path / "videos").rmdir()
    [told] = rigged.sent_within(1)
    assert told["free_disk_bytes"] is None


@pytest.mark.parametrize(
    ("answer", "faults"),
    [("throttled=0x0", []), ("throttled=0x50005", ["under-voltage now", "throttled now"]), ("", None)],
)
def test_the_firmware_is_asked_for_power_and_heat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, faults: list[str] | None
) -> None:
    (tmp_path / "vcgencmd").write_text(f"#!/bin/sh\necho {answer}\n")
    (tmp_path / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.power_faults() == faults


# ---- To S3 -----------------------------------------------------------------------------------------------------------


def test_identifiers_are_the_same_at_every_try_and_tell_nothing() -> None:
    assert event_uuid(SERIAL, 1_700_000_000) == event_uuid(SERIAL, 1_700_000_000)
    others = {event_uuid(SERIAL, 1_700_000_001), event_uuid(SERIAL + "0", 1_700_000_000), camera_uuid(SERIAL)}
    assert len(others | {event_uuid(SERIAL, 1_700_000_000)}) == 4
    assert str(camera_uuid(SERIAL)).find(SERIAL[-4:]) == -1


def test_it_goes_past_a_backlog_and_waits_for_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, monkeypatch, url=f"http://127.0.0.1:{free_port()}", name="x")
    for number in range(20):
        rig.add_video(1_700_000_000 + number)
    uploader = rig.uploader(camera_name="Front door")
    assert uploader.may_upload_now()
    assert uploader.pending().oldest_start == 1_700_000_000
    with uploader._alert_gate.closed():
        assert not uploader.may_upload_now()
    assert not rig.uploader(may_upload=lambda: False).may_upload_now()
    with S3Server() as s3:
        rig.use(s3.url)
        s3.create_bucket(rig.videos_bucket)
        uploader.put_heartbeat(1_795_378_445, b'{"armed": true}')
        [stored] = s3.objects(rig.videos_bucket, everything=True)
    assert stored.key == f"alive/{camera_uuid(SERIAL)}/1795378445"
    assert (stored.body, stored.content_type, stored.server_side_encryption) == (
        b'{"armed": true}',
        "application/json",
        "AES256",
    )
    assert stored.metadata == {}
