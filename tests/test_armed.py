"""Off duty: the hours, the file `disarmed`, and what the daemon then does."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from guardianberry.armed import ArmedHours
from guardianberry.duty import Duty
from tests.daemon import SCENE, SMALL_INPUT, Daemon
from tests.fakes import FakeClock

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_S = 3600


def armed_minutes(text: str, first: datetime, hours: int) -> list[str]:
    """The changes within so many hours after `first`, as a clock in Berlin shows them; the time that passes is real."""
    hours_text, changes, before = ArmedHours(text), [], None
    for minute in range(hours * 60):
        now = (first + timedelta(minutes=minute)).astimezone(BERLIN)
        if (armed := hours_text.is_armed(now)) != before:
            changes.append(f"{now:%a %H:%M%z} {'on' if armed else 'off'}")
        before = armed
    return changes


def at(text: str) -> datetime:
    """A time in Berlin, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).astimezone(UTC)


def test_a_day_of_the_example() -> None:
    example = "mon-fri 08:00-17:00, daily 23:00-06:00"
    assert armed_minutes(example, at("2026-11-24 12:00"), 24) == [  # a Tuesday
        *("Tue 12:00+0100 on", "Tue 17:00+0100 off", "Tue 23:00+0100 on"),
        *("Wed 06:00+0100 off", "Wed 08:00+0100 on"),
    ]
    assert armed_minutes(example, at("2026-11-28 00:00"), 48) == [  # the weekend
        *("Sat 00:00+0100 on", "Sat 06:00+0100 off", "Sat 23:00+0100 on"),
        *("Sun 06:00+0100 off", "Sun 23:00+0100 on"),
    ]


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    assert armed_minutes("sun 22:00-02:00", at("2026-11-28 00:00"), 72) == [
        *("Sat 00:00+0100 off", "Sun 22:00+0100 on", "Mon 02:00+0100 off"),
    ]


def test_days_may_go_round_the_week() -> None:
    hours = ArmedHours("Fri-Mon 10:00-11:00")
    days = [hours.is_armed(datetime(2026, 11, 23 + day, 10, 30, tzinfo=BERLIN)) for day in range(7)]
    assert days == [True, False, False, False, True, True, True]


def test_a_whole_day_and_midnight_as_an_end() -> None:
    assert armed_minutes("sat-sun 00:00-24:00", at("2026-11-27 00:00"), 96) == [
        *("Fri 00:00+0100 off", "Sat 00:00+0100 on", "Mon 00:00+0100 off"),
    ]
    assert armed_minutes("sat 20:00-00:00", at("2026-11-28 00:00"), 48) == [
        *("Sat 00:00+0100 off", "Sat 20:00+0100 on", "Sun 00:00+0100 off"),
    ]


def test_the_night_in_which_an_hour_is_skipped() -> None:
    """29 March 2026: after 01:59 comes 03:00."""
    assert armed_minutes("daily 23:00-06:00", at("2026-03-28 20:00"), 12) == [
        *("Sat 20:00+0100 off", "Sat 23:00+0100 on", "Sun 06:00+0200 off"),
    ]
    assert armed_minutes("daily 01:00-02:30", at("2026-03-28 20:00"), 12) == [
        *("Sat 20:00+0100 off", "Sun 01:00+0100 on", "Sun 03:00+0200 off"),
    ]
    assert armed_minutes("daily 02:15-02:45", at("2026-03-28 20:00"), 12) == ["Sat 20:00+0100 off"]


def test_the_night_in_which_an_hour_comes_twice() -> None:
    """25 October 2026: after 02:59 comes 02:00 once more. Both are within the hours that name it."""
    assert armed_minutes("daily 23:00-06:00", at("2026-10-24 20:00"), 14) == [
        *("Sat 20:00+0200 off", "Sat 23:00+0200 on", "Sun 06:00+0100 off"),
    ]
    assert armed_minutes("daily 02:30-04:00", at("2026-10-24 20:00"), 14) == [
        *("Sat 20:00+0200 off", "Sun 02:30+0200 on", "Sun 02:00+0100 off", "Sun 02:30+0100 on", "Sun 04:00+0100 off"),
    ]


