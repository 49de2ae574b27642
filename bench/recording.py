"""Recording: the camera's packets copied into MP4, against cv2.VideoWriter encoding the decoded frames again.

    python -m bench.recording [--rounds N]

Twenty seconds of the demo scene at 640x480 and 10 fps. The two take turns in one process; CPU time of all its threads.
Decoding is not charged to VideoWriter, because the original decodes for its detector anyway.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2

import detect_and_upload as script
from bench import offline
from bench.report import spread, table, write_section
from guardianberry.h264 import AccessUnit, Splitter
from guardianberry.mp4 import Mp4Writer

SECONDS, RATE_FPS = 20, 10
SIZE_PX = (script.FRAME_WIDTH_PX, script.FRAME_HEIGHT_PX)


def units() -> list[AccessUnit]:
    splitter, found = Splitter(), []
    for number, data in enumerate(offline.encode(offline.SCENE, frame_rate_fps=RATE_FPS, seconds=SECONDS)):
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


def cpu_ms(job, path: Path, material: list) -> float:
    started_s = time.process_time()
    job(path, material)
    return (time.process_time() - started_s) * 1000


def contender(name: str, times_ms: list[float], frames: int, size_kb: float) -> list[str]:
    return [name, spread(times_ms, 1), f"{statistics.median(times_ms) / frames:.3f}", f"{size_kb:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    clip = units()
    frames = [frame.bgr for frame in offline.frames(offline.SCENE, frame_rate_fps=RATE_FPS)][: len(clip)]
    copies, encodings = [], []
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = Path(temporary) / "copy.mp4", Path(temporary) / "again.mp4"
        for index in range(options.rounds + 1):
            pair = cpu_ms(copy, ours, clip), cpu_ms(encode_again, theirs, frames)
            if index:  # the first one warms up
                copies.append(pair[0])
                encodings.append(pair[1])
        sizes_kb = [path.stat().st_size / 1000 for path in (ours, theirs)]
    ratios = [b / a for a, b in zip(copies, encodings, strict=True)]
    lines = [
        f"{len(clip)} frames at {RATE_FPS} fps; CPU of all threads, {options.rounds} rounds in turn.",
        "",
        *table(
            ["", "CPU ms a clip", "CPU ms a frame", "file, kB"],
            [
                contender("packets copied (this daemon)", copies, len(clip), sizes_kb[0]),
                contender("cv2.VideoWriter, mp4v", encodings, len(clip), sizes_kb[1]),
            ],
        ),
        "",
        f"Copying is **{spread(ratios, 0)} times** cheaper.",
    ]
    write_section("recording", lines)


if __name__ == "__main__":
    main()
