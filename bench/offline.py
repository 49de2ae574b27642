"""A video as the daemon gets it, without waiting for real time: encoded as the stand-in camera does, then decoded.

Used by the benches and by tests/test_motion.py.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import detect_and_upload as script
from bench.report import ROOT
from guardianberry.camera.decoder import Decoder, Frame
from guardianberry.camera.h264 import Splitter
from guardianberry.detection.detector import Detector
from guardianberry.detection.motion import MotionGate
from guardianberry.detection.weights import find_graph
from guardianberry.recording.recorder import Inference, Recorder, Start

sys.path.insert(0, str(ROOT / "demo"))

from stand_in_camera.options import option_table, parse_options
from stand_in_camera.source import EncodedVideo, VideoFile

from tests.daemon import WEIGHTS

CLIPS = ROOT.parent / "shared" / "clips"
SCENE = ROOT / "demo" / "scene.mp4"


def encode(video: Any, *, frame_rate_fps: int, seconds: float | None = None, persona: str = "vc4") -> Iterator[bytes]:
    """Access units of `video` at the script's size and bit rate, the picture letterboxed: what the camera would send.

    `video`: a path, or anything with `frame_at`. `seconds` longer than it is play it in a loop; without, it plays once.
    """
    arguments = {
        "--framerate": frame_rate_fps,
        "--width": script.FRAME_WIDTH_PX,
        "--height": script.FRAME_HEIGHT_PX,
        "--intra": frame_rate_fps,
        "--bitrate": script.BITRATE_BPS,
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    options = parse_options([*words, "--inline", "--low-latency"], option_table())
    if isinstance(video, Path):
        video = VideoFile(str(video), "exit" if seconds is None else "loop", 0.0)
    source = EncodedVideo(options, persona, video)
    number = 0
    while (seconds is None or number < seconds * frame_rate_fps) and (unit := source.unit(number)) is not None:
        yield unit.data
        number += 1


def frames(video: Path, *, frame_rate_fps: int) -> Iterator[Frame]:
    """Decoded frames; `arrival_s` is the time in the video."""
    splitter, decoder = Splitter(), Decoder()
    for number, data in enumerate(encode(video, frame_rate_fps=frame_rate_fps)):
        for unit in splitter.feed(data, number / frame_rate_fps):
            if (way := decoder.plan(-1, [unit], None)) and (frame := decoder.decode(way, -1)):
                yield frame


def detector(models: Path = ROOT / "models", input_width_px: int = script.DETECTOR_INPUT_WIDTH_PX) -> Detector:
    return Detector(
        find_graph(WEIGHTS, models),
        frame_width_px=script.FRAME_WIDTH_PX,
        frame_height_px=script.FRAME_HEIGHT_PX,
        input_width_px=input_width_px,
        conf_thres=script.CONF_THRES,
        iou_thres=script.IOU_THRES,
        max_det=script.MAX_DET,
    )


class Seen(NamedTuple):
    """What one frame shows to the detector and to the gate; kept, so that many settings can be tried on it."""

    time_s: float
    confidences: list[float]
    frame: Frame


class Outcome(NamedTuple):
    """What came of a video: when events started, and what it took."""

    starts_s: list[float]  # when the recorder was sure
    inferences: int
    frames: int


def see(finder: Detector, video: Path, *, frame_rate_fps: int, at_most_frames: int | None = None) -> list[Seen]:
    return [
        Seen(frame.arrival_s, [person.confidence for person in finder.find_people(frame.bgr)], frame)
        for frame in itertools.islice(frames(video, frame_rate_fps=frame_rate_fps), at_most_frames)
    ]


def play(
    seen: Iterable[Seen],
    *,
    gate: MotionGate | None,
    needed: int = script.DETECTIONS_TO_START,
) -> Outcome:
    """The daemon's loop over a video, without a gap between starts. `gate` None: an inference on every frame."""
    recorder = Recorder(
        min_gap_between_video_start_s=0,
        person_gone_after_s=script.PERSON_GONE_AFTER_S,
        detections_to_start=needed,
    )
    starts_s, inferences, count = [], 0, 0
    for time_s, confidences, frame in seen:
        count += 1
        if gate is not None and not gate.needs_inference(frame.luma(), time_s, attentive=recorder.attentive):
            continue
        inferences += 1
        action = recorder.step(Inference(time_s, confidences))
        if isinstance(action, Start):
            starts_s.append(time_s)
        elif recorder.recording and time_s - starts_s[-1] >= script.MAX_RECORDING_DURATION_S - script.PRE_ROLL_S:
            recorder.end(time_s, "the clip has its full length")
    return Outcome(starts_s, inferences, count)
