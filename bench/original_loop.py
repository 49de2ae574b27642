"""What this program has to be better than: a stand-in for the original's loop, as its behaviour is described.

One thread does everything in turn: cv2.VideoCapture on the camera's TCP stream, the torch network on every frame,
cv2.VideoWriter (mp4v) while a person is there, and the uploads, during which no frame is read. Written for this bench
alone, after a description of what the original does; none of its code is here.

    python original_loop.py STREAM_URL CHECKPOINT FOLDER MIN_GAP_S MAX_RECORDING_S
"""

from __future__ import annotations

import signal
import sys
import time
import uuid
from pathlib import Path

import boto3
import cv2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.torch_eager import TorchEager

FRAME_RATE_FPS = 10


class Recording:
    def __init__(self, folder: Path, frame, people) -> None:
        self.started_s = time.time()
        height_px, width_px = frame.shape[:2]
        self.image = folder / f"{int(self.started_s)}.jpg"
        self.video = folder / f"{int(self.started_s)}.mp4"
        picture = frame.copy()
        for person in people:
            x1, y1, x2, y2 = (round(value) for value in person[:4])
            cv2.rectangle(picture, (x1, y1), (x2, y2), (0, 0, 255), 2)
        cv2.imwrite(str(self.image), picture)
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self.writer = cv2.VideoWriter(str(self.video), codec, FRAME_RATE_FPS, (width_px, height_px))

    def is_over(self, people, max_recording_s: float) -> bool:
        return not people or time.time() - self.started_s >= max_recording_s


def open_stream(url: str) -> cv2.VideoCapture:
    for _ in range(300):
        capture = cv2.VideoCapture(url)
        if capture.isOpened():
            return capture
        time.sleep(0.1)
    raise SystemExit(f"no stream at {url}")


def upload(s3, path: Path, bucket: str) -> None:
    s3.upload_file(str(path), bucket, f"{uuid.uuid4()}{path.suffix}")
    path.unlink()


def main() -> None:
    url, checkpoint, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    min_gap_s, max_recording_s = float(sys.argv[4]), float(sys.argv[5])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    network = TorchEager(checkpoint, conf_thres=0.255, iou_thres=0.45, max_det=1000, threads=0)
    s3 = boto3.client("s3")
    capture = open_stream(url)
    recording, last_start_s, frames = None, 0.0, 0
    while True:
        got_one, frame = capture.read()
        if not got_one:
            break
        people = network.find_people(frame)
        frames += 1
        (folder / "frames").write_text(str(frames))
        if recording is None and people and time.time() - last_start_s >= min_gap_s:
            recording = Recording(folder, frame, people)
            last_start_s = recording.started_s
            upload(s3, recording.image, "guardianberry.images")
        if recording is not None:
            recording.writer.write(frame)
            if recording.is_over(people, max_recording_s):
                recording.writer.release()
                upload(s3, recording.video, "guardianberry.videos")
                recording = None


if __name__ == "__main__":
    main()
