"""The doctor's look at camera and model: as much as can be had without disturbing whoever uses the camera."""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from guardianberry.camera.command import ask_for_help, find_program, offers
from guardianberry.camera.decoder import Frame
from guardianberry.camera.others import RunningCamera
from guardianberry.camera.process import PACKAGE, CameraError
from guardianberry.camera.supervisor import Camera
from guardianberry.doctor.findings import Finding, fail, ok, warn
from guardianberry.doctor.machine import cron_lines, output_of

FRAME_LIMIT_S = 15.0  # a camera's first start after the boot takes a few seconds
DAEMON_START_LIMIT_S = 15.0  # a daemon that has just been started loads its model first
SLOW_LOOK_MS = 1000.0  # with three looks to an alert, and the upload, the five seconds are over
_LOOKS = 5
_CRON_PATH = ("/usr/bin", "/bin")
_OPTIONS = ("--low-latency", "--libav-format")
_POLL_S = 0.25


class CameraPlan(NamedTuple):
    """The constants that the camera is started with."""

    width_px: int
    height_px: int
    frame_rate_fps: int
    bitrate_bps: int
    stream_url: str


class ModelPlan(NamedTuple):
    """The constants that the detector is made with."""

    weights: str
    models_folder: Path
    input_width_px: int
    conf_thres: float
    iou_thres: float
    max_det: int


def check_program(root: Path) -> tuple[Finding, str]:
    """The camera program and what it offers; its path, or "" without one."""
    try:
        program = find_program()
    except CameraError as error:
        return fail("program", str(error).partition(":")[0], f"Run this:\nsudo apt install {PACKAGE}"), ""
    version = re.search(r"v\d+\.\d+[^\s]*", output_of(program, "--version") or "")
    help_text = ask_for_help(program)
    if help_text is None:
        return fail("program", f"{program} does not answer to --help", f"Run this:\nsudo apt reinstall {PACKAGE}"), ""
    offered = ", ".join(option for option in _OPTIONS if offers(help_text, option)) or "neither of them"
    text = f"{program} {version[0] if version else '(unknown version)'}; offers of {' and '.join(_OPTIONS)}: {offered}"
    folder = str(Path(program).parent)
    if folder not in _CRON_PATH and not any(re.match(rf"PATH\s*=.*{re.escape(folder)}", x) for x in cron_lines(root)):
        advice = f"Run crontab -e and put this above the @reboot line:\nPATH={':'.join((folder, *_CRON_PATH))}"
        return warn("program", f"{text}; cron does not look into {folder}", advice), program
    return ok("program", text), program


def check_held_camera(daemon_runs: bool, stream_url: str, running: Callable[[], list[RunningCamera]]) -> Finding | None:
    """Who uses the camera, and whether that is as it should be; None if it is free to be tried."""
    others = running()
    give_up_s = time.monotonic() + DAEMON_START_LIMIT_S
    while daemon_runs and not others and time.monotonic() < give_up_s:
        time.sleep(_POLL_S)
        others = running()
    who = ", ".join(map(str, others))
    if daemon_runs and others:
        return ok("camera", f"in use by {who} for the running daemon; not disturbed")
    if daemon_runs:
        return fail("camera", "the running daemon has no camera", "Its log says why.")
    port = urlsplit(stream_url).port
    if any(other.listens_on_port == port for other in others):
        return ok("camera", f"the daemon would read the stream of {who} at {stream_url}; not disturbed")
    if others:
        return warn("camera", f"in use by {who}; not disturbed", "The daemon waits until that ends. Stop it.")
    return None


