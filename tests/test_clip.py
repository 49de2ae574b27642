"""Clips: complete after a close, playable after a kill, kept when the disk refuses."""

import dataclasses
import errno
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardianberry.filenames import OPEN_PREFIX, PART_PREFIX, HeldName, VideoName, parse
from guardianberry.recording.clip import ClipWriter
from guardianberry.recording.mp4 import Mp4Writer, close_killed_file
from guardianberry.recording.recorder import EventFacts, Stop
from guardianberry.recording.recovery import Recovery, remove_parts
from tests.fakes import FakeClock
from tests.h264 import Unit, decode, units
from tests.mounts import read_only, small_disk

NAME = VideoName(1700000000, 0, 1, 50, 12, 320, 240)
FACTS = EventFacts(max_people_found=3, max_confidence=88, inference_time_ms=21)


class FakeTap:
    """Hands out a list of units, then what is fed."""

    def __init__(self, ring: list[Unit]) -> None:
        self.queue: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        for unit in ring:
            self.queue.put(unit)
        self.stream_ended = False
        self.closed = False

    @property
    def ended(self) -> bool:
        return (self.closed or self.stream_ended) and self.queue.empty()

    def get(self, timeout_s: float) -> Unit | None:
        try:
            return self.queue.get(timeout=timeout_s) if timeout_s else self.queue.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        self.closed = True


def record(tap: FakeTap, folder: Path, finished: list[Path], **changes) -> ClipWriter:
    settings = {
        "name": NAME,
        "final_name": VideoName.encode,
        "max_duration_s": 20,
        "frame_rate_fps": 10,
        "is_ready": is_set(),
        "alert_is_safe": is_set(),
        "begun": lambda is_begun: None,
        "finished": finished.append,
        "left": lambda path: None,
        "failed": lambda error: None,
    }
    return ClipWriter(tap, folder, **(settings | changes))


def is_set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def recover(folder: Path, **changes) -> list[Path]:
    """Finish the clips that were left open in `folder`, as at a start; the finished ones."""
    finished: list[Path] = []
    settings = {
        "max_duration_s": 20,
        "frame_rate_fps": 10,
        "is_recording": lambda event_id: False,
        "finished": finished.append,
    }
    recovery = Recovery(folder, **(settings | changes))
    recovery.look()
    recovery.finish()
    return finished


def stop_at(time_s: float) -> Stop:
    return Stop(time_s=time_s, reason="test", facts=FACTS)


def wait_until(condition, timeout_s: float = 10) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "waited in vain"
        time.sleep(0.01)


def test_a_clip_has_every_unit_up_to_the_stop_and_a_name_that_tells_its_length(tmp_path):
    made = units(60)
    tap, finished = FakeTap(made[:30]), []
    clip = record(tap, tmp_path, finished)
    wait_until(lambda: [path.name for path in tmp_path.iterdir()] == [OPEN_PREFIX + NAME.encode()])
    for unit in made[30:]:
        tap.queue.put(unit)
    clip.finish(stop_at(made[49].arrival_s))
    assert clip.join(10)
    assert [path.name for path in tmp_path.iterdir()] == ["1700000000-5-3-88-21-320-240.mp4"]
    assert finished == list(tmp_path.iterdir())
    assert decode(finished[0]) == (50, pytest.approx(5.0), True)
    assert tap.closed


@pytest.mark.parametrize("make", [lambda path, other: path.symlink_to(other), lambda path, _: os.mkfifo(path)])
def test_nothing_is_written_through_what_has_the_name_of_a_new_clip(tmp_path, make):
    made, other, finished = units(20), tmp_path / "other", []
    other.write_bytes(b"precious")
    (tmp_path / "videos").mkdir()
    make(tmp_path / "videos" / (PART_PREFIX + OPEN_PREFIX + NAME.encode()), other)
    clip = record(FakeTap(made), tmp_path / "videos", finished)
    clip.finish(stop_at(made[-1].arrival_s))
    assert clip.join(20)
    assert decode(finished[0])[0] == 20
    assert other.read_bytes() == b"precious"


def test_times_in_the_clip_are_those_of_arrival(tmp_path):
    """A camera that stalled for 1.5 s leaves a pause in the clip and not a jump."""
    made = [unit._replace(arrival_s=unit.arrival_s + (1.5 if i >= 10 else 0)) for i, unit in enumerate(units(20))]
    finished = []
    clip = record(FakeTap(made), tmp_path, finished)
    clip.finish(stop_at(made[-1].arrival_s))
    assert clip.join(10)
    with av.open(str(finished[0])) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.pts is not None]
    assert times == pytest.approx([unit.arrival_s - made[0].arrival_s for unit in made], abs=1e-4)


