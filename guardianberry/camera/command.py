"""The camera program's command line: which program, which options, and what it offers."""

import logging
import re
import shutil
import subprocess
from typing import NamedTuple

from guardianberry.camera.process import PACKAGE, PROGRAMS, VARIABLES, CameraError
from guardianberry.machine import for_child

log = logging.getLogger(__name__)

HELP_TIMEOUT_S = 3.0


class Settings(NamedTuple):
    width_px: int
    height_px: int
    frame_rate_fps: float
    bitrate_bps: int


def find_program() -> str:
    """Path of the camera program; CameraError if there is none."""
    for name in PROGRAMS:
        path = shutil.which(name)
        if path:
            return path
    names = " nor ".join(PROGRAMS)
    raise CameraError("not installed", f"neither {names} found on PATH: install {PACKAGE} (sudo apt install {PACKAGE})")


def command_line(program: str, settings: Settings, help_text: str, codec: str = "h264") -> list[str]:
    """Video to stdout, each key frame with its parameter sets. Unknown options are fatal, hence the help text."""
    command = [program, "-n", "-t", "0", "--width", str(settings.width_px), "--height", str(settings.height_px)]
    # A key frame a second: a clip or a decoder can begin only there.
    intra_frames = max(1, int(settings.frame_rate_fps))
    command += ["--framerate", str(settings.frame_rate_fps), "--inline", "--intra", str(intra_frames)]
    command += ["--bitrate", str(settings.bitrate_bps), "--codec", codec, "--flush"]
    if offers(help_text, "--low-latency"):
        command.append("--low-latency")
    if offers(help_text, "--libav-format"):
        command += ["--libav-format", "h264"]
    return [*command, "-o", "-"]


def offers(help_text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text) is not None


def ask_for_help(program: str) -> str | None:
    """What the program prints for --help; None if it does not answer in time."""
    try:
        answer = subprocess.run(
            [program, "--help"],
            **for_child(*VARIABLES),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.debug("%s --help: %s", program, error)
        return None
    return answer.stdout.decode(errors="replace")
