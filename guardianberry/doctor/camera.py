"""--check of camera and model, without disturbing a program that uses the camera."""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Callable, Generator
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from guardianberry.camera.command import ask_for_help, find_program, offers
from guardianberry.camera.others import RunningCamera
from guardianberry.camera.process import PACKAGE, CameraError
from guardianberry.doctor.machine import cron_lines, output_of
from guardianberry.doctor.page import Finding, fail, ok, warn

if TYPE_CHECKING:
    import numpy as np

    from guardianberry.camera.decoder import Frame
    from guardianberry.camera.supervisor import Camera
    from guardianberry.detection.detector import Detector

SLOW_INFERENCE_MS = 1000.0  # an alert takes three inferences and the upload: 5 s are over
_INFERENCES = 5
_CRON_PATH = ("/usr/bin", "/bin")
_OPTIONS = ("--low-latency", "--libav-format")
_POLL_S = 0.25


def check_program(root: Path) -> Generator[Finding, None, str]:
    """The camera program and its options; returns its path, or "" if it is missing."""
    try:
        program = find_program()
    except CameraError as error:
        yield fail("program", str(error).partition(":")[0], f"Run this:\nsudo apt install {PACKAGE}")
        return ""
    version = re.search(r"v\d+\.\d+[^\s]*", output_of(program, "--version") or "")
    help_text = ask_for_help(program)
    if help_text is None:
        yield fail("program", f"{program} does not answer to --help", f"Run this:\nsudo apt reinstall {PACKAGE}")
        return ""
    offered = ", ".join(option for option in _OPTIONS if offers(help_text, option)) or "neither of them"
    text = f"{program} {version[0] if version else '(unknown version)'}; offers of {' and '.join(_OPTIONS)}: {offered}"
    folder = str(Path(program).parent)
    if folder in _CRON_PATH or any(re.match(rf"PATH\s*=.*{re.escape(folder)}", line) for line in cron_lines(root)):
        yield ok("program", text)
    else:
        advice = f"Run crontab -e and put this above the @reboot line:\nPATH={':'.join((folder, *_CRON_PATH))}"
        yield warn("program", f"{text}; cron does not search {folder}", advice)
    return program


def check_use(
    running: Callable[[], list[RunningCamera]], stream_url: str, *, daemon_runs: bool, wait_s: float
) -> Finding | None:
    """Which program uses the camera, and whether it should; None if the camera is free.

    A running daemon gets `wait_s` to start its camera: it loads its model first.
    """
    others = running()
    give_up_s = time.monotonic() + wait_s
    while daemon_runs and not others and time.monotonic() < give_up_s:
        time.sleep(_POLL_S)
        others = running()
    who = ", ".join(map(str, others))
    if daemon_runs and others:
        return ok("camera", f"in use by {who} for the running daemon; not disturbed")
    if daemon_runs:
        return fail("camera", "the running daemon has no camera", "Its log says why.")
    if any(other.listens_on_port == urlsplit(stream_url).port for other in others):
        return ok("camera", f"the daemon would read the stream of {who} at {stream_url}; not disturbed")
    if others:
        return warn("camera", f"in use by {who}; not disturbed", "The daemon waits until that ends. Stop it.")
    return None


def check_camera(
    program: str, make_camera: Callable[..., Camera], asked_px: tuple[int, int], wait_s: float
) -> Generator[Finding, None, Frame | None]:
    """Start the camera as the daemon does, take one frame within `wait_s`, stop it; returns the frame."""
    # Not while a program uses the camera: to list the sensors, rpicam-vid opens and configures each of them.
    names = re.findall(r"^\d+ : (.+?)(?: \(/|$)", output_of(program, "--list-cameras") or "", re.MULTILINE)
    if not names:
        advice = "Switch the Pi off, push the ribbon cable in at both ends, contacts on the right side, and try again."
        yield fail("camera", f"{Path(program).name} finds none", advice)
        return None
    yield ok("camera", ", ".join(names))
    camera = make_camera(wait_for_other_users=False)
    started_s = time.monotonic()
    frame = None
    try:
        while frame is None and time.monotonic() - started_s < wait_s:
            camera.check_and_launch_libcamera()
            frame = camera.newest_frame(timeout_s=_POLL_S)
        took_s = time.monotonic() - started_s
    finally:
        reason = camera.reason
        camera.stop()
    if frame is None:
        text = f"no frame within {wait_s:.0f} s: {reason or 'the camera is silent'}"
        yield fail("video", text, "Reseat the ribbon cable, reboot, and try again.")
        return None
    height_px, width_px = frame.bgr.shape[:2]
    text = f"first frame after {took_s:.1f} s, {width_px} x {height_px}"
    if (width_px, height_px) == asked_px:
        yield ok("video", text)
    else:
        advice = "The daemon takes it as it is; set FRAME_WIDTH_PX and FRAME_HEIGHT_PX to a size the sensor has."
        yield warn("video", f"{text}, asked for {asked_px[0]} x {asked_px[1]}", advice)
    return frame


def check_model(make_detector: Callable[[], Detector], frame: Frame | None, grey_bgr: np.ndarray) -> Finding:
    """Load the model as the daemon does, and time it on the frame, or on the grey picture if there is none."""
    from guardianberry.detection.weights import WeightsError

    bgr = grey_bgr if frame is None else frame.bgr
    warnings = BufferingHandler(capacity=1000)  # of the daemon's own code, which logs them to nobody here
    warnings.setLevel(logging.WARNING)
    logging.getLogger("guardianberry").addHandler(warnings)
    try:
        detector = make_detector()
    except WeightsError as error:
        return fail("model", str(error), "The daemon cannot start until this is corrected.")
    finally:
        logging.getLogger("guardianberry").removeHandler(warnings)
    times_ms = []
    for _ in range(_INFERENCES):
        people = detector.find_people(bgr)
        times_ms.append(detector.last_ms)
    inference_ms = statistics.median(times_ms)
    text = f"{detector.model_name}, {inference_ms:.0f} ms a frame"
    if frame is not None:
        text += f", {len(people)} person(s) in view now"
    if warnings.buffer:
        return warn("model", text, " ".join(record.getMessage() for record in warnings.buffer))
    if inference_ms > SLOW_INFERENCE_MS:
        return warn("model", text, "That is slow: an alert takes three inferences. Set DETECTOR_INPUT_WIDTH_PX lower.")
    return ok("model", text)


def is_converted(weights: str, models_folder: Path) -> bool:
    """Whether there is a graph made of these weights."""
    return any((models_folder / ".cache").glob(f"{Path(weights).stem}-*.xml"))
