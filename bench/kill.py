"""Kills the real daemon with SIGKILL at random instants, hundreds of times, and counts what became of its events.

    python -m bench.kill [--kills 200] [--lanes 2] [--seed 1]

Each lane is a folder of its own with a daemon, a stand-in camera that always shows a person, and a slow network to one
S3 server. Half of the kills fall at any time of an event's life, the others at the steps that are quickly over: the
image being written, the clip being opened, closed and renamed, an upload, the finishing of a killed clip. At the end
each daemon runs until it has nothing left to upload, and every clip in the bucket is compared, picture by picture, with
what the camera sent. tests/test_kill.py does the same with fewer kills.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av

from bench.footage import FRAME_RATE_FPS, cameras_in, is_closed, own_camera, pictures_in, write_footage
from bench.report import machine, table, write_section
from guardianberry.detection.weights import find_graph
from tests.daemon import WEIGHTS, Daemon, install_models
from tests.faulty_proxy import FaultyProxy
from tests.h264 import decode
from tests.s3_server import S3Server, StoredObject, environment

CONSTANTS = {
    "MAX_RECORDING_DURATION_S": 4,
    "PRE_ROLL_S": 1,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 4,
    "CLOCK_WAIT_S": 0,
    "FRAME_RATE_FPS": FRAME_RATE_FPS,
}
CLIP_FRAMES = 4 * FRAME_RATE_FPS  # the first clip begins with the camera's first picture and is full after so many
EVENT_LIFE_S = 5.0  # from the first picture to the end of the uploads
UPLINK_BYTES_PER_S = 1_500_000
GIVE_UP_S = 90.0
LOOK_EVERY_S = 0.001
MOST_LOST_S = 1.0


@dataclasses.dataclass
class Kill:
    """One kill: when, at what, and what it left."""

    aim: str
    at_s: float  # monotonic
    found: list[str]  # what was under way, by the files that were left and the log
    orphans: int
    open_event: int | None  # id of the event whose clip was being written


@dataclasses.dataclass
class Tally:
    """What became of everything; `wrong` holds a line for whatever should not be."""

    kills: list[Kill] = dataclasses.field(default_factory=list)
    events: int = 0
    images: int = 0
    clips: int = 0
    clips_killed: int = 0
    unlogged_images: int = 0
    unlogged_clips: int = 0
    frames: int = 0
    lost_s: list[float] = dataclasses.field(default_factory=list)
    lost_replies: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Tally) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def lines(self) -> list[str]:
        found = Counter(what for kill in self.kills for what in kill.found)
        lost = f"{statistics.median(self.lost_s):.2f} s, at most {max(self.lost_s):.2f} s" if self.lost_s else "none"
        rows = [
            ("kill -9", str(len(self.kills))),
            *((f"... found it {what}", str(count)) for what, count in found.most_common()),
            ("events whose first detection was logged", str(self.events)),
            (
                "images in the bucket",
                f"{self.images}, of these {self.unlogged_images} of an event killed before its line",
            ),
            ("clips in the bucket", f"{self.clips}, of these {self.unlogged_clips} of an event killed before its line"),
            ("clips that were being written at a kill", str(self.clips_killed)),
            ("video lost before the kill: median", lost),
            ("pictures compared with what the camera sent", str(self.frames)),
            ("uploads whose reply was lost", str(self.lost_replies)),
            ("orphaned cameras", str(sum(kill.orphans for kill in self.kills))),
            ("missing, doubled, damaged or stray", str(len(self.wrong))),
        ]
        return [*table(("", ""), rows), "", *self.wrong]


class Lane:
    """One folder with its daemon, killed again and again."""

    def __init__(
        self, folder: Path, models: Path, s3: S3Server, *, seed: int, footage: Path, **constants: object
    ) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.tally = Tally()
        self._s3 = s3
        self._buckets = {"IMAGES_BUCKET": f"images-{folder.name}", "VIDEOS_BUCKET": f"videos-{folder.name}"}
        s3.create_bucket(*self._buckets.values())
        folder.mkdir(parents=True)
        self._control = folder / "control"
        self._proxy = FaultyProxy(s3.port)
        self._proxy.rate_bytes_per_s = UPLINK_BYTES_PER_S
        self._proxy.delay_s = 0.1
        env = environment(self._proxy.url) | own_camera(folder / "bin")
        env |= {"STAND_IN_H264": str(footage), "STAND_IN_LOG": str(folder / "camera.jsonl")}
        env |= {"STAND_IN_CONTROL": str(self._control)}
        self.daemon = Daemon(folder, models, env=env, **CONSTANTS, **constants, **self._buckets)
        self._log_start = self._camera_log_start = 0

    # Killing

    def run(self, kills: int, give_up_s: float = float("inf")) -> None:
        """So many kills, fewer if `give_up_s` (monotonic) comes first; then run until nothing is left to upload."""
        try:
            while len(self.tally.kills) < kills and time.monotonic() < give_up_s:
                self._start()
                self._kill(*self._draw_aim())
            self._finish()
        except AssertionError as error:
            self.tally.wrong.append(f"{self.folder.name}: {error}")
        finally:
            self.daemon.kill()
            self._proxy.close()
            self.tally.lost_replies = self._proxy.lost_replies

    def _start(self) -> None:
        self._log_start = len(self.daemon.log)
        self._camera_log_start = self._camera_log_bytes()
        self._proxy.replies_to_lose = self.random.choice((0, 0, 1))
        self.daemon.start()

    @property
    def _log(self) -> str:
        """Of this run of the daemon."""
        return self.daemon.log[self._log_start :]

    def _camera_log_bytes(self) -> int:
        path = self.folder / "camera.jsonl"
        return path.stat().st_size if path.exists() else 0

    def _frames_sent(self) -> int:
        """Since this start of the daemon."""
        path = self.folder / "camera.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as log:
            log.seek(self._camera_log_start)
            return log.read().count(b"\n")

    def _names(self, folder: str, prefix: str) -> set[str]:
        path = self.folder / folder
        return {name for name in os.listdir(path) if name.startswith(prefix)} if path.is_dir() else set()

    def _draw_aim(self) -> tuple[str, Callable[[], bool], float]:
        """What to wait for, and the longest further wait."""
        clips_left = self._names("videos", ".open-")
        connections = self._proxy.connections
        streaming = ("any time", lambda: "camera: video from" in self._log, EVENT_LIFE_S)
        if self.random.random() < 0.5:
            return streaming
        aims = [
            ("the image", lambda: bool(self._names("images", ".part-")), 0.01),
            ("the new image", lambda: bool(self._names("images", "1")), 0.05),
            ("the clip's opening", lambda: bool(self._names("videos", ".") - clips_left), 0.03),
            ("the clip's closing", lambda: self._frames_sent() > CLIP_FRAMES, 0.05),
            ("the clip's new name", lambda: "clip finished" in self._log, 0.1),
            ("an upload", lambda: self._proxy.connections > connections, 0.6),
        ]
        if clips_left:
            aims += [("the finishing of a killed clip", lambda: self._names("videos", ".") != clips_left, 0.02)] * 2
        return self.random.choice(aims)

    def _kill(self, aim: str, sight: Callable[[], bool], longest_wait_s: float) -> None:
        process = self.daemon.process
        assert process is not None
        give_up_s = time.monotonic() + GIVE_UP_S
        while not sight():
            assert process.poll() is None, f"the daemon ended by itself with {process.returncode}:\n{self._log}"
            assert time.monotonic() < give_up_s, f"no sight of {aim}:\n{self._log}"
            time.sleep(LOOK_EVERY_S)
        time.sleep(self.random.uniform(0, longest_wait_s))
        at_s = time.monotonic()
        process.kill()
        process.wait()
        found, open_event = self._what_was_under_way()
        self.tally.kills.append(Kill(aim, at_s, found, self._orphans(), open_event))

    def _what_was_under_way(self) -> tuple[list[str], int | None]:
        event_ids = re.findall(r"event (\d+):", self._log)
        stopped = "recording stopped" in self._log.rpartition("event ")[2]
        videos = self.folder / "videos"
        clips = [
            videos / name for name in self._names("videos", ".open-") if event_ids and f"-{event_ids[-1]}-" in name
        ]
        parts, began = self._names("videos", ".part-"), self._camera_log_bytes() > self._camera_log_start
        found = {
            "starting": not began,
            "writing the image": bool(self._names("images", ".part-")),
            "finishing a clip killed before": bool(parts) and not began,
            "opening the clip": bool(parts) and began,
            "recording": any(not is_closed(clip) for clip in clips),
            "naming the closed clip": any(is_closed(clip) for clip in clips),
            "with an image to upload": bool(self._names("images", "1")),
            "with a clip to upload": bool(self._names("videos", "1")),
        }
        what = [name for name, is_so in found.items() if is_so] or ["idle"]
        return what, int(event_ids[-1]) if event_ids and not stopped else None

    def _orphans(self) -> int:
        """Cameras of this lane that are still there two seconds later."""
        give_up_s = time.monotonic() + 2
        while left := list(cameras_in(self.folder / "bin")):
            if time.monotonic() > give_up_s:
                for camera in left:
                    camera.kill()
                self.tally.wrong.append(f"{self.folder.name}: {len(left)} orphaned camera(s)")
                return len(left)
            time.sleep(0.02)
        return 0

    def _finish(self) -> None:
        self._control.write_text("no-camera")  # so that no further event begins
        self._proxy.delay_s, self._proxy.rate_bytes_per_s = 0.0, None
        self._start()
        self.daemon.wait_until(
            lambda: "no camera" in self._log and not self.daemon.pending(),  # open clips count, too
            "still waiting for their upload",
            timeout_s=GIVE_UP_S,
        )
        code, _ = self.daemon.terminate()
        assert code == 0, f"the last run ended with {code}:\n{self._log}"

    # What became of it

    def judge(self, pictures: Sequence[bytes]) -> None:
        """Fill in the tally from the log, the bucket, the folder and the camera's own log."""
        tally, sent = self.tally, self._sent()
        tally.wrong += [f"{self.folder.name}: left behind: {name}" for name in self.daemon.pending()]
        event_ids = [int(event_id) for event_id in re.findall(r"event (\d+):", self.daemon.log)]
        tally.wrong += [
            f"event {event_id} is there twice" for event_id, count in Counter(event_ids).items() if count > 1
        ]
        images = self._by_event(self._buckets["IMAGES_BUCKET"], "image")
        clips = self._by_event(self._buckets["VIDEOS_BUCKET"], "clip")
        tally.events, tally.images, tally.clips = len(event_ids), len(images), len(clips)
        tally.unlogged_images, tally.unlogged_clips = len(images.keys() - event_ids), len(clips.keys() - event_ids)
        tally.wrong += [f"event {event_id} has no image" for event_id in event_ids if event_id not in images]
        tally.wrong += [f"event {event_id} has no clip" for event_id in event_ids if event_id not in clips]
        tally.wrong += [f"clip {event_id} has no image" for event_id in clips if event_id not in images]
        tally.wrong += [
            f"image {event_id} has no event and no kill"
            for event_id in list(images.keys() - event_ids)[len(tally.kills) :]
        ]
        for event_id, clip in clips.items():
            self._judge_clip(event_id, clip, pictures, sent)

    def _by_event(self, bucket: str, word: str) -> dict[int, StoredObject]:
        found: dict[int, StoredObject] = {}
        for stored in self._s3.objects(bucket):
            if "/" in stored.key:  # live/ and best/ go with the clip
                continue
            event_id = int(stored.metadata["recording_start_time"])
            if event_id in found:
                self.tally.wrong.append(f"event {event_id} has two {word}s")
            found[event_id] = stored
        return found

    def _sent(self) -> list[dict[str, Any]]:
        path = self.folder / "camera.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if "number" in entry]

    def _judge_clip(
        self, event_id: int, clip: StoredObject, pictures: Sequence[bytes], sent: list[dict[str, Any]]
    ) -> None:
        path = self.folder / clip.key
        path.write_bytes(clip.body)
        try:
            frames, duration_s, first_is_key = decode(path)
            shown = pictures_in(path, pictures)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            self.tally.wrong.append(f"clip {event_id} does not decode: {error}")
            return
        path.unlink()
        self.tally.frames += frames
        steps = {(b - a) % len(pictures) for a, b in itertools.pairwise(shown)}
        if not first_is_key or len(shown) != frames or steps - {1}:
            self.tally.wrong.append(
                f"clip {event_id} has not the pictures that were sent, one after the other: {shown}"
            )
        if clip.metadata["duration"] != str(min(round(duration_s), CONSTANTS["MAX_RECORDING_DURATION_S"])):
            self.tally.wrong.append(f"clip {event_id} lasts {duration_s:.2f} s and says {clip.metadata['duration']}")
        for kill in self.tally.kills:
            if kill.open_event == event_id:
                self._judge_loss(event_id, kill, shown, sent)

    def _judge_loss(self, event_id: int, kill: Kill, shown: list[int], sent: list[dict[str, Any]]) -> None:
        """From the sending of the clip's last picture to the kill."""
        last = [
            entry
            for entry in sent
            if entry["source_s"] == shown[-1]
            and 0 <= kill.at_s - entry["monotonic_s"] < len(shown) / FRAME_RATE_FPS + 5
        ]
        if not last:
            self.tally.wrong.append(f"clip {event_id}: its last picture was not sent before the kill")
            return
        lost_s = kill.at_s - last[-1]["monotonic_s"]
        self.tally.clips_killed += 1
        self.tally.lost_s.append(lost_s)
        if lost_s > MOST_LOST_S:
            self.tally.wrong.append(f"clip {event_id} ends {lost_s:.2f} s before the kill")


def kill_often(
    folder: Path, models: Path, *, kills: int, lanes: int, seed: int, at_most_s: float = 1e9, **constants: object
) -> Tally:
    """`kills` kills in all, shared out between `lanes` daemons at a time with these constants of the script changed."""
    pictures = write_footage(folder / "footage.h264")
    find_graph(WEIGHTS, models)  # converted once, before anybody is killed
    give_up_s = time.monotonic() + at_most_s
    total = Tally()
    with S3Server() as s3:
        running = [
            Lane(folder / f"lane{n}", models, s3, seed=seed * 1000 + n, footage=folder / "footage.h264", **constants)
            for n in range(lanes)
        ]
        threads = [
            threading.Thread(target=lane.run, args=(kills // lanes + (n < kills % lanes), give_up_s))
            for n, lane in enumerate(running)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for lane in running:
            lane.judge(pictures)
            total.add(lane.tally)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        models = install_models(folder / "models")
        tally = kill_often(folder, models, kills=options.kills, lanes=options.lanes, seed=options.seed)
    head = f"{options.kills} kills, {options.lanes} daemons at a time, seed {options.seed}; {machine()}"
    write_section("kill", ["## kill -9 at random instants", "", head, "", *tally.lines()])
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
