"""What crops around motion find beside the whole frame, at the same number of inferences: `python -m bench.close_look`.

Both ways see the same frames through the daemon's own finder and recorder; "whole" never takes a crop.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import detect_and_upload as script
from bench.offline import CLIPS, SCENE, detector, frames
from bench.report import table, write_section
from guardianberry.detection.detector import Detector
from guardianberry.detection.finder import PeopleFinder
from guardianberry.recording.recorder import Inference, Recorder, Start


class Outcome(NamedTuple):
    frames: int
    inferences: int
    found: int  # inferences that found somebody who counts
    start_s: float | None  # of the first event


def finder_with(the_detector: Detector, *, crops: bool) -> PeopleFinder:
    """The daemon's, on every frame; without `crops` it always takes the whole one."""
    finder = PeopleFinder(the_detector, inference_at_least_every_s=0, ignore_zones=())
    if not crops:
        finder._crop = lambda *_: None  # type: ignore[method-assign]
    return finder


def watch(video: Path, *, crops: bool, seconds: float) -> Outcome:
    """The daemon's loop over a video; every frame needs an inference, so that both ways make as many."""
    finder = finder_with(detector(), crops=crops)
    recorder = Recorder(
        min_gap_between_video_start_s=script.MIN_GAP_BETWEEN_VIDEO_START_S,
        person_gone_after_s=script.PERSON_GONE_AFTER_S,
        detections_to_start=script.DETECTIONS_TO_START,
    )
    count = inferences = found = 0
    start_s = None
    for frame in frames(video, frame_rate_fps=script.FRAME_RATE_FPS):
        if frame.arrival_s > seconds:
            break
        count += 1
        people = finder.find(frame, attentive=True)
        if people is None:
            continue
        inferences += 1
        found += bool(people)
        action = recorder.step(Inference(frame.arrival_s, [person.confidence for person in people]))
        if isinstance(action, Start) and start_s is None:
            start_s = frame.arrival_s
    return Outcome(count, inferences, found, start_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first seconds of each clip; nothing is kept")
    parser.add_argument("--only", default="", help="films whose name holds this")
    options = parser.parse_args()
    rows = []
    for video in [v for v in [SCENE, *sorted(CLIPS.glob("*.mp4"))] if not options.only or options.only in v.name]:
        whole, crop = (watch(video, crops=crops, seconds=5 if options.quick else 30) for crops in (False, True))
        share = [100 * outcome.found / max(1, outcome.inferences) for outcome in (whole, crop)]
        starts = ["none" if o.start_s is None else f"{o.start_s:.1f}" for o in (whole, crop)]
        gain = f"{100 * (crop.found / whole.found - 1):+.0f} %" if whole.found else "-"
        rows.append([video.name, str(whole.frames), f"{share[0]:.0f} %", f"{share[1]:.0f} %", gain, *starts])
    heads = ["clip", "frames", "found: whole", "found: in turns", "gain", "event at, s: whole", "in turns"]
    lines = table(heads, rows)
    print("\n".join(lines)) if options.quick else write_section("close_look", lines)


if __name__ == "__main__":
    main()
