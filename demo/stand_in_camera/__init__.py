"""The parts of demo/rpicam-vid, whose docstring says what it does."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

CAMERA_ID = "/base/soc/i2c0mux/i2c@1/stand-in@10"
VERSION = """\
rpicam-apps build: v1.12.0 stand-in 18-08-2026 (12:00:00)
rpicam-apps capabilites: egl:0 qt:0 drm:1 libav:1
libcamera build: v0.7.0+stand-in
"""
FAILED = 255  # the real main() returns -1


class CameraError(Exception):
    """What the real program throws: printed as its last line on stderr, exit code 255."""


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def libcamera_stamp() -> str:
    minutes, seconds = divmod(time.monotonic(), 60)
    return f"[{int(minutes) // 60}:{int(minutes) % 60:02}:{seconds:012.9f}] [{os.getpid()}]"


def setting(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(f"STAND_IN_{name}", default)
    if value not in allowed:
        raise CameraError(f"stand-in: STAND_IN_{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def die(code: int) -> NoReturn:
    """Ends at once, by a signal if `code` is negative; no clean-up, no Python traceback."""
    sys.stderr.flush()
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no other disposition
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        time.sleep(1)
    os._exit(code)
