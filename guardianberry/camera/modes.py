"""Sensor modes: which one shows the whole scene, from what `rpicam-vid --list-cameras` prints.

Left alone, rpicam-vid takes the mode nearest to the frame's size. For 640x480 that is the middle of the scene: 15 % of
the area on Camera Module 2, and on Camera Module 3 44 % of what 4:3 could show.
"""

import re
from typing import NamedTuple

_CAMERA = re.compile(r"^\s*(\d+) : (.+?)(?: \(/.*\))?\s*$")
_SIZE = re.compile(r"\[(\d+)x(\d+)")
_FORMAT = re.compile(r"'(\w+)' :")  # SRGGB10_CSI2P: 10 bits, packed
_MODE = re.compile(r"(\d+)x(\d+) \[([\d.]+) fps - \(\d+, \d+\)/(\d+)x(\d+) crop\]")
# Views that differ by less than this are the same: sensors have borders of some pixels.
_SAME_VIEW = 0.99


class Mode(NamedTuple):
    width_px: int
    height_px: int
    bits: int
    packing: str  # P or U
    max_fps: float
    crop_width_px: int  # what it shows of the sensor
    crop_height_px: int

    def __str__(self) -> str:
        """As --mode wants it."""
        return f"{self.width_px}:{self.height_px}:{self.bits}:{self.packing}"

    def view_px2(self, width_px: int, height_px: int) -> float:
        """Area of the sensor that is seen in frames of this size: the mode's crop is cut to their shape."""
        width = min(self.crop_width_px, self.crop_height_px * width_px / height_px)
        return width * width * height_px / width_px


class Sensor(NamedTuple):
    number: int  # for --camera
    name: str
    width_px: int
    height_px: int
    modes: list[Mode]


def parse_sensors(listed: str) -> list[Sensor]:
    """The cameras of --list-cameras; of other text, or of another format, none."""
    sensors: list[Sensor] = []
    pixel_format = ""
    for line in listed.splitlines():
        if match := _CAMERA.match(line):
            size = _SIZE.search(match[2]) or ("", "0", "0")
            sensors.append(Sensor(int(match[1]), match[2], int(size[1]), int(size[2]), []))
            continue
        if match := _FORMAT.search(line):
            pixel_format = match[1]
        bits = re.search(r"\d+", pixel_format)
        if sensors and bits and (match := _MODE.search(line)):
            packing = "P" if pixel_format.endswith("P") else "U"
            crop_px = int(match[4]), int(match[5])
            mode = Mode(int(match[1]), int(match[2]), int(bits[0]), packing, float(match[3]), *crop_px)
            sensors[-1].modes.append(mode)
    return sensors


def mode_for(sensor: Sensor, width_px: int, height_px: int, frame_rate_fps: float) -> Mode | None:
    """The smallest mode with the largest view of those that are fast enough; None if none is.

    One at least as large as the frames is preferred, and of equal ones the one with more bits.
    """
    modes = [mode for mode in sensor.modes if mode.max_fps >= frame_rate_fps * 0.999]
    largest = max((mode.view_px2(width_px, height_px) for mode in modes), default=0)
    whole = [mode for mode in modes if mode.view_px2(width_px, height_px) >= largest * _SAME_VIEW]
    is_enough = [mode for mode in whole if mode.width_px >= width_px and mode.height_px >= height_px]
    if not is_enough:
        return max(whole, key=lambda mode: (mode.width_px * mode.height_px, mode.bits), default=None)
    return min(is_enough, key=lambda mode: (mode.width_px * mode.height_px, -mode.bits))