def check_camera(program: str, plan: CameraPlan) -> tuple[list[Finding], Frame | None]:
    """Start the camera as the daemon would, take one frame, stop it."""
    # Not while somebody uses the camera: to list the sensors, rpicam-vid takes and configures each of them.
    listed = output_of(program, "--list-cameras") or ""
    names = re.findall(r"^\d+ : (.+?)(?: \(/|$)", listed, re.MULTILINE)
    if not names:
        advice = (
            "Switch the Pi off, push the ribbon cable home at both ends, contacts to the right side, and try again."
        )
        return [fail("camera", f"{Path(program).name} finds none", advice)], None
    camera = Camera(
        width_px=plan.width_px,
        height_px=plan.height_px,
        frame_rate_fps=plan.frame_rate_fps,
        bitrate_bps=plan.bitrate_bps,
        stream_url=plan.stream_url,
        pre_roll_s=0,
        wait_for_other_users=False,
    )
    started_s = time.monotonic()
    frame = None
    try:
        while frame is None and time.monotonic() - started_s < FRAME_LIMIT_S:
            camera.check_and_launch_libcamera()
            frame = camera.newest_frame(timeout_s=_POLL_S)
        took_s = time.monotonic() - started_s
    finally:
        reason = camera.reason
        camera.stop()
    found = ok("camera", ", ".join(names))
    if frame is None:
        return [
            found,
            fail("video", f"no picture within {FRAME_LIMIT_S:.0f} s: {reason or 'the camera is silent'}",
                 "Reseat the ribbon cable, reboot, and try again."),
        ], None  # fmt: skip
    height_px, width_px = frame.bgr.shape[:2]
    text = f"first picture after {took_s:.1f} s, {width_px} x {height_px}"
    if (width_px, height_px) != (plan.width_px, plan.height_px):
        advice = "The daemon takes it as it is; set FRAME_WIDTH_PX and FRAME_HEIGHT_PX to a size the sensor has."
        return [found, warn("video", f"{text}, asked for {plan.width_px} x {plan.height_px}", advice)], frame
    return [found, ok("video", text)], frame


def check_model(plan: ModelPlan, frame_px: tuple[int, int], frame: Frame | None) -> Finding:
    """Load the model as the daemon would, and look at the frame, or at a grey one, a few times."""
    from guardianberry.detection.detector import Detector
    from guardianberry.detection.weights import WeightsError, find_graph

    width_px, height_px = frame_px
    bgr = np.full((height_px, width_px, 3), 114, np.uint8) if frame is None else frame.bgr
    warnings = _Warnings()
    try:
        with warnings:
            detector = Detector(
                find_graph(plan.weights, plan.models_folder),
                frame_width_px=bgr.shape[1],
                frame_height_px=bgr.shape[0],
                input_width_px=plan.input_width_px,
                conf_thres=plan.conf_thres,
                iou_thres=plan.iou_thres,
                max_det=plan.max_det,
            )
    except WeightsError as error:
        return fail("model", str(error), "Until this is put right the daemon cannot start.")
    looks_ms = []
    for _ in range(_LOOKS):
        people = detector.find_people(bgr)
        looks_ms.append(detector.last_ms)
    look_ms = statistics.median(looks_ms)
    text = f"{detector.model_name}, {look_ms:.0f} ms a frame"
    if frame is not None:
        text += f", {len(people)} person(s) in view now"
    if warnings.texts:
        return warn("model", text, " ".join(warnings.texts))
    if look_ms > SLOW_LOOK_MS:
        return warn("model", text, "That is slow: an alert takes three looks. Set DETECTOR_INPUT_WIDTH_PX lower.")
    return ok("model", text)


def is_prepared(plan: ModelPlan) -> bool:
    """Whether a graph of these weights has been made: a second conversion must not get in the way of the first."""
    return any((plan.models_folder / ".cache").glob(f"{Path(plan.weights).stem}-*.xml"))


class _Warnings(logging.Handler):
    """What our own modules warn about while this is open."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> _Warnings:
        logging.getLogger("guardianberry").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("guardianberry").removeHandler(self)


def held_or_tried(
    daemon_runs: bool, program: str, plan: CameraPlan, running: Callable[[], list[RunningCamera]]
) -> tuple[list[Finding], Frame | None]:
    """The camera's findings, and a frame if one could be taken."""
    held = check_held_camera(daemon_runs, plan.stream_url, running)
    if held is not None:
        return [held], None
    return check_camera(program, plan) if program else ([], None)
