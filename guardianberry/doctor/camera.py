"""--check of camera and model, without disturbing a program that uses the camera."""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from guardianberry.camera.command import choose_sensor, find_program, offers, unknown_options
from guardianberry.camera.modes import Sensor, mode_for, parse_sensors
from guardianberry.camera.other_users import RunningCamera
from guardianberry.camera.process import PACKAGE, VARIABLES, CameraError, fault_of_exit
from guardianberry.disk import write_atomically
from guardianberry.doctor.machine import cron_lines
from guardianberry.doctor.page import Finding, fail, ok, warn
from guardianberry.machine import ANSWER_TIMEOUT_S, answer_of

if TYPE_CHECKING:
    import numpy as np

    from guardianberry.camera.decoder import Frame
    from guardianberry.camera.supervisor import Camera
    from guardianberry.detection.detector import Detector
    from guardianberry.detection.postprocess import Person
    from guardianberry.detection.zones import Zone

_INFERENCES = 5
_CRON_PATH = ("/usr/bin", "/bin")
_OPTIONS = ("--low-latency", "--libav-format", "--libav-video-codec-opts", "--mode")
# What to do about the cause of a camera's fault.
_ADVICE = {
    "permission": "Run this, then log in again:\nsudo usermod -aG video $USER",
    "busy": "End that program.",
    "options": "Edit the top of detect_and_upload.py.",
    "option": "Edit CAMERA_OPTIONS at the top of detect_and_upload.py, or update the program.",
    "codec": f"Run this:\nsudo apt install --reinstall {PACKAGE}",
    "encoder": f"{PACKAGE}-lite has none for this Pi. Run this:\nsudo apt install {PACKAGE}",
    "install": f"Run this:\nsudo apt install --reinstall {PACKAGE}",
}
_NO_CAMERA = "Switch the Pi off, push the ribbon cable in at both ends, contacts on the right side, and try again."
_POLL_S = 0.25


def check_program(root: Path, options: Sequence[str]) -> Generator[Finding, None, str]:
    """The camera program and its options; returns its path, or "" if it cannot be used."""
    try:
        program = find_program()
    except CameraError as error:
        yield fail("program", str(error).partition(":")[0], f"Run this:\nsudo apt install {PACKAGE}")
        return ""
    version = re.search(r"v\d+\.\d+[^\s]*", answer_of(program, "--version", variables=VARIABLES)[1])
    code, help_text = answer_of(program, "--help", variables=VARIABLES)
    if code is None:
        advice = (
            f"See what it does:\n{program} --help\nIf that is slow only now, something else keeps this machine busy."
        )
        yield fail("program", f"{program} --help does not end within {ANSWER_TIMEOUT_S:.0f} s", advice)
        return ""
    if code != 0:
        fault = fault_of_exit(program, code, help_text.splitlines())
        yield fail("program", f"--help: {fault.text}", _ADVICE.get(fault.cause, _ADVICE["install"]))
        return ""
    if unknown := unknown_options(options, help_text):
        text = f"{program} has no option {', '.join(unknown)}, which CAMERA_OPTIONS has"
        yield fail("program", text, f"{Path(program).name} --help lists what there is.")
        return ""
    missing = ", ".join(option for option in _OPTIONS if not offers(help_text, option))
    has = f"without {missing}" if missing else "with all options that the daemon uses"
    text = f"{program} {version[0] if version else '(unknown version)'}, {has}"
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
    """Which program uses the camera, and whether it should; None if it is free. A daemon gets `wait_s` to start it."""
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
    code, listed = answer_of(program, "--list-cameras", variables=VARIABLES)
    camera = make_camera(wait_for_other_users=False)
    sensor = choose_sensor(listed, camera.settings.options)
    if sensor is None:
        reason = fault_of_exit(Path(program).name, code, [*listed.splitlines(), "no cameras available"])
        yield fail("camera", reason.text, _ADVICE.get(reason.cause, _NO_CAMERA))
        return None
    yield ok("camera", ", ".join(sensor.name for sensor in parse_sensors(listed)))
    yield from check_view(sensor, asked_px, camera.settings.frame_rate_fps)
    started_s = time.monotonic()
    frame = None
    try:
        while frame is None and time.monotonic() - started_s < wait_s:
            camera.check_and_launch_libcamera()
            frame = camera.newest_frame(timeout_s=_POLL_S)
        took_s = time.monotonic() - started_s
    finally:
        fault = camera.fault
        camera.stop()
    if frame is None:
        text = f"no frame within {wait_s:.0f} s: {fault.text if fault else 'the camera is silent'}"
        yield fail("video", text, _ADVICE.get(fault.cause if fault else "", _NO_CAMERA))
        return None
    height_px, width_px = frame.luma().shape
    text = f"first frame after {took_s:.1f} s, {width_px} x {height_px}"
    if (width_px, height_px) == asked_px:
        yield ok("video", text)
    else:
        advice = "The daemon takes it as it is; set FRAME_WIDTH_PX and FRAME_HEIGHT_PX to a size the sensor has."
        yield warn("video", f"{text}, asked for {asked_px[0]} x {asked_px[1]}", advice)
    return frame


