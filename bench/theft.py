"""Takes the camera away: kills the real daemon at random instants of events, wipes its disk, and looks at what S3 has.

    python -m bench.theft [--kills 100] [--seed 1] [--at-most-s S] [--quick]

One daemon for each speed of the uplink, with LIVE_UPLOAD and without, all in one run. Each has a stand-in camera that
always shows a person, at the script's bit rate, and reaches an S3 stand-in over HTTP through a link of that speed. At
each kill images/ and videos/ are removed. Then the parts in the bucket are joined and decoded, and their last picture
is looked up in the camera's log of what it sent when.

The newest view is the last picture of the joined video, or a picture that went up by itself, the alert image among
them, if that is newer. The age of a view counts from the frame: of the video by the camera's log, of a single picture
from when its upload began, of an alert image from the whole second in which its event started.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av

from bench import offline, stage
from bench.footage import FRAME_RATE_FPS, own_camera, slices_of, split_annex_b, split_mp4
from bench.report import busy_share, machine, percentile, table, write_section
from guardianberry.detection.weights import find_graph
from tests.daemon import WEIGHTS, Daemon, install_models
from tests.faulty_proxy import FaultyProxy
from tests.s3_server import environment

UPLINKS = {"4 Mbit/s": 500_000, "1 Mbit/s": 125_000, "300 kbit/s": 37_500}  # bytes a second
EVENT_S = 12
CONSTANTS = {
    "MAX_RECORDING_DURATION_S": EVENT_S,
    "MIN_GAP_BETWEEN_VIDEO_START_S": EVENT_S,  # the next alert comes while the clip before is uploaded
    "CLOCK_WAIT_S": 0,
    "FRAME_RATE_FPS": FRAME_RATE_FPS,
}
IMAGES, VIDEOS = "guardianberry.images", "guardianberry.videos"
PERIOD_S = 2 * (stage.VISIT_S[1] - stage.VISIT_S[0])  # of the footage
SETTLE_S = 0.5  # for what had arrived at the server
GIVE_UP_S = 120.0


@dataclasses.dataclass
class Theft:
    """What S3 held, in seconds before the kill; None where there was nothing."""

    into_event_s: float
    newest_view_s: float
    video_s: float | None
    pictures: int


@dataclasses.dataclass
class Tally:
    thefts: list[Theft] = dataclasses.field(default_factory=list)
    alert_latencies_s: list[float] = dataclasses.field(default_factory=list)
    frames: int = 0
    inferences: int = 0
    peaks_mb: list[float] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)


class Lane:
    """One folder, one daemon, one link."""

    def __init__(self, folder: Path, models: Path, footage: Path, *, rate: int, live: bool, seed: int) -> None:
        self.folder, self.tally = folder, Tally()
        self._random, self._rate, self._is_live = random.Random(seed), rate, live
        folder.mkdir(parents=True)
        self._footage, self._models = footage, models

    def run(self, is_over: Callable[[Tally], bool], pictures: Sequence[bytes]) -> None:
        with stage.s3_stand_in(self.folder / "s3") as direct:
            port = int(direct["AWS_ENDPOINT_URL_S3"].rpartition(":")[2])
            with FaultyProxy(port) as proxy:
                proxy.rate_bytes_per_s, proxy.delay_s = self._rate, 0.03
                env = environment(proxy.url) | own_camera(self.folder / "bin")
                env |= stage.camera_environment(self._footage, self.folder / "camera.jsonl")
                constants = CONSTANTS | {"LIVE_UPLOAD": self._is_live}
                daemon = Daemon(self.folder, self._models, env=env, arguments=("-v",), **constants)
                try:
                    while not is_over(self.tally):
                        self._steal(daemon, pictures)
                except AssertionError as error:
                    self.tally.wrong.append(f"{self.folder.name}: {error}")
                finally:
                    daemon.kill()

    def _steal(self, daemon: Daemon, pictures: Sequence[bytes]) -> None:
        log_start, sent_start = len(daemon.log), len(stage.camera_log(self.folder / "camera.jsonl"))
        daemon.start()
        process = daemon.process
        assert process is not None
        daemon.wait_until(lambda: " event " in daemon.log[log_start:], "no event", timeout_s=GIVE_UP_S)
        time.sleep(self._random.uniform(0, 2 * EVENT_S))
        peak_mb = stage.usage(process.pid).peak_mb
        assert process.poll() is None, daemon.log[-3000:]
        at_s, at_wall_s = time.monotonic(), time.time()
        process.kill()
        process.wait()
        for name in ("images", "videos"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        time.sleep(SETTLE_S)
        log = daemon.log[log_start:]
        self._note_run(log, peak_mb)
        event_ids = re.findall(r" event (\d+): \d+ person", log)
        if self._is_live and event_ids and "recording stopped" not in log.rpartition(" event ")[2]:
            sent = stage.camera_log(self.folder / "camera.jsonl")[sent_start:]
            self._judge(int(event_ids[-1]), log, at_s, at_wall_s, sent, pictures)

    def _note_run(self, log: str, peak_mb: float) -> None:
        numbers = [int(number) for number in re.findall(r"frame (\d+)(?: \(crop\))?: \d+ person", log)]
        self.tally.inferences += len(numbers)
        self.tally.frames += numbers[-1] - numbers[0] + 1 if numbers else 0
        self.tally.alert_latencies_s += [
            float(each) for each in re.findall(r"image .*, ([\d.]+) s after its frame", log)
        ]
        self.tally.peaks_mb.append(peak_mb)

    # What S3 holds

    def _judge(
        self,
        event_id: int,
        log: str,
        at_s: float,
        at_wall_s: float,
        sent: list[dict[str, Any]],
        pictures: Sequence[bytes],
    ) -> None:
        parts = [path for path in self._objects(VIDEOS, event_id) if path.suffix == ".part"]
        singles = [path for path in self._objects(VIDEOS, event_id) if path.parent.parent.name == "live"]
        ages_s = [at_wall_s - self._taken_wall_s(path, event_id, log) for path in singles if path.suffix == ".jpg"]
        ages_s += [at_wall_s - event_id for _ in self._objects(IMAGES, event_id)]
        video_s = None
        if parts and (shown := self._joined(event_id, parts, pictures)):
            last = _sent_last(shown, sent, event_id)
            video_s = at_s - last["monotonic_s"] if last else None
            if video_s is None or video_s < 0:
                self.tally.wrong.append(f"event {event_id}: its last picture was not sent before the kill")
        views_s = [*ages_s, *([] if video_s is None else [video_s])]
        newest_s = min(views_s) if views_s else at_wall_s - event_id + 1
        self.tally.thefts.append(Theft(at_wall_s - event_id, newest_s, video_s, len(ages_s)))

    def _objects(self, bucket: str, event_id: int) -> list[Path]:
        found = []
        for about in sorted((self.folder / "s3" / bucket).rglob("*.metadata.json")):
            if json.loads(about.read_text())["metadata"]["recording_start_time"] == str(event_id):
                found.append(about.with_name(about.name.removesuffix(".metadata.json")))
        return found

    def _taken_wall_s(self, picture: Path, event_id: int, log: str) -> float:
        """The daemon logs how long the upload took; where the kill came before that line, as long as the link takes."""
        stored = picture.stat()
        logged = re.search(rf"live: {picture.name} of event {event_id}, \d+ kB in ([\d.]+) s", log)
        return stored.st_mtime - (float(logged[1]) if logged else stored.st_size / self._rate + 0.2)

    def _joined(self, event_id: int, parts: list[Path], pictures: Sequence[bytes]) -> list[int]:
        """Which of the footage's pictures the joined parts show, each of them decoded."""
        numbers = [int(part.stem) for part in parts]
        if numbers != list(range(len(parts))):
            self.tally.wrong.append(f"event {event_id}: the parts are {numbers}")
        path = self.folder / "joined.mp4"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        try:
            shown, decoded = _shown_and_decoded(path, pictures)
        except av.error.FFmpegError:
            return []  # no whole picture yet
        if decoded < len(shown) or {(b - a) % len(pictures) for a, b in itertools.pairwise(shown)} - {1}:
            self.tally.wrong.append(f"event {event_id}: {decoded} pictures decoded, these are shown: {shown}")
        return shown


