"""The camera program's command line: which program, which options, and what it offers."""

import itertools
import os
import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from guardianberry.camera.modes import Mode, Sensor, mode_for, parse_sensors
from guardianberry.camera.process import PACKAGE, PROGRAMS, VARIABLES, CameraError
from guardianberry.machine import answer_of
from guardianberry.settings import option_names

# libx264's bit rate is an average: after a still hour it would spend the savings on ten seconds of motion. In libav's
# options maxrate bounds it, over bufsize bits.
MAX_RATE = 1.25  # times the average


class Settings(NamedTuple):
    width_px: int
    height_px: int
    frame_rate_fps: float
    bitrate_bps: int
    options: tuple[str, ...] = ()  # handed on as they are


class Offer(NamedTuple):
    """What a camera program can do here. Empty where it has not answered."""

    help_text: str = ""
    mode: Mode | None = None  # that shows the whole scene


def find_program() -> str:
    """Path of the camera program; CameraError if there is none."""
    for name in PROGRAMS:
        if path := shutil.which(name):
            return path
    names = " nor ".join(PROGRAMS)
    raise CameraError("not installed", f"neither {names} found on PATH: install {PACKAGE} (sudo apt install {PACKAGE})")


def command_line(program: str, settings: Settings, offer: Offer, codec: str = "h264") -> list[str]:
    """Video to stdout, each key frame with its parameter sets. Unknown options are fatal, hence the help text.

    Raises CameraError where the owner's options are not in it.
    """
    command = [program, "-n", "-t", "0", "--width", str(settings.width_px), "--height", str(settings.height_px)]
    # A key frame a second: a clip or a decoder can begin only there.
    intra_frames = max(1, int(settings.frame_rate_fps))
    command += ["--framerate", str(settings.frame_rate_fps), "--inline", "--intra", str(intra_frames)]
    command += ["--bitrate", str(settings.bitrate_bps), "--codec", codec, "--flush"]
    if is_low_latency := offers(offer.help_text, "--low-latency"):
        command.append("--low-latency")
    if offers(offer.help_text, "--libav-format"):
        command += ["--libav-format", "h264"]
    if offers(offer.help_text, "--libav-video-codec-opts"):
        max_rate_bps = int(settings.bitrate_bps * MAX_RATE)
        no_delay = "" if is_low_latency else "tune=zerolatency;bf=0;thread_type=slice;"
        command += ["--libav-video-codec-opts", f"{no_delay}maxrate={max_rate_bps};bufsize={max_rate_bps}"]
    if offer.mode is not None:
        command += ["--mode", str(offer.mode)]
    if unknown := unknown_options(settings.options, offer.help_text):
        name = os.path.basename(program)
        text = f"{name} has no option {', '.join(unknown)}: change CAMERA_OPTIONS ({name} --help lists what there is)"
        raise CameraError("options", text)
    return [*command, "-o", "-", *settings.options]  # last: a value that is missing there must not take our words


def offers(help_text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text) is not None


def unknown_options(options: Sequence[str], help_text: str) -> list[str]:
    """Those that the help does not list; none while there is no help."""
    return [name for name in option_names(options) if help_text and not offers(help_text, name)]


def ask_program(program: str, settings: Settings) -> Offer:
    """What it can do. Uses the camera for a moment; blocks for twice ANSWER_TIMEOUT_S at most."""
    code, help_text = answer_of(program, "--help", variables=VARIABLES)
    if code != 0:  # a library is missing, or a driver not loaded yet
        return Offer()
    if not offers(help_text, "--mode"):
        return Offer(help_text)
    _, listed = answer_of(program, "--list-cameras", variables=VARIABLES)
    sensor = choose_sensor(listed, settings.options)
    size = settings.width_px, settings.height_px
    return Offer(help_text, mode_for(sensor, *size, settings.frame_rate_fps) if sensor else None)


def choose_sensor(listed: str, options: Sequence[str]) -> Sensor | None:
    """The one that --camera in the options asks for, else the first; None if it is not listed."""
    words = [part for option in options for part in option.split("=", 1)]
    asked = next((value for name, value in itertools.pairwise(words) if name == "--camera"), "0")
    return next((sensor for sensor in parse_sensors(listed) if str(sensor.number) == asked), None)
