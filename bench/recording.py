"""Recording: the camera's packets copied into MP4, against cv2.VideoWriter encoding the decoded frames again.

    python -m bench.recording [--rounds N]

Twenty seconds at 640x480, 10 fps and the default bit rate: the demo scene, and real CCTV where ../shared/clips is at
hand. The two take turns in one process; CPU time of all its threads. VideoWriter needs decoded pictures, a copy does
not; the table has it with and without that decoding, which the original does for its detector anyway.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2

import detect_and_upload as script
from bench import offline
from bench.report import spread, table, write_section
from guardianberry.camera.decoder import Decoder
from guardianberry.camera.h264 import AccessUnit, Splitter
from guardianberry.recording.mp4 import Mp4Writer

SECONDS, RATE_FPS = 20, 10
OURS = "packets copied (this daemon)"
SIZE_PX = (script.FRAME_WIDTH_PX, script.FRAME_HEIGHT_PX)


def units(video: Path) -> list[AccessUnit]:
    splitter, found = Splitter(), []
    for number, data in enumerate(offline.encode(video, frame_rate_fps=RATE_FPS, seconds=SECONDS)):
        found += splitter.feed(data, number / RATE_FPS)
    return found


def copy(path: Path, clip: list[AccessUnit]) -> None:
    writer = Mp4Writer(path, width=SIZE_PX[0], height=SIZE_PX[1], frame_rate_fps=RATE_FPS)
    for unit in clip:
        writer.write(unit)
    writer.close()


def encode_again(path: Path, frames: list) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE_FPS, SIZE_PX)
    for frame in frames:
        writer.write(frame)
    writer.release()


def decoded(clip: list[AccessUnit]) -> list:
    decoder = Decoder()
    found = (decoder.decode(decoder.plan(-1, [unit], None), -1) for unit in clip)
    return [frame.bgr for frame in found if frame]


def decode_and_encode_again(path: Path, clip: list[AccessUnit]) -> None:
    encode_again(path, decoded(clip))


def cpu_ms(job, path: Path, material: list) -> float:
    started_s = time.process_time()
    job(path, material)
    return (time.process_time() - started_s) * 1000


class Contest(NamedTuple):
    """What the ways to record one video took: milliseconds of CPU a clip by round, and the size of the file."""

    frames: int
    times_ms: dict[str, list[float]]
    sizes_kb: dict[str, float]

    def ratios(self, name: str) -> list[float]:
        return [theirs / ours for theirs, ours in zip(self.times_ms[name], self.times_ms[OURS], strict=True)]

    def row(self, name: str) -> list[str]:
        took_ms = self.times_ms[name]
        a_frame_ms = statistics.median(took_ms) / self.frames
        times_as_much = f"**{spread(self.ratios(name), 0)}**"
        return [name, spread(took_ms, 1), f"{a_frame_ms:.3f}", times_as_much, f"{self.sizes_kb[name]:.0f}"]


def compare(video: Path, rounds: int) -> Contest:
    clip = units(video)
    jobs = {
        OURS: (copy, clip),
        "cv2.VideoWriter, mp4v": (encode_again, decoded(clip)),
        "cv2.VideoWriter, mp4v, with decoding": (decode_and_encode_again, clip),
    }
    contest = Contest(len(clip), {name: [] for name in jobs}, {})
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "clip.mp4"
        for index in range(rounds + 1):
            for name, (job, material) in jobs.items():
                path.unlink(missing_ok=True)  # each clip is a new file
                took_ms = cpu_ms(job, path, material)
                contest.sizes_kb[name] = path.stat().st_size / 1000
                if index:  # the first one warms up
                    contest.times_ms[name].append(took_ms)
    return contest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    videos = [offline.SCENE, *sorted(offline.CLIPS.glob("*CCTV*.mp4"))]
    contests = {video.name: compare(video, options.rounds) for video in videos}
    rows = [[video, *contest.row(name)] for video, contest in contests.items() for name in contest.times_ms]
    lines = [
        f"{SECONDS} s at {RATE_FPS} fps; CPU of all threads, {options.rounds} rounds in turn.",
        "",
        *table(["video", "how", "CPU ms a clip", "CPU ms a frame", "times as much", "file, kB"], rows),
    ]
    ratios = {
        video: {name: statistics.median(contest.ratios(name)) for name in contest.times_ms if name != OURS}
        for video, contest in contests.items()
    }
    write_section("recording", lines, ratios=ratios)


if __name__ == "__main__":
    main()
