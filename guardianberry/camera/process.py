"""The camera program as a process: rpicam-vid, formerly libcamera-vid. Its start, its error messages, its end."""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from typing import NamedTuple

from guardianberry.logs import without_control
from guardianberry.machine import for_child

log = logging.getLogger(__name__)

PROGRAMS = ("rpicam-vid", "libcamera-vid")
PACKAGE = "rpicam-apps"
VARIABLES = ("LIBCAMERA_*", "STAND_IN_*")  # the camera program needs: libcamera's, and the stand-in's of demo and tests
# How it is stopped, 2.5 s in all. rpicam-vid handles SIGINT, but only when a frame arrives.
STOP_SIGNALS = ((signal.SIGINT, 1.0), (signal.SIGTERM, 0.5), (signal.SIGKILL, 1.0))
STDERR_LINES = 20
STDERR_LINE_BYTES = 500

# No reasons: one line a frame in some versions, and what libav and x264 tell about every stream.
_CHATTER = re.compile(
    r"#\d+ \(|\[[\w, ]+ @ 0x|(Output|Stream|Input) #|(Side data|Metadata):|cpb:|encoder +:|Press \[", re.IGNORECASE
)


class Fault(NamedTuple):
    """Why there is no video. `cause` tells faults apart (one warning each), `text` is for people."""

    cause: str
    text: str


class CameraError(Exception):
    """There is no video now; `fault` says why. Another try may succeed."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.fault = Fault(cause, text)


class CameraProcess:
    """One run of the camera program. Whoever makes it reads and closes `video_fd`, and calls `stop`.

    Raises CameraError if the program cannot be started. After that nothing raises: faults show in `exit_code` and
    `last_lines`.
    """

    def __init__(self, command: list[str]) -> None:
        self.name = os.path.basename(command[0])
        self.video_fd, video_end = os.pipe()
        setpriv = shutil.which("setpriv")
        # No orphan after a kill -9 of this process, even if the camera never writes again and so never notices the
        # closed pipe. The signal comes when the spawning THREAD ends, so spawn it from the main thread.
        guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        try:
            self._process = subprocess.Popen(
                [*guard, *command],
                **for_child(*VARIABLES),
                stdout=video_end,
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
        """Sends signals until it has ended. A process already gone is no error; one that SIGKILL does not end (blocked
        in the kernel on a dead device) is left behind after 2.5 s in all."""
        for number, wait_s in STOP_SIGNALS:
            if self.exit_code() is not None:
                break
            self._signal(number)
            if self.exit_code(wait_s) is None:
                log.debug("%s (pid %d) ignores %s", self.name, self.pid, number.name)
        self._signal(signal.SIGKILL)  # children of a wrapper script: a group outlives its leader
        if self.exit_code() is None:
            log.warning("%s (pid %d) cannot be killed: it is blocked in the kernel", self.name, self.pid)
        self._listener.join(0.2)

    def last_lines(self) -> list[str]:
        """The last lines that it wrote to stderr."""
        self._listener.join(0.5 if self.exit_code() is not None else 0)
        return list(self._last_lines)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _listen(self) -> None:
        try:
            assert self._process.stderr is not None
            with self._process.stderr as pipe:
                while line := pipe.readline(STDERR_LINE_BYTES):
                    text = without_control(line.decode(errors="replace").strip())
                    if text and not _CHATTER.match(text):
                        self._last_lines.append(text)
        except Exception:
            log.exception("camera's stderr cannot be read")


_INSTALL = f"sudo apt install --reinstall {PACKAGE}"
# What the program says before it ends, in this order: pattern, cause, text. libcamera's reason comes before what the
# program makes of it, as with permissions: "Failed to open media device at /dev/media0: Permission denied", and then
# "no cameras available".
_REASONS = (
    (r"/dev/.*permission denied", "permission", "{name} may not use the camera: is this user in group video? ({last})"),
    (r"while loading shared libraries", "install", f"{{name}} lacks a library: {_INSTALL} ({{last}})"),
    (r"only supports the raspberry pi", "no driver", "{name} finds no camera: connect it with the Pi off ({last})"),
    (r"no cameras available", "no camera", "no camera found by {name}: check the ribbon cable ({last})"),
    (r"failed to acquire camera", "busy", "the camera is held by another program ({last})"),
    (r"unrecogni[sz]ed option|unknown option|ambiguous|the (required )?argument .*for option", "option",
     f"{{name}} refuses an option: change CAMERA_OPTIONS, or update {PACKAGE} ({{last}})"),
    (r"unable to find an appropriate .*codec", "encoder",
     f"{{name}} has no H.264 encoder: sudo apt install {PACKAGE} ({{last}})"),
    (r"libav: |unrecognised codec", "codec", "{name} refuses the codec ({last})"),
)  # fmt: skip


def fault_of_exit(name: str, code: int | None, last_lines: list[str]) -> Fault:
    """Why a camera program ended, from its last lines on stderr and its exit code (None: it still runs)."""
    said = "\n".join(last_lines).lower()
    for pattern, cause, text in _REASONS:
        if re.search(pattern, said):
            line = next(line for line in reversed(last_lines) if re.search(pattern, line.lower()))
            return Fault(cause, text.format(name=name, last=line))
    last = next((line for line in reversed(last_lines) if "ERROR" in line), (last_lines or ["no message"])[-1])
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
