"""The relations between the constants: the defaults hold them, and each breach is named."""

import pytest

import detect_and_upload as script
from guardianberry.constants import find_problems


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
        ("DETECTIONS_TO_START", script.DETECTION_WINDOW_LOOKS + 1),
        ("PERSON_GONE_AFTER_S", -1),
        ("PRE_ROLL_S", script.MAX_RECORDING_DURATION_S / 2 + 1),
        ("MIN_GAP_BETWEEN_VIDEO_START_S", script.MAX_RECORDING_DURATION_S - 1),
        ("FRAME_WIDTH_PX", 641),
        ("FRAME_HEIGHT_PX", 2),
        ("MAX_BLIND_S", script.MAX_RECORDING_DURATION_S + 1),
        ("DETECTOR_INPUT_WIDTH_PX", 0),
        ("FRAME_RATE_FPS", 0.0001),
        ("KEY_FRAME_INTERVAL_FRAMES", script.FRAME_RATE_FPS + 1),
        ("BITRATE_BPS", 4),
        ("CAMERA_STALL_S", 0.5),
        ("LOOP_STALL_S", 1),
        ("LOOP_TICK_S", 2),
        ("VIDEOS_BUCKET", script.IMAGES_BUCKET),
        ("MIN_FREE_DISK_BYTES", -1),
        ("JPEG_QUALITY", 101),
    ],
)
def test_each_breach_is_named(name, value):
    assert any(name in advice for advice in broken(**{name: value}))


def test_a_number_in_quotes_is_no_traceback():
    (advice,) = broken(CONF_THRES="0.3")
    assert "wrong type" in advice
