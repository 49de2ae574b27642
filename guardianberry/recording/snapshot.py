"""The alert image: the frame of the first detection, with the people boxed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from guardianberry.detection.detector import Person

JPEG_QUALITY = 85  # 0 to 100; 50 to 80 kB a picture, which a 300 kbit/s uplink sends in 2 s
_BOX_COLOUR_BGR = (0, 0, 255)
_TEXT_COLOUR_BGR = (255, 255, 255)
_TEXT_SCALE = 2
_LABEL_MARGIN_PX = 3
# What a label is made of, 5x7 dots, a row a number. OpenCV 5 unpacks its fonts at the first text: 8.5 MB for good, and
# 24 ms of the first alert.
_GLYPHS = {
    "P": (0b11110, 0b10001, 0b10001, 0b11110, 0b10000, 0b10000, 0b10000),
    "e": (0b00000, 0b00000, 0b01110, 0b10001, 0b11111, 0b10000, 0b01110),
    "r": (0b00000, 0b00000, 0b10110, 0b11001, 0b10000, 0b10000, 0b10000),
    "s": (0b00000, 0b00000, 0b01111, 0b10000, 0b01110, 0b00001, 0b11110),
    "o": (0b00000, 0b00000, 0b01110, 0b10001, 0b10001, 0b10001, 0b01110),
    "n": (0b00000, 0b00000, 0b10110, 0b11001, 0b10001, 0b10001, 0b10001),
    " ": (0, 0, 0, 0, 0, 0, 0),
    "%": (0b11000, 0b11001, 0b00010, 0b00100, 0b01000, 0b10011, 0b00011),
    "0": (0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110),
    "1": (0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110),
    "2": (0b01110, 0b10001, 0b00001, 0b00010, 0b00100, 0b01000, 0b11111),
    "3": (0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110),
    "4": (0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010),
    "5": (0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110),
    "6": (0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110),
    "7": (0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000),
    "8": (0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110),
    "9": (0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100),
}
_GLYPH_WIDTH = 5


def draw_people(frame_bgr: np.ndarray, people: Sequence[Person]) -> np.ndarray:
    """A copy of the frame with each person boxed and labelled "Person" and the score in per cent."""
    picture = frame_bgr.copy()
    for person in people:
        x1, y1, x2, y2 = (round(value) for value in person[:4])
        cv2.rectangle(picture, (x1, y1), (x2, y2), _BOX_COLOUR_BGR, 2)
        label = _label(f"Person {round(100 * person.confidence)} %")
        # Who is cut off by the picture's edge keeps the label inside.
        top = min(max(0, y1 - len(label)), max(0, picture.shape[0] - len(label)))
        left = max(0, min(x1, picture.shape[1] - label.shape[1]))
        place = picture[top : top + len(label), left : left + label.shape[1]]
        place[:] = label[: place.shape[0], : place.shape[1]]
    return picture


def _label(text: str) -> np.ndarray:
    """The text as a uint8 BGR picture, white on the boxes' colour."""
    spaced = _GLYPH_WIDTH + 1
    dots = np.zeros((7, spaced * len(text)), bool)
    for place, character in enumerate(text):
        for row, bits in enumerate(_GLYPHS[character]):
            for column in range(_GLYPH_WIDTH):
                dots[row, place * spaced + column] = bits >> (_GLYPH_WIDTH - 1 - column) & 1
    dots = np.pad(dots.repeat(_TEXT_SCALE, 0).repeat(_TEXT_SCALE, 1), _LABEL_MARGIN_PX)
    return np.where(dots[:, :, None], _TEXT_COLOUR_BGR, _BOX_COLOUR_BGR).astype(np.uint8)


def alert_jpeg(frame_bgr: np.ndarray, people: Sequence[Person]) -> bytes:
    """The frame as JPEG, with each person boxed."""
    encoded, jpeg = cv2.imencode(".jpg", draw_people(frame_bgr, people), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise ValueError("OpenCV cannot encode this picture as JPEG")
    return jpeg.tobytes()
