"""The camera program as a process: rpicam-vid, formerly libcamera-vid. How it is found, started, understood, ended."""

import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from typing import NamedTuple

import psutil

from guardianberry.machine import environment_without_credentials

log = logging.getLogger(__name__)

PROGRAMS = ("rpicam-vid", "libcamera-vid")
PACKAGE = "rpicam-apps"
# The stop ladder; 2.5 s in all. SIGINT is what rpicam-vid handles, and only when a frame arrives.
LADDER = ((signal.SIGINT, 1.0), (signal.SIGTERM, 0.5), (signal.SIGKILL, 1.0))
HELP_TIMEOUT_S = 3.0
STDERR_LINES = 20
STDERR_LINE_BYTES = 500

# What a program of that name may be run by: a stand-in, or a wrapper with a #! line.
_INTERPRETER = re.compile(r"(python[\d.]*|bash|dash|sh)$")
_FRAME_REPORT = re.compile(r"#\d+ \(")  # one line a frame, in some versions
_CODEC_REFUSED = re.compile(r"libav: |unrecognised codec|unable to find an appropriate .*codec", re.IGNORECASE)


class Fault(NamedTuple):
    """Why there is no video. The kind tells causes apart (one warning each), the text is for people."""

    kind: str
    text: str


class CameraError(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.fault = Fault(kind, text)


class Settings(NamedTuple):
    width_px: int
    height_px: int
    frame_rate_fps: int
    intra_frames: int
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
    command += ["--framerate", str(settings.frame_rate_fps), "--inline", "--intra", str(settings.intra_frames)]
    command += ["--bitrate", str(settings.bitrate_bps), "--codec", codec, "--flush"]
    if offers(help_text, "--low-latency"):
        command.append("--low-latency")
    if offers(help_text, "--libav-format"):
        command += ["--libav-format", "h264"]
    return [*command, "-o", "-"]


def offers(help_text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text) is not None


def ask_for_help(program: str) -> str | None:
    """What the program says to --help; None if it does not answer in time."""
    try:
        answer = subprocess.run(
            [program, "--help"],
            env=environment_without_credentials(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.debug("%s --help: %s", program, error)
        return None
    return answer.stdout.decode(errors="replace")


class RunningCamera(NamedTuple):
    pid: int
    name: str
    listens_on_port: int | None  # where it was started with --listen -o tcp://...


def running_cameras() -> list[RunningCamera]:
    """Every camera program alive on this machine; zombies do not count."""
    found = []
    for process in psutil.process_iter(["name"]):
        process_name = process.info["name"] or ""
        if process_name not in PROGRAMS and not _INTERPRETER.match(process_name):
            continue  # spares reading everybody's command line
        try:
            details = process.as_dict(["cmdline", "status"])
        except psutil.NoSuchProcess:
            continue
        arguments = details["cmdline"] or []
        name = process_name if process_name in PROGRAMS else _script_name(arguments)
        if name in PROGRAMS and details["status"] != psutil.STATUS_ZOMBIE:
            found.append(RunningCamera(process.pid, name, _listening_port(arguments)))
    return found


def _script_name(arguments: list[str]) -> str:
    return next((os.path.basename(argument) for argument in arguments[1:] if not argument.startswith("-")), "")


def _listening_port(arguments: list[str]) -> int | None:
    if not {"--listen", "--listen=1", "-l"} & set(arguments):
        return None
    outputs = [value for flag, value in itertools.pairwise(arguments) if flag in ("-o", "--output")]
    outputs += [argument.partition("=")[2] for argument in arguments if argument.startswith("--output=")]
    for output in outputs:
        match = re.match(r"tcp://[^/]*:(\d+)", output)
        if match:
            return int(match[1])
    return None


class CameraProcess:
    """One run of the camera program: its stdout to read from, its last words, and its end."""

    def __init__(self, command: list[str]) -> None:
        self.name = os.path.basename(command[0])
        self.video_fd, video_end = os.pipe()
        setpriv = shutil.which("setpriv")
        # No orphan after a kill -9 of this process, even if the camera never writes again and so never sees the closed
        # pipe. The signal comes when the spawning THREAD ends, hence the main thread.
        guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        try:
            self._process = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.DEVNULL,
                stdout=video_end,
                env=environment_without_credentials(),
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            os.close(self.video_fd)
            raise CameraError("died", f"{self.name} cannot be started: {error.strerror}") from error
        finally:
            os.close(video_end)
        self.pid = self._process.pid
        self._last_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._listener = threading.Thread(target=self._listen, name="camera-stderr", daemon=True)
        self._listener.start()

    def exit_code(self, timeout_s: float = 0.0) -> int | None:
        """Exit code (negative: the signal); None while it runs. Reaps."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Climbs the ladder until it is gone. A process already gone is no error; one that even SIGKILL cannot end
        (in the kernel, on a dead device) is left behind after 2.5 s in all."""
        for number, wait_s in LADDER:
            if self.exit_code() is not None:
                break
            self._signal(number)
            if self.exit_code(wait_s) is None:
                log.debug("%s (pid %d) ignores %s", self.name, self.pid, number.name)
        self._signal(signal.SIGKILL)  # what a wrapper script left behind: a group lives on without its leader
        if self.exit_code() is None:
            log.warning("%s (pid %d) cannot be killed: the kernel holds it", self.name, self.pid)
        self._listener.join(0.2)

    def last_words(self) -> list[str]:
        self._listener.join(0.5 if self.exit_code() is not None else 0)
        return list(self._last_lines)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError) as error:
            log.debug("%s not sent to %d: %s", number.name, self.pid, error)

    def _listen(self) -> None:
        try:
            assert self._process.stderr is not None
            with self._process.stderr as pipe:
                while line := pipe.readline(STDERR_LINE_BYTES):
                    text = line.decode(errors="replace").strip()
                    if text and not _FRAME_REPORT.match(text):
                        self._last_lines.append(text)
        except Exception:
            log.exception("camera's stderr cannot be read")


def fault_of_exit(name: str, code: int | None, last_words: list[str]) -> Fault:
    """Why a camera program ended, by what it said last."""
    said = "\n".join(last_words).lower()
    last = last_words[-1] if last_words else "no message"
    if "no cameras available" in said:
        return Fault("no camera", f"no camera found by {name}: check the ribbon cable ({last})")
    if "failed to acquire camera" in said:
        return Fault("busy", f"the camera is held by another program ({last})")
    if "unrecognised option" in said or "unrecognized option" in said:
        return Fault("option", f"{name} does not know an option: update {PACKAGE} ({last})")
    if "permission denied" in said:
        return Fault("permission", f"{name} may not use the camera: is this user in group video? ({last})")
    if _CODEC_REFUSED.search(said):
        return Fault("codec", f"{name} refuses the codec ({last})")
    if code is None:
        return Fault("closed", f"{name} closed its output without ending ({last})")
    if code == 0:
        return Fault("ended", f"{name} ended by itself ({last})")
    how = f"signal {_signal_name(-code)}" if code < 0 else f"code {code}"
    return Fault(f"died {how}", f"{name} died with {how} ({last})")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
