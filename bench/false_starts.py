"""What DETECTIONS_TO_START does: false starts and missed people on the CCTV clips, for several settings.

Plays every clip of ../shared/clips (or the videos given) through the detector at 10 frames/s, without a camera, and
feeds the looks to the recorder with a gap of 0, so that every start counts. Prints a Markdown table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import detect_and_upload as script  # noqa: E402 (needs the path above)
from guardianberry.detector import Detector  # noqa: E402
from guardianberry.recorder import Look, Recorder, Start  # noqa: E402
from guardianberry.weights import find_graph  # noqa: E402

SETTINGS = ((1, 1), (2, 3), (3, 4), (4, 5))
# Seconds with people, read by eye to half a second; clips that are not listed have none.
PEOPLE_S = {
    "anubhavm55_CCTV.mp4": ((4.6, 7.8), (9.0, 12.3)),
    "glenn_burglar.mp4": ((0, 5.8), (8.3, 11.8), (13.0, 14.8), (16.3, 20.7)),
}
SLACK_S = 1.0


def looks(detector: Detector, path: Path) -> list[Look]:
    found, next_s = [], 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time is None or frame.time < next_s:
                continue
            next_s += 1 / script.FRAME_RATE_FPS
            people = detector.find_people(as_the_camera_shows_it(frame))
            found.append(Look(frame.time, [person.confidence for person in people]))
    return found


def as_the_camera_shows_it(frame: av.VideoFrame) -> np.ndarray:
    """At the camera's size, with black bars where the clip has another shape, like the stand-in camera."""
    width, height = script.FRAME_WIDTH_PX, script.FRAME_HEIGHT_PX
    scale = min(width / frame.width, height / frame.height)
    inner_width, inner_height = (round(side * scale / 2) * 2 for side in (frame.width, frame.height))
    picture = np.zeros((height, width, 3), np.uint8)
    x, y = (width - inner_width) // 2, (height - inner_height) // 2
    picture[y : y + inner_height, x : x + inner_width] = frame.reformat(inner_width, inner_height).to_ndarray(
        format="bgr24"
    )
    return picture


def starts(seen: list[Look], needed: int, window: int) -> list[float]:
    recorder = Recorder(
        max_recording_duration_s=script.MAX_RECORDING_DURATION_S,
        min_gap_between_video_start_s=0,
        person_gone_after_s=script.PERSON_GONE_AFTER_S,
        detections_to_start=needed,
        detection_window_looks=window,
    )
    actions = [(look.time_s, recorder.step(look, clip_start_s=look.time_s)) for look in seen]
    return [time_s for time_s, action in actions if isinstance(action, Start)]


def main() -> None:
    clips = [Path(name) for name in sys.argv[1:]] or sorted((ROOT.parent / "shared" / "clips").glob("*.mp4"))
    detector = Detector(
        find_graph(script.WEIGHTS, ROOT / "models"),
        frame_width_px=640,
        frame_height_px=480,
        input_width_px=script.DETECTOR_INPUT_WIDTH_PX,
        conf_thres=script.CONF_THRES,
        iou_thres=script.IOU_THRES,
        max_det=script.MAX_DET,
    )
    print(f"model {detector.model_name}, conf {script.CONF_THRES}\n")
    print("| clip | looks with a person | " + " | ".join(f"{n} of {w}" for n, w in SETTINGS) + " |")
    print("|---|---|" + "---|" * len(SETTINGS))
    for path in clips:
        seen = looks(detector, path)
        spans = PEOPLE_S.get(path.name, ())
        cells = []
        for needed, window in SETTINGS:
            times = starts(seen, needed, window)
            wrong = [t for t in times if not any(a - SLACK_S <= t <= b + SLACK_S for a, b in spans)]
            met = sum(any(a - SLACK_S <= t <= b + SLACK_S for t in times) for a, b in spans)
            first = f", first at {times[0]:.1f} s" if times else ""
            cells.append(f"{len(times)} starts, {len(wrong)} false, {met}/{len(spans)} spans{first}")
        print(f"| {path.name} | {sum(bool(s.confidences) for s in seen)} of {len(seen)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
