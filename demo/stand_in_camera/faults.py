"""What goes wrong, and when."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from stand_in_camera import CAMERA_ID, CameraError, libcamera_stamp, say


class Fault(NamedTuple):
    name: str
    due_s: float  # on the stream's clock
    argument: str


# These end any launch, --help included.
BEFORE_OPTIONS = ("no-library", "no-driver")
AT_LAUNCH = ("no-camera", "busy", "unplugged", "no-permission", "no-encoder")
FAULT_NAMES = (*BEFORE_OPTIONS, *AT_LAUNCH, "dies", "hangs", "pause", "garbage", "half", "resolution")
NO_LIBRARY = (
    "error while loading shared libraries: libcamera.so.0.7: cannot open shared object file: No such file or directory"
)
NO_DRIVER = (
    "rpicam-apps currently only supports the Raspberry Pi platforms.\n"
    "Contributions for other platforms are welcome at https://github.com/raspberrypi/rpicam-apps."
)


def parse_faults(text: str, now_s: float) -> list[Fault]:
    faults = []
    for item in re.split(r"[,\n]+", text):
        match = re.match(r"\s*([a-z-]+)(?:@([0-9.]+))?(?:[:\s]\s*(\S+))?\s*$", item)
        if not item.strip() or item.strip() == "ok":
            continue
        name = {"die": "dies", "hang": "hangs"}.get(match[1], match[1]) if match else ""
        if not match or name not in FAULT_NAMES:
            raise CameraError(f"stand-in: no such fault: {item.strip()!r}")
        faults.append(Fault(name, now_s + float(match[2] or 0), match[3] or ""))
    return faults


class Faults:
    """Those still to come. The control file is looked at whenever somebody asks."""

    def __init__(self, text: str, control: str | None) -> None:
        self._pending = parse_faults(text, 0.0)
        self._control = Path(control) if control else None
        self._control_text = ""
        self._ordered: list[Fault] = []  # by the control file
        self.look(0.0)

    def look(self, now_s: float) -> bool:
        """True if the control file has changed."""
        if not self._control:
            return False
        try:
            text = self._control.read_text()
        except OSError:
            text = ""
        if text == self._control_text:
            return False
        self._control_text = text
        try:
            self._ordered = parse_faults(text, now_s)
        except CameraError as error:
            say(f"ERROR: *** {error} ***")
        return True

    def at_launch(self, names: tuple[str, ...] = AT_LAUNCH) -> str:
        return next((fault.name for fault in self._pending + self._ordered if fault.name in names), "")

    def take(self, now_s: float) -> Fault | None:
        """The next fault that is due in a running stream, taken off the list it was on."""
        self.look(now_s)
        for faults in (self._pending, self._ordered):
            for fault in faults:
                if fault.due_s <= now_s and (fault.name == "unplugged" or fault.name not in AT_LAUNCH + BEFORE_OPTIONS):
                    faults.remove(fault)
                    if faults is self._ordered and fault.name != "unplugged":
                        self._strike_out(now_s)
                    return fault
        return None

    def _strike_out(self, now_s: float) -> None:
        assert self._control is not None
        self._control_text = ",".join(
            f"{fault.name}@{max(0.0, fault.due_s - now_s):g}" + (f":{fault.argument}" if fault.argument else "")
            for fault in self._ordered
        )
        fresh = self._control.with_name(f".{self._control.name}.{os.getpid()}")
        fresh.write_text(self._control_text)
        fresh.replace(self._control)


def refuse_everything(fault: str, program: str) -> None:
    if fault == "no-library":
        say(f"{program}: {NO_LIBRARY}")
        raise SystemExit(127)
    if fault == "no-driver":
        raise CameraError(NO_DRIVER)


def say_why_none(fault: str) -> None:
    """What libcamera says when it looks for cameras and may not."""
    if fault == "no-permission":
        where = f"{libcamera_stamp()} ERROR MediaDevice media_device.cpp:83"
        say(f"{where} Failed to open media device at /dev/media0: Permission denied")


def refuse_launch(fault: str) -> None:
    say_why_none(fault)
    if fault == "no-encoder":
        raise CameraError("Unable to find an appropriate H.264 codec")
    if fault in ("no-camera", "unplugged", "no-permission"):
        raise CameraError("no cameras available")
    if fault == "busy":
        say(f"{libcamera_stamp()}  INFO Camera camera.cpp:1031 Pipeline handler in use by another process")
        raise CameraError(f"failed to acquire camera {CAMERA_ID}")