def test_units_that_arrive_together_stay_in_order(tmp_path):
    made = [unit._replace(arrival_s=100.0) for unit in units(5)]
    finished = []
    clip = record(FakeTap(made), tmp_path, finished)
    clip.finish(stop_at(100.0))
    assert clip.join(10)
    assert decode(finished[0])[0] == 5


def test_a_clip_is_never_longer_than_its_maximum(tmp_path):
    finished = []
    clip = record(FakeTap(units(60)), tmp_path, finished, max_duration_s=3)
    wait_until(lambda: clip.end_reason)
    clip.finish(stop_at(1e9))
    assert clip.join(10)
    assert clip.end_reason == "the clip has its full length"  # still, after the tap was closed
    assert decode(finished[0]) == (30, pytest.approx(3.0), True)


def test_the_stream_ends_and_the_clip_is_kept(tmp_path):
    tap, finished = FakeTap(units(15)), []
    clip = record(tap, tmp_path, finished)
    tap.stream_ended = True
    wait_until(lambda: clip.end_reason)
    assert clip.end_reason == "no more video from the camera"
    assert clip.join(10)
    assert decode(finished[0])[0] == 15


def test_without_a_key_frame_there_is_no_clip_and_no_file(tmp_path):
    for ring in ([], units(3)[1:]):
        begun = []
        clip = record(FakeTap(ring), tmp_path, [], begun=begun.append)
        assert clip.join(10)
        assert begun == [False]
        assert "key frame" in clip.end_reason
    assert not list(tmp_path.iterdir())


def test_a_kill_can_take_a_clip_until_its_alert_image_is_safe(tmp_path):
    """Else it could leave a clip without an image."""
    settled, begun = threading.Event(), []
    clip = record(FakeTap(units(20)), tmp_path, [], alert_is_safe=settled, begun=begun.append)
    wait_until(lambda: list(tmp_path.iterdir()))
    time.sleep(0.3)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(PART_PREFIX)
    assert not begun
    settled.set()
    wait_until((tmp_path / (OPEN_PREFIX + NAME.encode())).exists)
    wait_until(lambda: begun[:1] == [True])
    clip.finish(stop_at(1e9))
    assert clip.join(10)


def test_a_clip_is_finished_though_neither_its_folder_nor_its_alert_image_ever_was_ready(tmp_path):
    """The daemon is asked to stop before they are."""
    tap, finished, never = FakeTap(units(20)), [], threading.Event()
    clip = record(tap, tmp_path, finished, is_ready=never, alert_is_safe=never)
    clip.finish(stop_at(1e9))
    assert clip.join(4)
    assert decode(finished[0])[0] == 20


def test_a_clip_that_the_disk_does_not_take_has_its_full_length_all_the_same(tmp_path):
    """So that the event ends, and the next one has an alert."""
    clock = FakeClock()
    clip = record(FakeTap(units(20)), tmp_path, [], is_ready=threading.Event(), monotonic=clock)
    assert clip.end_reason is None
    clock.sleep(20)
    assert clip.end_reason == "the clip has its full length"
    clip.finish(stop_at(1e9))
    assert clip.join(10)


def test_a_folder_that_is_not_there_is_told_and_ends_the_clip(tmp_path):
    begun, failed = [], []
    clip = record(FakeTap(units(20)), tmp_path / "videos", [], begun=begun.append, failed=failed.append)
    assert clip.join(10)
    assert begun == [False]
    assert [error.errno for error in failed] == [errno.ENOENT]
    assert "No such file" in clip.end_reason


def test_a_disk_that_is_mounted_over_the_folder_does_not_hide_the_clip(tmp_path):
    tap, finished = FakeTap(units(20)), []
    videos = tmp_path / "videos"
    videos.mkdir()
    clip = record(tap, videos, finished)
    wait_until((videos / (OPEN_PREFIX + NAME.encode())).exists)
    with small_disk(videos, "10m"):
        assert not list(videos.iterdir())
        clip.finish(stop_at(1e9))
        assert clip.join(10)
        assert finished == list(videos.iterdir())
        assert decode(finished[0])[0] == 20
    assert not list(videos.iterdir()), "it is in both places, and would be uploaded twice"


