"""Sensor modes: the whole scene, whatever the camera module."""

from __future__ import annotations

import sys

import pytest

from guardianberry.camera.command import choose_sensor
from guardianberry.camera.modes import Sensor, mode_for, parse_sensors
from tests.daemon import ROOT

sys.path.insert(0, str(ROOT / "demo"))

from stand_in_camera.sensors import SENSORS, list_cameras

EIGHT_BITS = """\
0 : imx219 [3280x2464 10-bit RGGB] (/base/soc/i2c0mux/i2c@1/imx219@10)
    Modes: 'SRGGB10_CSI2P' : 640x480 [206.65 fps - (1000, 752)/1280x960 crop]
                             1640x1232 [41.85 fps - (0, 0)/3280x2464 crop]
           'SRGGB8' : 640x480 [206.65 fps - (1000, 752)/1280x960 crop]
                      1640x1232 [41.85 fps - (0, 0)/3280x2464 crop]

1 : imx708_wide_noir [4608x2592 10-bit RGGB] (/base/soc/i2c0mux/i2c@0/imx708@1a)
    Modes: 'SRGGB10_CSI2P' : 1536x864 [120.13 fps - (768, 432)/3072x1728 crop]
                             2304x1296 [56.03 fps - (0, 0)/4608x2592 crop]
"""


def sensor(name: str) -> Sensor:
    (found,) = parse_sensors(list_cameras(name))
    return found


@pytest.mark.parametrize(
    ("name", "size", "frame_rate_fps", "mode", "share_percent"),
    [
        ("imx219", (640, 480), 10, "1640:1232:10:P", 100),
        ("imx219", (640, 360), 10, "1640:1232:10:P", 75),
        ("imx219", (1920, 1080), 30, "1640:1232:10:P", 75),
        ("imx219", (1920, 1080), 15, "3280:2464:10:P", 75),
        ("imx219", (640, 480), 100, "640:480:10:P", 15),
        ("imx477", (640, 480), 10, "2028:1520:12:P", 100),
        ("imx708", (640, 480), 10, "2304:1296:10:P", 75),
        ("imx708", (640, 360), 10, "2304:1296:10:P", 100),
        ("ov5647", (640, 480), 10, "1296:972:10:P", 100),
    ],
)
def test_the_smallest_mode_with_the_whole_view_is_taken(name, size, frame_rate_fps, mode, share_percent) -> None:
    found = sensor(name)
    taken = mode_for(found, *size, frame_rate_fps)
    assert str(taken) == mode
    assert round(100 * taken.view_px2(*size) / (found.width_px * found.height_px)) == share_percent


def test_no_mode_is_fast_enough_for_every_rate() -> None:
    assert mode_for(sensor("ov5647"), 640, 480, 90) is None
    assert mode_for(parse_sensors("0 : imx219 (/base)")[0], 640, 480, 10) is None


def test_more_bits_are_better_and_the_camera_asked_for_is_taken() -> None:
    first = choose_sensor(EIGHT_BITS, ())
    assert [mode.bits for mode in first.modes] == [10, 10, 8, 8]
    assert str(mode_for(first, 640, 480, 10)) == "1640:1232:10:P"
    for options in (("--camera", "1"), ("--hflip", "--camera=1")):
        second = choose_sensor(EIGHT_BITS, options)
        assert second.name == "imx708_wide_noir [4608x2592 10-bit RGGB]"
        assert (second.width_px, second.height_px, len(second.modes)) == (4608, 2592, 2)
    assert choose_sensor(EIGHT_BITS, ("--camera", "2")) is None


@pytest.mark.parametrize(
    "text", ["", "No cameras available!\n", "ERROR: *** no ***\n", "\x1b[31m0 : \n", "'SRGGB10' :"]
)
def test_other_text_has_no_cameras(text) -> None:
    assert parse_sensors(text) == []


def test_every_sensor_of_the_stand_in_is_understood() -> None:
    for name, (size, _, modes) in SENSORS.items():
        found = sensor(name)
        assert found.name == f"{name} [{size}]"
        assert len(found.modes) == len(modes)
