"""The alert image: the frame of the first detection with its people boxed, on the disk in one step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from guardianberry.detector import Person
from guardianberry.filenames import PART_PREFIX
from guardianberry.mp4 import fsync_path

_BOX_COLOUR_BGR = (0, 0, 255)
_TEXT_COLOUR_BGR = (255, 255, 255)


def draw_people(frame_bgr: np.ndarray, people: Sequence[Person]) -> np.ndarray:
    """A copy of the frame with each person boxed and labelled "Person" and the score in per cent."""
    picture = frame_bgr.copy()
    for person in people:
        x1, y1, x2, y2 = (round(value) for value in person[:4])
        cv2.rectangle(picture, (x1, y1), (x2, y2), _BOX_COLOUR_BGR, 2)
        label = f"Person {round(100 * person.confidence)} %"
        (text_width, text_height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        # Who is cut off by the picture's edge keeps the label inside.
        top = max(y1, text_height + 6)
        left = max(0, min(x1, picture.shape[1] - text_width - 4))
        cv2.rectangle(picture, (left, top - text_height - 6), (left + text_width + 4, top), _BOX_COLOUR_BGR, cv2.FILLED)
        cv2.putText(
            picture, label, (left + 2, top - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _TEXT_COLOUR_BGR, 1, cv2.LINE_AA
        )
    return picture


def save_alert_image(path: Path, frame_bgr: np.ndarray, people: Sequence[Person], *, jpeg_quality: int) -> None:
    """Write the boxed frame as JPEG: `path` is either not there or complete, after a power cut too. Raises OSError."""
    encoded, jpeg = cv2.imencode(".jpg", draw_people(frame_bgr, people), [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    if not encoded:
        raise OSError("OpenCV could not encode the picture as JPEG")
    part = path.with_name(PART_PREFIX + path.name)
    try:
        with part.open("wb") as file:
            file.write(jpeg.tobytes())
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        fsync_path(path.parent)
    finally:
        part.unlink(missing_ok=True)