def test_a_clip_whose_disk_is_gone_is_there_when_the_disk_is_back(tmp_path, caplog):
    tap, finished = FakeTap(units(20)), []
    disk, videos = tmp_path / "disk", tmp_path / "videos"
    disk.mkdir()
    videos.symlink_to(disk)
    clip = record(tap, videos, finished)
    wait_until((videos / (OPEN_PREFIX + NAME.encode())).exists)
    disk.rename(tmp_path / "gone")
    clip.finish(stop_at(1e9))
    assert clip.join(10)
    assert "is finished, but not in reach" in caplog.text
    (tmp_path / "gone").rename(disk)
    assert [decode(path)[0] for path in videos.iterdir()] == [20]


def test_a_removed_folder_costs_the_clip_and_the_log_promises_nothing(tmp_path, caplog):
    left, videos = [], tmp_path / "videos"
    videos.mkdir()
    clip = record(FakeTap(units(20)), videos, [], left=left.append)
    opened = videos / (OPEN_PREFIX + NAME.encode())
    wait_until(opened.exists)
    shutil.rmtree(videos)
    clip.finish(stop_at(1e9))
    assert clip.join(10)
    assert len(left) == 1
    videos.mkdir()
    recovery = Recovery(
        videos, max_duration_s=20, frame_rate_fps=10, is_recording=lambda event_id: False, finished=left.append
    )
    recovery.add(left[0])
    recovery.finish()
    assert f"{left[0].name} is gone" in caplog.text


def test_the_open_name_follows_what_is_known(tmp_path):
    tap = FakeTap(units(10))
    clip = record(tap, tmp_path, [])
    clip.update(FACTS)
    wait_until(lambda: (tmp_path / (OPEN_PREFIX + "1700000000-0-3-88-21-320-240.mp4")).exists())
    clip.finish(stop_at(1e9))
    assert clip.join(10)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_clip_that_is_there_already_is_not_replaced(tmp_path):
    (tmp_path / "1700000000-1-3-88-21-320-240.mp4").write_bytes(b"another event")
    finished = []
    clip = record(FakeTap(units(10)), tmp_path, finished)
    clip.finish(stop_at(1e9))
    assert clip.join(10)
    assert finished[0].name == "1700000001-1-3-88-21-320-240.mp4"
    assert (tmp_path / "1700000000-1-3-88-21-320-240.mp4").read_bytes() == b"another event"


WRITE_UNTIL_KILLED = """
    import sys, time
    from pathlib import Path
    from guardianberry.recording.mp4 import Mp4Writer
    from tests.h264 import access_units

    mp4 = Mp4Writer(Path(sys.argv[1]), width=320, height=240, frame_rate_fps=10)
    for number, unit in enumerate(access_units()):
        mp4.write(unit)
        print(number + 1, flush=True)
        time.sleep(0.002)
"""


@pytest.mark.parametrize("kill_after", [2, 9, 10, 11, 57])
def test_a_killed_clip_loses_at_most_two_frames_and_is_finished_at_the_next_start(tmp_path, kill_after):
    path = tmp_path / (OPEN_PREFIX + NAME.encode())
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE_UNTIL_KILLED), str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        written = next(int(line) for line in writer.stdout if int(line) >= kill_after)
        writer.send_signal(signal.SIGKILL)
    (finished,) = recover(tmp_path)
    frames, duration_s, first_is_key = decode(finished)
    assert frames >= written - 2
    assert first_is_key
    assert parse(finished.name) == dataclasses.replace(NAME, duration=round(duration_s))
    assert len(list(tmp_path.iterdir())) == 1


def open_clip(folder: Path, name: str, count: int = 20) -> Path:
    """A clip as a kill leaves it."""
    path = folder / name
    mp4 = Mp4Writer(path, width=320, height=240, frame_rate_fps=10)
    for unit in units(count):
        mp4.write(unit)
    killed = path.read_bytes()
    mp4.close()
    path.write_bytes(killed)
    return path


def test_finishing_is_harmless_when_done_again_and_when_interrupted_between_its_steps(tmp_path):
    path = open_clip(tmp_path, OPEN_PREFIX + NAME.encode())
    first_s = close_killed_file(path, frame_rate_fps=10)
    once = path.read_bytes()
    assert close_killed_file(path, frame_rate_fps=10) == pytest.approx(first_s)
    assert path.read_bytes() == once  # so that its upload gets the same key, however often it was finished


def test_a_held_clip_stays_held_when_it_is_finished(tmp_path):
    held = HeldName("0123abcd", 5000, NAME)
    open_clip(tmp_path, OPEN_PREFIX + held.encode())
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [
        HeldName("0123abcd", 5000, dataclasses.replace(NAME, duration=2)).encode()
    ]


