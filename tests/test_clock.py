"""Event ids, waiting for the clock to be set, and events that are dated afterwards."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from guardianberry.filenames import HeldName, ImageName, VideoName
from guardianberry.recording.clock import Clock

IMAGE = ImageName(0, 50, 640, 480)
VIDEO = VideoName(0, 20, 1, 50, 12, 640, 480)


class FakeTime:
    """Time that passes only when told to, and a wall clock that can be set."""

    def __init__(self) -> None:
        self.monotonic_s = 1000.0
        self.offset_s = 50_000.0  # wall = monotonic + offset: the start of 1970, as on a Pi without a network
        self.synchronised = False

    def clock(self, wait_s: float = 3600) -> Clock:
        return Clock(
            wait_s=wait_s,
            is_synchronised=lambda: self.synchronised,
            wall=lambda: self.monotonic_s + self.offset_s,
            monotonic=lambda: self.monotonic_s,
            since_boot=lambda: self.monotonic_s,
            pause=self.go_on,
        )

    def go_on(self, seconds: float) -> None:
        self.monotonic_s += seconds


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_event_id_is_the_wall_time_of_a_moment_in_the_past():
    time = FakeTime()
    clock = time.clock()
    assert clock.event_id(990.0) == 50_990
    time.offset_s += 3600  # the clock is set forward
    assert clock.event_id(990.0) == 54_590


def test_a_clock_set_back_gives_no_event_id_twice():
    time = FakeTime()
    clock = time.clock()
    event_ids = []
    for _ in range(3):
        time.monotonic_s += 3600
        time.offset_s -= 3600
        event_ids.append(clock.new_event_id(time.monotonic_s))
    assert event_ids == [51_000, 51_001, 51_002]


def test_a_run_after_a_kill_gives_no_event_id_of_the_run_before():
    """Killed once its image had been sent, and started again within the second: nothing on the disk tells of it."""
    time = FakeTime()
    killed = time.clock()
    time.monotonic_s += 10.1
    event_id = killed.new_event_id(time.monotonic_s)
    time.monotonic_s += 0.1
    clock = time.clock()
    time.monotonic_s += 0.2
    assert clock.new_event_id(time.monotonic_s) == event_id + 1
    time.monotonic_s += 1
    assert clock.new_event_id(time.monotonic_s) == event_id + 2, "from then on event ids are true"


@pytest.mark.parametrize("phase_s", [0.0, 0.1, 0.3, 0.49, 0.51, 0.6, 0.8, 0.99])
@pytest.mark.parametrize("event_after_s", [0.0, 0.15, 0.5, 0.9, 1.3])
@pytest.mark.parametrize("restart_after_s", [0.0, 0.2, 0.45, 0.7])
def test_runs_killed_right_after_their_first_event_never_share_an_event_id(phase_s, event_after_s, restart_after_s):
    time, event_ids = FakeTime(), []
    time.monotonic_s += phase_s
    for _ in range(5):
        clock = time.clock()
        time.monotonic_s += event_after_s
        event_ids.append(clock.new_event_id(time.monotonic_s))
        time.monotonic_s += restart_after_s + 1e-6
    assert event_ids == sorted(set(event_ids))


def test_the_first_second_of_a_run_follows_a_clock_that_is_set_back():
    time = FakeTime()
    clock = time.clock()
    time.monotonic_s += 10
    time.offset_s -= 7200
    assert clock.new_event_id(time.monotonic_s) == 51_010 - 7200


@pytest.mark.parametrize(
    ("uptime_s", "synchronised", "expected"), [(10, False, False), (10, True, True), (60, False, True)]
)
def test_when_the_clock_counts_as_set(uptime_s, synchronised, expected):
    time = FakeTime()
    time.monotonic_s, time.synchronised = uptime_s, synchronised
    assert time.clock(wait_s=60).is_set() is expected


def test_being_set_is_remembered_and_logged_once(caplog):
    caplog.set_level("INFO")
    time = FakeTime()
    clock = time.clock()
    assert not clock.is_set()
    time.synchronised = True
    assert clock.is_set()
    time.synchronised = False  # timesyncd was stopped
    assert clock.is_set()
    assert len(caplog.records) == 1


def test_held_events_get_their_true_times_in_their_order(tmp_path):
    time = FakeTime()
    clock = time.clock()
    for monotonic_s in (1000.0, 1060.4, 1120.0):
        (tmp_path / clock.hold(IMAGE, monotonic_s)).write_text(str(monotonic_s))
    (tmp_path / clock.hold(VIDEO, 1000.0)).touch()
    time.monotonic_s = 1200.0
    time.offset_s = 1_700_000_000 - 1200  # NTP says: it is 1 700 000 000 now
    assert clock.release_held(tmp_path) == 4
    assert names(tmp_path) == [
        "1699999800-20-1-50-12-640-480.mp4",
        "1699999800-50-640-480.jpg",
        "1699999860-50-640-480.jpg",
        "1699999920-50-640-480.jpg",
    ]
    assert (tmp_path / "1699999860-50-640-480.jpg").read_text() == "1060.4"


def test_image_and_clip_of_an_event_get_one_event_id_though_the_clock_is_set_between_them(tmp_path):
    """The wait is over while the clip is being written, and NTP answers before its end."""
    time = FakeTime()
    clock = time.clock()
    (tmp_path / clock.hold(IMAGE, 1000.0)).touch()
    clock.release_held(tmp_path)
    time.offset_s += 1_700_000_000
    (tmp_path / clock.hold(VIDEO, 1000.0)).touch()
    clock.release_held(tmp_path)
    assert names(tmp_path) == ["51000-20-1-50-12-640-480.mp4", "51000-50-640-480.jpg"]


def test_a_held_event_never_takes_anothers_name(tmp_path):
    time = FakeTime()
    clock = time.clock()
    (tmp_path / ImageName(51_000, 50, 640, 480).encode()).write_text("taken")
    (tmp_path / clock.hold(IMAGE, 1000.0)).touch()
    clock.release_held(tmp_path)
    assert names(tmp_path) == ["51000-50-640-480.jpg", "51001-50-640-480.jpg"]
    assert (tmp_path / "51000-50-640-480.jpg").read_text() == "taken"


def test_an_event_held_before_a_reboot_keeps_its_event_id(tmp_path):
    clock = FakeTime().clock()
    boot = "ffffffff" if clock.boot != "ffffffff" else "00000000"
    (tmp_path / HeldName(boot, 7, ImageName(777, 50, 640, 480)).encode()).touch()
    clock.release_held(tmp_path)
    assert names(tmp_path) == ["777-50-640-480.jpg"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can make such a file")
def test_a_held_file_that_cannot_be_renamed_does_not_hold_up_the_others(tmp_path):
    """Such as one with the attribute "immutable" on a card from elsewhere; here another file is mounted over it."""
    time = FakeTime()
    clock = time.clock()
    stuck = tmp_path / HeldName("0" * 8, 1, ImageName(777, 50, 640, 480)).encode()
    stuck.touch()
    (tmp_path / clock.hold(IMAGE, 1000.0)).touch()
    subprocess.run(["mount", "--bind", str(stuck), str(stuck)], check=True)
    try:
        assert clock.release_held(tmp_path) == 1
        with pytest.raises(OSError, match="busy"):  # the disk takes no renaming, for all that is known
            clock.release_held(tmp_path)
    finally:
        subprocess.run(["umount", str(stuck)], check=True)
    assert names(tmp_path) == [stuck.name, "51000-50-640-480.jpg"]


def test_other_files_are_left_alone(tmp_path):
    for name in (".held-", ".held-x-1-1-2-3-4.jpg", "1-2-3-4.jpg", ".open-1-2-3-4-5-6-7.mp4", "notes"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    assert FakeTime().clock().release_held(tmp_path) == 0
    assert names(tmp_path) == before
