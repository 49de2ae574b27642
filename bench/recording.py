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

import cv2

import detect_and_upload as script
from bench import offline
from bench.report import spread, table, write_section
from guardianberry.h264 import AccessUnit, Decoder, Splitter
from guardianberry.mp4 import Mp4Writer

SECONDS, RATE_FPS = 20, 10
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


def compare(video: Path, rounds: int) -> list[list[str]]:
    """A row of the table for each way to record `video`."""
    clip = units(video)
    jobs = {
        "packets copied (this daemon)": (copy, clip),
        "cv2.VideoWriter, mp4v": (encode_again, decoded(clip)),
        "the same with decoding": (decode_and_encode_again, clip),
    }
    times_ms: dict[str, list[float]] = {name: [] for name in jobs}
    sizes_kb: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "clip.mp4"
        for index in range(rounds + 1):
            for name, (job, material) in jobs.items():
                path.unlink(missing_ok=True)  # each clip is a new file
                took_ms = cpu_ms(job, path, material)
                sizes_kb[name] = path.stat().st_size / 1000
                if index:  # the first one warms up
                    times_ms[name].append(took_ms)
    ours_ms, *_ = times_ms.values()
    rows = []
    for name, took_ms in times_ms.items():
        ratios = [theirs / ours for theirs, ours in zip(took_ms, ours_ms, strict=True)]
        a_frame_ms, size_kb = statistics.median(took_ms) / len(clip), sizes_kb[name]
        figures = [spread(took_ms, 1), f"{a_frame_ms:.3f}", f"**{spread(ratios, 0)}**", f"{size_kb:.0f}"]
        rows.append([video.name, name, *figures])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    videos = [offline.SCENE, *sorted(offline.CLIPS.glob("*CCTV*.mp4"))]
    rows = [row for video in videos for row in compare(video, options.rounds)]
    lines = [
        f"{SECONDS} s at {RATE_FPS} fps; CPU of all threads, {options.rounds} rounds in turn.",
        "",
        *table(["video", "how", "CPU ms a clip", "CPU ms a frame", "times as much", "file, kB"], rows),
    ]
    write_section("recording", lines)


if __name__ == "__main__":
    main()