PICTURE = cv2.imencode(".gif", np.zeros((240, 320, 3), np.uint8))[1].tobytes()  # FFmpeg would take it for a video


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 5000, PICTURE])
def test_an_open_file_without_video_is_left_and_named(tmp_path, caplog, content):
    path = tmp_path / (OPEN_PREFIX + NAME.encode())
    path.write_bytes(content)
    open_clip(tmp_path, OPEN_PREFIX + dataclasses.replace(NAME, recording_start_time=5).encode())
    finished = recover(tmp_path)
    assert path.read_bytes() == content
    assert path.name in caplog.text
    assert len(finished) == 1, "the good one was held up"


def test_a_flipped_bit_in_a_title_costs_no_frame(tmp_path):
    path = open_clip(tmp_path, OPEN_PREFIX + NAME.encode(), count=20)
    path.write_bytes(path.read_bytes().replace(b"VideoHandler", b"\xd6ideoHandler"))
    (finished,) = recover(tmp_path)
    assert decode(finished)[0] == 19  # the last one becomes readable when the next one is written


flips_of_a_file = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3)


@given(st.lists(flips_of_a_file, min_size=50, max_size=50))
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_flipped_bits_in_the_first_kilobytes_never_stop_the_start(files):
    """Those with the boxes in them; in the pictures a flip is the decoder's affair."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, killed = Path(temporary), []
        whole = open_clip(folder, OPEN_PREFIX + NAME.encode()).read_bytes()
        for number, flips in enumerate(files):
            damaged = bytearray(whole)
            for share, bit in flips:
                damaged[int(share * 2000)] ^= 1 << bit
            (folder / f"{OPEN_PREFIX}{number}-0-1-50-12-320-240.mp4").write_bytes(damaged)
            killed.append(bytes(damaged))
        recover(folder)
        left = sorted(folder.iterdir())
        assert len(left) == len(files) + 1
        assert all(parse(path.name) or path.read_bytes() in killed for path in left)
        assert any(parse(path.name) == dataclasses.replace(NAME, duration=2) for path in left), "the whole one"


def test_clips_that_this_run_is_recording_are_left_alone(tmp_path):
    """The disk came late: its folder is seen for the first time while an event is recorded into it."""
    own, old = NAME, dataclasses.replace(NAME, recording_start_time=5)
    open_clip(tmp_path, OPEN_PREFIX + own.encode())
    (tmp_path / (PART_PREFIX + OPEN_PREFIX + own.encode())).touch()
    open_clip(tmp_path, OPEN_PREFIX + old.encode())
    (finished,) = recover(tmp_path, is_recording=lambda event_id: event_id == own.recording_start_time)
    assert parse(finished.name).recording_start_time == 5
    assert len(list(tmp_path.iterdir())) == 3


def test_a_clip_that_the_disk_does_not_let_finish_is_finished_when_it_does(tmp_path):
    videos, finished, clock = tmp_path / "videos", [], FakeClock()
    videos.mkdir()
    open_clip(videos, OPEN_PREFIX + NAME.encode())
    recovery = Recovery(
        videos,
        max_duration_s=20,
        frame_rate_fps=10,
        is_recording=lambda event_id: False,
        finished=finished.append,
        monotonic=clock,
    )
    with read_only(videos):
        recovery.look()
        with pytest.raises(OSError, match="Read-only"):
            recovery.finish()
    recovery.finish()
    assert not finished, "each try copies the clip: not at once"
    clock.sleep(60)
    recovery.finish()
    assert decode(finished[0])[0] == 19


def test_parts_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".part-1-2-3-4.jpg").write_bytes(b"half")
    (tmp_path / "1-2-3-4.jpg").write_bytes(b"whole")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1-2-3-4.jpg"]


def test_a_full_disk_ends_the_clip_and_keeps_what_is_there(tmp_path):
    """The disk is really full: a tmpfs of 200 kB. Needs root, which CI has."""
    with small_disk(tmp_path / "disk", "200k") as disk:
        finished = []
        made = units(200, width=640, height=480, intra_frames=1)
        tap = FakeTap(made[:3])
        clip = record(tap, disk, finished, max_duration_s=100)
        for unit in made[3:]:
            tap.queue.put(unit)
        wait_until(lambda: clip.end_reason)
        assert clip.join(10)
        assert "disk refuses" in clip.end_reason
        assert finished
        frames, duration_s, _ = decode(finished[0])
        assert frames > 100
        assert parse(finished[0].name).duration == round(duration_s)
