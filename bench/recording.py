"""Recording: the camera's packets copied into MP4, against cv2.VideoWriter encoding the decoded frames again.

    python -m bench.recording [--rounds N]

Twenty seconds of the demo scene at 640x480 and 10 fps. The two take turns in one process; CPU time of all its threads.
VideoWriter needs decoded pictures, a copy does not; the table has it with and without that decoding, which the original
does for its detector anyway.
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


def decode_and_encode_again(path: Path, clip: list[AccessUnit]) -> None:
    decoder = Decoder()
    found = (decoder.decode(decoder.plan(-1, [unit], None), -1) for unit in clip)
    encode_again(path, [frame.bgr for frame in found if frame])


def cpu_ms(job, path: Path, material: list) -> float:
    started_s = time.process_time()
    job(path, material)
    return (time.process_time() - started_s) * 1000


def contender(name: str, times_ms: list[float], ours_ms: list[float], frames: int, size_kb: float) -> list[str]:
    ratios = [theirs / ours for theirs, ours in zip(times_ms, ours_ms, strict=True)]
    a_frame_ms = statistics.median(times_ms) / frames
    return [name, spread(times_ms, 1), f"{a_frame_ms:.3f}", f"**{spread(ratios, 0)}**", f"{size_kb:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    clip = units()
    frames = [frame.bgr for frame in offline.frames(offline.SCENE, frame_rate_fps=RATE_FPS)][: len(clip)]
    jobs = {
        "packets copied (this daemon)": (copy, clip),
        "cv2.VideoWriter, mp4v": (encode_again, frames),
        "the same with decoding": (decode_and_encode_again, clip),
    }
    times_ms: dict[str, list[float]] = {name: [] for name in jobs}
    sizes_kb: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "clip.mp4"
        for index in range(options.rounds + 1):
            for name, (job, material) in jobs.items():
                path.unlink(missing_ok=True)  # each clip is a new file
                took_ms = cpu_ms(job, path, material)
                sizes_kb[name] = path.stat().st_size / 1000
                if index:  # the first one warms up
                    times_ms[name].append(took_ms)
    ours_ms = times_ms["packets copied (this daemon)"]
    rows = [contender(name, times_ms[name], ours_ms, len(clip), sizes_kb[name]) for name in jobs]
    lines = [
        f"{len(clip)} frames at {RATE_FPS} fps; CPU of all threads, {options.rounds} rounds in turn.",
        "",
        *table(["", "CPU ms a clip", "CPU ms a frame", "times as much", "file, kB"], rows),
    ]
    write_section("recording", lines)


if __name__ == "__main__":
    main()
