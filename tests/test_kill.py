"""kill -9 at any instant: every event whose first detection was logged reaches the bucket, once, to its last second.

`python -m bench.kill` does the same with 200 kills.
"""

from __future__ import annotations

import time
from pathlib import Path

import av
import pytest

from bench.kill import MOST_LOST_S, kill_often
from guardianberry.filenames import OPEN_PREFIX
from guardianberry.recording.recovery import remove_parts
from tests.daemon import SMALL_INPUT
from tests.h264 import units
from tests.test_clip import NAME, FakeTap, record, wait_until

KILLS = 9
WALL_S = 30.0  # no further kill after so long: a busy machine makes fewer
FEWEST_KILLS = 6


@pytest.mark.slow
def test_whenever_the_daemon_is_killed_each_event_arrives_once_and_whole(tmp_path: Path, models: Path) -> None:
    tally = kill_often(tmp_path, models, kills=KILLS, lanes=2, seed=20, at_most_s=WALL_S, **SMALL_INPUT)
    print("\n".join(tally.lines()))
    assert not tally.wrong
    assert len(tally.kills) >= FEWEST_KILLS
    assert tally.events >= len(tally.kills) / 4
    assert tally.clips >= tally.events
    assert tally.clips_killed >= 2
    assert max(tally.lost_s) <= MOST_LOST_S


def test_a_clip_is_called_open_only_once_a_frame_of_it_can_be_read(tmp_path: Path) -> None:
    """A person in the camera's very first frame: there is no pre-roll, and one frame alone is not in the file yet."""
    made = units(3)
    tap = FakeTap(made[:1])
    clip = record(tap, tmp_path, [])
    wait_until(lambda: list(tmp_path.iterdir()))
    time.sleep(0.7)  # more than it waits for the second frame
    (path,) = tmp_path.iterdir()
    assert not path.name.startswith(OPEN_PREFIX), "killed now, it would never go away"
    for unit in made[1:]:
        tap.queue.put(unit)
    opened = tmp_path / (OPEN_PREFIX + NAME.encode())
    wait_until(opened.exists)
    with av.open(str(opened)) as container:
        assert sum(1 for packet in container.demux(video=0) if packet.dts is not None) >= 1
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [opened]
    tap.stream_ended = True
    assert clip.join(10)


def test_a_clip_that_begins_with_the_camera_is_told_once_its_second_frame_is_there(tmp_path: Path) -> None:
    """So that the event is logged only once a kill can take neither its image nor its clip."""
    made = units(2)
    tap, begun = FakeTap(made[:1]), []
    clip = record(tap, tmp_path, [], begun=begun.append)
    time.sleep(0.7)
    assert not begun
    tap.queue.put(made[1])
    wait_until(lambda: begun)
    assert begun == [True]
    assert [path.name for path in tmp_path.iterdir()] == [OPEN_PREFIX + NAME.encode()]
    tap.stream_ended = True
    assert clip.join(10)