def test_without_hours_it_is_always_on_duty() -> None:
    assert ArmedHours("").is_armed(datetime(2026, 11, 25, 12, tzinfo=UTC))
    assert ArmedHours("  ").is_armed(datetime(2026, 11, 25, 12, tzinfo=UTC))


@pytest.mark.parametrize(
    ("text", "part", "advice"),
    [
        ("mon-fry 08:00-17:00", "'mon-fry 08:00-17:00'", 'write "mon-fri 08:00-17:00"'),
        ("08:00-17:00", "'08:00-17:00'", "daily"),
        ("daily 23:00-06:00,", "''", "not understood"),
        ("daily 8:00-17:00", "'daily 8:00-17:00'", "not understood"),
        ("mon-fri 08:00-17:00; daily 23:00-06:00", "'mon-fri 08:00-17:00; daily 23:00-06:00'", "not understood"),
        ("daily 08:00-25:00", "'daily 08:00-25:00'", "no time 25:00"),
        ("daily 08:60-09:00", "'daily 08:60-09:00'", "no time 08:60"),
        ("daily 24:01-09:00", "'daily 24:01-09:00'", "no time 24:01"),
        ("daily 08:00-08:00", "'daily 08:00-08:00'", "00:00-24:00"),
        ("daily 24:00-08:00", "'daily 24:00-08:00'", "next day"),
        ("daily ٠٨:00-09:00", "'daily ٠٨:00-09:00'", "not understood"),
    ],
)
def test_a_broken_text_is_named_with_what_to_write(text: str, part: str, advice: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as caught:
        ArmedHours(text)
    assert part in str(caught.value)
    assert advice in str(caught.value)


# ---- The file, and what counts when ----------------------------------------------------------------------------------


class Guard:
    """A Duty under a clock of the test's; it is noon in Berlin."""

    def __init__(self, folder: Path, hours: str = "") -> None:
        self.clock = FakeClock(wall_s=at("2026-11-25 12:00").timestamp())
        self.is_synchronised = True
        self.file = folder / "disarmed"
        self.duty = Duty(
            folder,
            ArmedHours(hours),
            is_synchronised=lambda: self.is_synchronised,
            wall=self.clock.wall,
            monotonic=self.clock,
        )

    def touch(self, age_s: float = 0) -> None:
        self.file.touch()
        os.utime(self.file, times=(self.clock.wall() - age_s,) * 2)

    def is_armed(self, *, after_s: float = 0) -> bool:
        self.clock.sleep(after_s)
        self.duty.check_file()
        return self.duty.is_armed()


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_the_hours_are_those_of_this_machines_time_zone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guard = Guard(tmp_path, "daily 23:00-06:00")
    found = [guard.is_armed(), *(guard.is_armed(after_s=HOUR_S) for _ in range(19))]
    assert found == [False] * 11 + [True] * 7 + [False] * 2
    assert caplog.messages == [
        *("off duty: not within ARMED_HOURS; nothing is filmed", "on duty"),
        "off duty: not within ARMED_HOURS; nothing is filmed",
    ]


@pytest.mark.usefixtures("berlin")
def test_the_file_ends_the_duty_for_twelve_hours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guard = Guard(tmp_path)
    assert guard.is_armed()
    guard.touch()
    assert not guard.is_armed(after_s=1)
    assert not guard.is_armed(after_s=12 * HOUR_S - 2)
    assert guard.is_armed(after_s=2)
    assert guard.is_armed(after_s=HOUR_S)
    assert caplog.messages == [
        "off duty: the file disarmed, until 00:00 at the latest; nothing is filmed",
        "the file disarmed does not count: it is older than 12 hours, so the camera is on duty again; remove it",
        "on duty",
    ]
    guard.touch()
    assert not guard.is_armed(), "touched again, for twelve hours more"
    guard.file.unlink()
    assert guard.is_armed()


def test_a_wall_clock_that_is_set_back_does_not_make_the_twelve_hours_longer(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    guard.touch()
    assert not guard.is_armed()
    for _ in range(11):
        assert not guard.is_armed(after_s=HOUR_S)
        guard.clock.step_wall(-HOUR_S)
    assert guard.is_armed(after_s=HOUR_S)


def make_link(guard: Guard) -> None:
    guard.touch()
    guard.file.rename(guard.file.with_name("target"))
    guard.file.symlink_to("target")


def make_hard_link(guard: Guard) -> None:
    guard.touch()
    guard.file.with_name("other").hardlink_to(guard.file)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_link, "it is a link"),
        (make_hard_link, "it is a link"),
        (lambda guard: guard.file.mkdir(), "no ordinary file"),
        (lambda guard: (guard.file.touch(), guard.file.chmod(0o646)), "other users can write to it"),
        (lambda guard: os.mkfifo(guard.file), "no ordinary file"),
        (lambda guard: guard.touch(age_s=-60), "dated in the future"),
        (lambda guard: guard.touch(age_s=12 * HOUR_S), "older than 12 hours"),
    ],
)
def test_what_is_no_file_of_the_owner_does_not_count_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Guard], None], reason: str
) -> None:
    guard = Guard(tmp_path)
    make(guard)
    assert guard.is_armed()
    assert guard.is_armed(after_s=1)
    [line] = caplog.messages
    assert line.startswith("the file disarmed does not count: ")
    assert reason in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_a_file_of_another_user_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(tmp_path)
    guard.touch()
    os.chown(guard.file, 12345, 12345)
    assert guard.is_armed()
    assert "it belongs to user id 12345" in caplog.text


