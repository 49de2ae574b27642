"""Runs the real daemon for hours on looping footage against an S3 server that fails now and then.

    python -m bench.endurance [--minutes 120] [--seed 1]

Memory, threads and open files of the daemon are sampled all the time; at the end every visit of a person in the footage
must have its event, and every event its image and its clip in the bucket, once. tests/test_endurance.py is a short one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import av
import psutil

from bench.footage import FRAME_RATE_FPS, own_camera
from bench.offline import SCENE, encode
from bench.report import machine, percentile, table, write_section
from tests.daemon import Daemon, install_models
from tests.faulty_proxy import Answer, FaultyProxy
from tests.h264 import decode
from tests.s3_server import S3Server, environment

FOOTAGE_FRAMES = 300
VISITS = (53, 216)  # frames of scene.mp4 in which a person comes into view
SLACK_S = 2.0  # between a visit's first frame and its event: the person is half in the picture; event ids are rounded
CONSTANTS = {
    "MAX_RECORDING_DURATION_S": 10,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 10,
    "CLOCK_WAIT_S": 0,
    "FRAME_RATE_FPS": FRAME_RATE_FPS,
}
WARM_UP_S = 15 * 60.0
SHORTEST_SLOPE_S = 10 * 60.0
FLAT_MB_PER_H = 5.0
DRAIN_S = 180.0
FAULTS: dict[str, dict[str, object]] = {
    "503 SlowDown": {"answer": Answer(503, "SlowDown")},
    "500": {"answer": Answer(500, "InternalError")},
    "403 ExpiredToken": {"answer": Answer(403, "ExpiredToken")},
    "no answer": {"silent": True},
    "cut in the middle": {"cut_after_bytes": 20_000},
    "stalls in the middle": {"stall_after_bytes": 20_000},
    "replies lost": {"replies_to_lose": 2},
    "slow": {"rate_bytes_per_s": 40_000.0},
}
WELL = {
    "answer": None,
    "silent": False,
    "cut_after_bytes": None,
    "stall_after_bytes": None,
    "replies_to_lose": 0,
    "rate_bytes_per_s": None,
}


@dataclasses.dataclass(frozen=True)
class Sample:
    at_s: float  # since the first picture
    resident_mb: float
    threads: int
    files: int


@dataclasses.dataclass
class Report:
    """What was seen; `wrong` holds a line for whatever should not be."""

    duration_s: float = 0.0
    samples: list[Sample] = dataclasses.field(default_factory=list)
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    expected: int = 0
    events: int = 0
    clips: int = 0
    cpu_share: float = 0.0  # of one CPU
    wrong: list[str] = dataclasses.field(default_factory=list)

    def slope_mb_per_h(self, warm_up_s: float) -> float | None:
        """By least squares over the samples after the warm-up; None where they tell nothing about an hour."""
        settled = [sample for sample in self.samples if sample.at_s >= warm_up_s]
        if self.duration_s - warm_up_s < SHORTEST_SLOPE_S:
            return None
        return (
            3600
            * statistics.linear_regression(
                [sample.at_s for sample in settled], [sample.resident_mb for sample in settled]
            ).slope
        )

    def at_rest(self, field: str) -> tuple[int, int]:
        """What at least nine of ten samples reach, in the first and in the last third: uploads go, a leak stays."""
        third = len(self.samples) // 3
        parts = self.samples[:third], self.samples[-third:]
        first, last = (round(percentile([getattr(sample, field) for sample in part], 0.1)) for part in parts)
        return first, last

    def peaks(self, field: str) -> tuple[int, int]:
        half = len(self.samples) // 2
        parts = self.samples[:half], self.samples[half:]
        first, last = (max(getattr(sample, field) for sample in part) for part in parts)
        return first, last

    def lines(self, warm_up_s: float = WARM_UP_S) -> list[str]:
        slope = self.slope_mb_per_h(warm_up_s)
        settled = [sample.resident_mb for sample in self.samples if sample.at_s >= warm_up_s] or [0.0]
        told = "" if slope is None else f"{slope:+.2f} MB/h, "
        rows = [
            ("duration", f"{self.duration_s / 60:.0f} min"),
            (f"memory after {warm_up_s / 60:.1f} min", f"{told}{min(settled):.1f} to {max(settled):.1f} MB"),
            ("memory at the end", f"{self.samples[-1].resident_mb:.1f} MB"),
            ("threads at rest, first and last third", "{} and {}".format(*self.at_rest("threads"))),
            ("threads at most, first and second half", "{} and {}".format(*self.peaks("threads"))),
            ("open files at rest, first and last third", "{} and {}".format(*self.at_rest("files"))),
            ("open files at most, first and second half", "{} and {}".format(*self.peaks("files"))),
            ("CPU, share of one core", f"{self.cpu_share:.0%}"),
            ("faults of S3", ", ".join(f"{name} {count}" for name, count in self.faults.most_common()) or "none"),
            ("visits in the footage", str(self.expected)),
            ("events", str(self.events)),
            ("clips in the bucket, all decoded", str(self.clips)),
            ("missed, doubled, damaged or left behind", str(len(self.wrong))),
        ]
        return [*table(("", ""), rows), "", *self.wrong]


class Endurance:
    """One long run in `folder`."""

    def __init__(self, folder: Path, models: Path, s3: S3Server, *, seed: int, **constants: object) -> None:
        self.folder = folder
        self.report = Report()
        self._s3 = s3
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._buckets = {"IMAGES_BUCKET": "images-endurance", "VIDEOS_BUCKET": "videos-endurance"}
        s3.create_bucket(*self._buckets.values())
        self._proxy = FaultyProxy(s3.port)
        footage = folder / "footage.h264"
        footage.write_bytes(b"".join(itertools.islice(encode(SCENE, frame_rate_fps=FRAME_RATE_FPS), FOOTAGE_FRAMES)))
        self._control = folder / "control"
        env = environment(self._proxy.url) | own_camera(folder / "bin")
        env |= {"STAND_IN_H264": str(footage), "STAND_IN_LOG": str(folder / "camera.jsonl")}
        env |= {"STAND_IN_CONTROL": str(self._control)}
        self._daemon = Daemon(folder, models, env=env, **(CONSTANTS | constants), **self._buckets)

    def run(self, duration_s: float, *, sample_every_s: float, quiet_s: tuple[float, float]) -> Report:
        """`quiet_s`: the shortest and the longest time between two faults of S3."""
        trouble = threading.Thread(target=self._make_trouble, args=quiet_s)
        with self._daemon as daemon:
            daemon.wait_for_log("camera: video from", timeout_s=120)
            trouble.start()
            try:
                self._sample(duration_s, sample_every_s)
            finally:
                self._over.set()
                trouble.join()
            self._drain()
            code, _ = daemon.terminate()
        self._proxy.close()
        if code:
            self.report.wrong.append(f"the daemon ended with {code}")
        self._judge()
        return self.report

    def _sample(self, duration_s: float, every_s: float) -> None:
        process = psutil.Process(self._daemon.process.pid)
        began_s, cpu_before = time.monotonic(), sum(process.cpu_times()[:2])
        while (at_s := time.monotonic() - began_s) < duration_s:
            with process.oneshot():
                resident_mb = process.memory_info().rss / 2**20
                self.report.samples.append(Sample(at_s, resident_mb, process.num_threads(), process.num_fds()))
            time.sleep(every_s)
        self.report.duration_s = at_s
        self.report.cpu_share = (sum(process.cpu_times()[:2]) - cpu_before) / at_s

    def _make_trouble(self, shortest_quiet_s: float, longest_quiet_s: float) -> None:
        while not self._over.wait(self._random.uniform(shortest_quiet_s, longest_quiet_s)):
            name = self._random.choice(list(FAULTS))
            self.report.faults[name] += 1
            self._set(FAULTS[name])
            self._over.wait(self._random.uniform(shortest_quiet_s / 2, longest_quiet_s / 2))
            self._set(WELL)

    def _set(self, attributes: dict[str, object]) -> None:
        for name, value in attributes.items():
            setattr(self._proxy, name, value)

    def _drain(self) -> None:
        """No camera any more, S3 well: until everything is uploaded."""
        self._control.write_text("dies,no-camera")
        try:
            self._daemon.wait_until(
                lambda: "no camera" in self._daemon.log and not self._daemon.pending(),
                "still waiting for their upload",
                timeout_s=DRAIN_S,
            )
        except AssertionError as error:
            self.report.wrong.append(f"{error}"[:2000])

    def _judge(self) -> None:
        wrong = self.report.wrong
        wrong += [f"left behind: {name}" for name in self._daemon.pending()]
        event_ids = [int(event_id) for event_id in re.findall(r"event (\d+):", self._daemon.log)]
        images, clips = (
            Counter(
                int(stored.metadata["recording_start_time"]) for stored in self._s3.objects(bucket, with_body=False)
            )
            for bucket in (self._buckets["IMAGES_BUCKET"], self._buckets["VIDEOS_BUCKET"])
        )
        wrong += [
            f"{images[n]} images, {clips[n]} clips of event {n}" for n in event_ids if (images[n], clips[n]) != (1, 1)
        ]
        wrong += [
            f"objects of no event: {sorted(strange)}" for strange in [(images + clips).keys() - event_ids] if strange
        ]
        self.report.events, self.report.clips = len(event_ids), sum(clips.values())
        self._judge_visits(event_ids)
        self._judge_clips()
        wrong += [f"more {field} at rest at the end" for field in ("threads", "files") if self._grew(field)]
        if "relaunch" in self._daemon.log:
            wrong.append("the camera was started again")

    def _grew(self, field: str) -> bool:
        first, last = self.report.at_rest(field)
        return last > first

    def _judge_visits(self, event_ids: Sequence[int]) -> None:
        """Each visit must have its event; those that began within the last seconds may."""
        lines = (self.folder / "camera.jsonl").read_text(encoding="utf-8").splitlines()
        sent = [entry for entry in map(json.loads, lines) if "number" in entry]
        left = list(event_ids)
        for entry in sent:
            if entry["source_s"] not in VISITS:
                continue
            own = [event_id for event_id in left if -SLACK_S <= event_id - entry["wall_s"] <= SLACK_S]
            left = [event_id for event_id in left if event_id not in own]
            is_complete = sent[-1]["wall_s"] - entry["wall_s"] > SLACK_S
            self.report.expected += is_complete or bool(own)
            if is_complete and len(own) != 1:
                self.report.wrong.append(f"{len(own)} events of the visit at {entry['wall_s']:.0f}")
        self.report.wrong += [f"event {event_id} without a visit" for event_id in left]

    def _judge_clips(self) -> None:
        client, bucket = self._s3.client(), self._buckets["VIDEOS_BUCKET"]
        path = self.folder / "clip.mp4"
        for key in sorted(key for key in self._s3.keys(bucket) if key.endswith(".mp4")):
            path.write_bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
            try:
                decode(path)
            except (OSError, av.error.FFmpegError) as error:
                self.report.wrong.append(f"clip {key} does not decode: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="endurance-") as name, S3Server() as s3:
        folder = Path(name)
        models = install_models(folder / "models-of-all")
        endurance = Endurance(folder, models, s3, seed=options.seed)
        report = endurance.run(options.minutes * 60, sample_every_s=10, quiet_s=(30, 120))
    slope = report.slope_mb_per_h(WARM_UP_S)
    if slope is not None and slope > FLAT_MB_PER_H:
        report.wrong.append(f"memory grows by {slope:.1f} MB/h")
    samples = [dataclasses.astuple(sample) for sample in report.samples]
    write_section("endurance", ["## Endurance", "", machine(), "", *report.lines()], samples=samples)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
