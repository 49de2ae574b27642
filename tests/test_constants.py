"""The relations between the constants: the defaults hold them, and each breach is named."""

import re
from pathlib import Path

import pytest

import detect_and_upload as script
from guardianberry.settings import find_problems

_TEXT = Path(script.__file__).read_text(encoding="utf-8")
SETTINGS = re.findall(r"^([A-Z_]+) = ", _TEXT[: _TEXT.index("HERE = ")], re.MULTILINE)


def without(name: str) -> dict[str, object]:
    return {one: value for one, value in vars(script).items() if one != name}


def broken(**changes) -> list[str]:
    return find_problems(vars(script) | changes)


def test_the_defaults_are_sound():
    assert find_problems(vars(script)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONF_THRES", 0),
        ("CONF_THRES", 25.5),
        ("IOU_THRES", 1.1),
        ("MAX_DET", 0),
        ("DETECTIONS_TO_START", 0),
        ("DETECTIONS_TO_START", 6),
        ("PERSON_GONE_AFTER_S", -1),
        ("PRE_ROLL_S", script.MAX_RECORDING_DURATION_S / 2 + 1),
        ("MIN_GAP_BETWEEN_VIDEO_START_S", script.MAX_RECORDING_DURATION_S - 1),
        ("FRAME_WIDTH_PX", 641),
        ("IGNORE_ZONES", ((0, 0), (0.3, 0), (0.3, 1))),  # one polygon, not a list of them
        ("IGNORE_ZONES", (((0, 0), (0.3, 0)),)),
        ("IGNORE_ZONES", (((0, 0), (300, 0), (300, 400)),)),  # pixels
        ("IGNORE_ZONES", None),
        ("FRAME_HEIGHT_PX", 2),
        ("INFERENCE_AT_LEAST_EVERY_S", script.MAX_RECORDING_DURATION_S + 1),
        ("DETECTOR_INPUT_WIDTH_PX", 0),
        ("FRAME_RATE_FPS", 0.0001),
        ("FRAME_HEIGHT_PX", 4098),
        ("BITRATE_BPS", 100_000),
        ("CAMERA_OPTIONS", ("--rotation 180",)),
        ("CAMERA_OPTIONS", ("rotation", "180")),
        ("CAMERA_OPTIONS", ("--hflip", "--")),
        ("CAMERA_OPTIONS", ("--hflip", "")),
        ("CAMERA_OPTIONS", ("--tuning-file", "a\0b")),
        ("CAMERA_OPTIONS", ("--out", "/tmp/film")),
        ("CAMERA_OPTIONS", ("--mode", "640:480")),
        ("STREAM_URL", "rtsp://127.0.0.1:8888"),
        ("STREAM_URL", "tcp://127.0.0.1:88888"),
        ("VIDEOS_BUCKET", "s3://my-videos"),
        ("IMAGES_BUCKET", ""),
        ("VIDEOS_BUCKET", script.IMAGES_BUCKET),
        ("MIN_FREE_DISK_BYTES", -1),
        ("CAMERA_NAME", "Haustür"),
        ("CAMERA_NAME", "x" * 41),
        ("CAMERA_NAME", "a\r\nb"),
        ("HEARTBEAT_S", 59),
        ("HEARTBEAT_S", 86_400),
        ("ARMED_HOURS", "mon-fry 08:00-17:00"),
    ],
)
def test_each_breach_is_named(name, value):
    assert any(name in advice for advice in broken(**{name: value}))


@pytest.mark.parametrize(
    "options",
    [
        ("--rotation", "180"),
        ["--hflip", "--vflip"],
        ("--roi", "0.25,0.25,0.5,0.5", "--ev", "-0.5", "--autofocus-mode", "manual", "--lens-position", "0"),
        ("--tuning-file", "/usr/share/libcamera/ipa/rpi/vc4/imx219_noir.json", "--flicker-period", "10000us"),
    ],
)
def test_camera_options_that_owners_need_are_taken(options):
    assert broken(CAMERA_OPTIONS=options) == []


def test_a_larger_picture_needs_a_higher_bit_rate():
    assert broken(FRAME_WIDTH_PX=1920, FRAME_HEIGHT_PX=1080, FRAME_RATE_FPS=30, BITRATE_BPS=4_000_000) == []
    (problem,) = broken(FRAME_WIDTH_PX=1920, FRAME_HEIGHT_PX=1080, FRAME_RATE_FPS=30)
    assert "at least 3110400" in problem


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("CONF_THRES", "0.3", "CONF_THRES must be a number, and is '0.3'"),
        ("PRE_ROLL_S", None, "PRE_ROLL_S must be a number, and is None"),
        ("MAX_DET", 7.5, "MAX_DET must be a whole number, and is 7.5"),
        ("WEIGHTS", None, "WEIGHTS must be text in quotes, and is None"),
        *(
            (
                "CAMERA_OPTIONS",
                value,
                f'CAMERA_OPTIONS must be words in quotes, like ("--rotation", "180"), and is {value!r}',
            )
            for value in ("--hflip", ("--rotation", 180), None)
        ),
    ],
)
def test_a_wrong_type_is_named_and_no_traceback(name, value, advice):
    assert broken(**{name: value}) == [advice]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_missing_constant_is_named_with_the_one_that_it_may_be(name):
    assert find_problems(without(name)) == [f"{name} is missing"]
    wrong = name.replace("E", "ES", 1)
    assert find_problems(without(name) | {wrong: getattr(script, name)}) == [
        f"{name} is missing: is it {wrong}, spelt wrong?"
    ]


def test_every_constant_has_a_type():
    """But SERVER_SIDE_ENCRYPTION, which may be None."""
    unknown = {name for name in SETTINGS if not any(name in advice for advice in broken(**{name: object()}))}
    assert unknown == {"SERVER_SIDE_ENCRYPTION"}