def test_a_clock_that_was_never_set_means_on_duty(tmp_path: Path) -> None:
    guard = Guard(tmp_path, "daily 23:00-06:00")
    guard.is_synchronised = False
    guard.touch()
    assert guard.is_armed()
    guard.is_synchronised = True
    assert not guard.is_armed()
    guard.is_synchronised = False
    assert not guard.is_armed(), "it was set once, and goes on well without a network"


def test_a_disk_that_hangs_means_on_duty(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    guard.touch()
    assert not guard.is_armed()
    guard.clock.sleep(29)
    assert not guard.duty.is_armed()
    guard.clock.sleep(2)
    assert guard.duty.is_armed(), "no answer of the disk for 31 s"


# ---- The real process ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_off_duty_the_camera_is_off_the_clip_is_kept_and_the_duty_begins_again(tmp_path: Path, models: Path) -> None:
    synchronised = tmp_path / "synchronised"
    synchronised.touch()
    stand_in = {"STAND_IN_VIDEO": str(SCENE), "STAND_IN_START_S": "4", "STAND_IN_LOG": str(tmp_path / "camera")}
    folder = tmp_path / "daemon"
    with Daemon(folder, models, env=stand_in, clock_sync_file=synchronised, CLOCK_WAIT_S=0, **SMALL_INPUT) as daemon:
        daemon.wait_for_log("event .*clip begun")
        (folder / "disarmed").touch()
        daemon.wait_for_log("off duty: the file disarmed, until .*; nothing is filmed")
        daemon.wait_for_log("recording stopped")
        daemon.wait_for_log("clip finished: ")
        sent = (tmp_path / "camera").read_text()
        time.sleep(1)
        assert (tmp_path / "camera").read_text() == sent, "the camera program runs on"
        (folder / "disarmed").unlink()
        daemon.wait_for_log("on duty$|on duty\n")
        daemon.wait_until(lambda: (tmp_path / "camera").read_text() != sent, "the camera is not started again")
        assert "camera: " not in daemon.log.split("off duty")[1], "no fault is logged"
        assert daemon.terminate()[0] == 0


def test_broken_hours_are_named_before_anything_starts(tmp_path: Path, models: Path) -> None:
    with Daemon(tmp_path, models, ARMED_HOURS="mon-fry 08:00-17:00") as daemon:
        assert daemon.process.wait(60) == 78
    assert "ERROR   ARMED_HOURS: 'mon-fry 08:00-17:00' is not understood; write" in daemon.log