def _shown_and_decoded(path: Path, pictures: Sequence[bytes]) -> tuple[list[int], int]:
    """Up to the first packet that the end of the last part cuts."""
    shown: list[int] = []
    decoded = 0
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        try:
            for packet in container.demux(video=0):
                if packet.dts is not None:
                    shown.append(pictures.index(slices_of(split_mp4(bytes(packet)))))
                    decoded += len(context.decode(packet))
        except (ValueError, IndexError, av.error.FFmpegError):
            pass
        decoded += len(context.decode(None))
    return shown, decoded


def _sent_last(shown: list[int], sent: list[dict[str, Any]], event_id: int) -> dict[str, Any] | None:
    """The camera's log of the last picture. The first one was sent about PRE_ROLL_S before the event."""
    starts = [place for place, entry in enumerate(sent) if entry["source_s"] == shown[0]]
    if not starts:
        return None
    start = min(starts, key=lambda place: abs(sent[place]["wall_s"] - (event_id - 2.5)))
    place = start + len(shown) - 1
    return sent[place] if place < len(sent) and sent[place]["source_s"] == shown[-1] else None


def steal_often(
    folder: Path, models: Path, *, kills: int, seed: int, at_most_s: float
) -> dict[tuple[str, bool], Tally]:
    """By speed of the uplink and LIVE_UPLOAD."""
    units = list(offline.encode(stage.Scene(stage.people), frame_rate_fps=FRAME_RATE_FPS, seconds=PERIOD_S))
    pictures = [slices_of(split_annex_b(unit)) for unit in units]
    assert len(set(pictures)) == len(pictures), "the footage has two equal pictures"
    footage = folder / "footage.h264"
    footage.write_bytes(b"".join(units))
    each, give_up_s = -(-kills // len(UPLINKS)), time.monotonic() + at_most_s
    lanes, running, others = {}, [], []
    for number, (name, rate) in enumerate(UPLINKS.items()):
        for live in (True, False):
            made = Lane(
                folder / f"{rate}-{live}", models, footage, rate=rate, live=live, seed=1000 * seed + 2 * number + live
            )
            lanes[name, live] = made
    for (_, live), lane in lanes.items():
        is_over: Callable[[Tally], bool] = (
            (lambda tally: len(tally.thefts) >= each or bool(tally.wrong) or time.monotonic() > give_up_s)
            if live
            else (lambda _: not any(thread.is_alive() for thread in running))
        )
        thread = threading.Thread(target=lane.run, args=(is_over, pictures))
        (running if live else others).append(thread)
    for thread in [*running, *others]:
        thread.start()
    for thread in [*running, *others]:
        thread.join()
    return {key: lane.tally for key, lane in lanes.items()}


def _share(values: Sequence[float], limit: float) -> str:
    return f"{100 * sum(value <= limit for value in values) / len(values):.0f} %" if values else ""


def _figures(values: Sequence[float]) -> list[str]:
    return [f"{percentile(values, share):.1f} s" for share in (0.5, 0.99)] if values else ["", ""]


def report(tallies: dict[tuple[str, bool], Tally]) -> list[str]:
    thefts, costs, wrong = [], [], []
    for (name, live), tally in tallies.items():
        wrong += tally.wrong
        if live:
            views = [theft.newest_view_s for theft in tally.thefts]
            videos = [theft.video_s for theft in tally.thefts if theft.video_s is not None]
            none_yet = str(len(views) - len(videos))
            row = [name, str(len(views)), *_figures(views), _share(views, 4), _share(views, 6)]
            thefts.append([*row, *_figures(videos), none_yet])
        latencies = tally.alert_latencies_s
        peak = f"{percentile(tally.peaks_mb, 0.5):.0f} MiB" if tally.peaks_mb else ""
        looked = f"{100 * tally.inferences / tally.frames:.1f} %" if tally.frames else ""
        costs.append([name, "yes" if live else "no", str(len(latencies)), *_figures(latencies), looked, peak])
    return [
        *table(
            (
                "uplink",
                "kills in events",
                "newest view before the kill: median",
                "p99",
                "within 4 s",
                "within 6 s",
                "video alone: median",
                "p99",
                "no video yet",
            ),
            thefts,
        ),
        "",
        *table(
            (
                "uplink",
                "LIVE_UPLOAD",
                "alerts",
                "frame to image in S3: median",
                "p99",
                "frames looked at",
                "peak memory, median",
            ),
            costs,
        ),
        "",
        *(wrong or ["All joined parts decoded, picture by picture as the camera sent them."]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in events, of all speeds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-most-s", type=float, default=1e9, help="no further kill after so long")
    parser.add_argument("--quick", action="store_true", help="2 kills at each speed")
    options = parser.parse_args()
    kills = 2 * len(UPLINKS) if options.quick else options.kills
    busy = busy_share()
    with tempfile.TemporaryDirectory(prefix="theft-") as name:
        models = install_models(Path(name) / "models")
        find_graph(WEIGHTS, models)
        tallies = steal_often(Path(name), models, kills=kills, seed=options.seed, at_most_s=options.at_most_s)
    head = f"{100 * busy:.0f} % of the machine was busy with other things before; {machine()}"
    newest = {name: [theft.newest_view_s for theft in tally.thefts] for (name, live), tally in tallies.items() if live}
    lines = ["## A thief takes the camera", "", head, "", *report(tallies)]
    write_section("theft", lines, busy=busy, newest_view_s=newest)
    return 1 if any(tally.wrong for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