def check_view(sensor: Sensor, asked_px: tuple[int, int], frame_rate_fps: float) -> Iterator[Finding]:
    """Which share of what the sensor could show is in the frames; nothing if its modes are not known."""
    if not sensor.modes or not sensor.width_px:
        return
    mode = mode_for(sensor, *asked_px, frame_rate_fps)
    if mode is None:
        fastest = max(mode.max_fps for mode in sensor.modes)
        advice = f"Set FRAME_RATE_FPS to {fastest:.0f} at most."
        yield warn("view", f"no sensor mode has {frame_rate_fps} frames/s", advice)
        return
    share = mode.view_px2(*asked_px) / (sensor.width_px * sensor.height_px)
    shape_share = max(mode.view_px2(*asked_px) for mode in sensor.modes) / (sensor.width_px * sensor.height_px)
    text = f"sensor mode {mode.width_px} x {mode.height_px}, {100 * share:.0f} % of the sensor's area"
    if share < shape_share * 0.98:
        slower = f"At fewer frames a second {100 * shape_share:.0f} % would be seen: set FRAME_RATE_FPS lower."
        yield warn("view", text, slower)
    elif share < 0.98:
        all_px = round(asked_px[0] * sensor.height_px / sensor.width_px / 2) * 2
        yield ok("view", f"{text}; FRAME_HEIGHT_PX = {all_px} would show all of it")
    else:
        yield ok("view", text)


def check_model(make_detector: Callable[[], Detector], frame: Frame | None) -> Generator[Finding, None, list[Person]]:
    """Load the model as the daemon does, and time it on the frame, or else a grey one; returns the people."""
    from guardianberry.detection.detector import advice_if_slow
    from guardianberry.detection.weights import WeightsError

    warnings = BufferingHandler(capacity=1000)  # of the daemon's own code, which logs them to nobody here
    warnings.setLevel(logging.WARNING)
    logging.getLogger("guardianberry").addHandler(warnings)
    try:
        detector = make_detector()
    except WeightsError as error:
        yield fail("model", str(error), "Until this is corrected the daemon uses the bundled model, or cannot start.")
        return []
    finally:
        logging.getLogger("guardianberry").removeHandler(warnings)
    people: list[Person] = []
    times_ms = []
    for _ in range(_INFERENCES):
        if frame is None:
            detector.measure_ms()
        else:
            people = detector.find_people(frame.bgr)
        times_ms.append(detector.last_ms)
    inference_ms = statistics.median(times_ms)
    text = f"{detector.model_name}, {inference_ms:.0f} ms a frame"
    if frame is not None:
        text += f", {len(people)} person(s) in view now"
    if warnings.buffer:
        told = [record.getMessage().partition(" sudo ") for record in warnings.buffer]
        advice = " ".join(what for what, *_ in told)
        yield warn("model", text, "\n".join([advice, *(f"sudo {command}" for *_, command in told if command)]))
    elif advice := advice_if_slow(inference_ms):
        yield warn("model", text, f"That is slow: {advice}")
    else:
        yield ok("model", text)
    return people


def save_picture(path: Path, bgr: np.ndarray, people: list[Person], zones: Sequence[Zone]) -> Finding:
    """What the camera sees now, with the people boxed and IGNORE_ZONES outlined. Nothing is uploaded."""
    import cv2

    from guardianberry.detection.zones import outline
    from guardianberry.recording.snapshot import draw_people

    picture = draw_people(bgr, people)
    outline(picture, zones)
    encoded, jpeg = cv2.imencode(".jpg", picture)
    try:
        write_atomically(path, jpeg.tobytes() if encoded else b"")
    except OSError as error:
        return warn("picture", f"{path} cannot be written: {error.strerror}", "Make the folder writable for this user.")
    return ok("picture", f"what the camera sees now is in {path.name}, with people and IGNORE_ZONES")
