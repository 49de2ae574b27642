"""Pictures of an event, with the people boxed: the alert image, the best view of a person, the newest one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from guardianberry.detection.detector import Person

if TYPE_CHECKING:
    from guardianberry.recording.recorder import Inference

JPEG_QUALITY = 85  # 0 to 100; 50 to 80 kB a picture, which a 300 kbit/s uplink sends in 2 s
LIVE_JPEG_QUALITY = 75  # a picture that goes out in place of video
EDGE_PX = 2  # a box that comes so close to the edge of the picture is of somebody whom it cuts
_BOX_COLOUR_BGR = (0, 0, 255)
_TEXT_COLOUR_BGR = (255, 255, 255)
_TEXT_SCALE = 2
_LABEL_MARGIN_PX = 3
# What a label is made of: 5x7 dots a character, a byte for each row, from the top. OpenCV 5 unpacks its fonts at the
# first text: 8.5 MB for good, and 24 ms of the first alert.
_CHARACTERS = "Person %0123456789"
_ROWS = bytes.fromhex(
    "1e11111e101010 00000e111f100e 00001619101010 00000f100e011e 00000e1111110e 00001619111111 "
    "00000000000000 18190204081303 0e11131519110e 040c040404040e 0e11010204081f 1f02040201110e "
    "02060a121f0202 1f101e0101110e 0608101e11110e 1f010204080808 0e11110e11110e 0e11110f01020c"
)


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
    glyphs = np.frombuffer(_ROWS, np.uint8).reshape(-1, 7)[[_CHARACTERS.index(character) for character in text]]
    dots = np.unpackbits(glyphs.T[:, :, None], axis=2)[:, :, 3:]  # row, character, column: the last 5 bits
    dots = np.pad(dots, ((0, 0), (0, 0), (0, 1))).reshape(len(dots), -1)
    dots = np.pad(dots.repeat(_TEXT_SCALE, 0).repeat(_TEXT_SCALE, 1), _LABEL_MARGIN_PX)
    return np.where(dots[:, :, None], _TEXT_COLOUR_BGR, _BOX_COLOUR_BGR).astype(np.uint8)


def alert_jpeg(frame_bgr: np.ndarray, people: Sequence[Person], *, quality: int = JPEG_QUALITY) -> bytes:
    """The frame as JPEG, with each person boxed."""
    encoded, jpeg = cv2.imencode(".jpg", draw_people(frame_bgr, people), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise ValueError("OpenCV cannot encode this picture as JPEG")
    return jpeg.tobytes()


class Views:
    """Views of a person in the current event. `add` is for the loop, `newest_jpeg` for another thread."""

    def __init__(self) -> None:
        self.best: Inference | None = None
        self._best_rank = (False, 0.0)
        self._newest: Inference | None = None

    def add(self, seen: Inference) -> None:
        """The best view is of a whole person rather than one whom the edge cuts, then of the largest and surest."""
        if not seen.people:
            return
        self._newest = seen
        height_px, width_px = seen.frame.luma().shape
        rank = max(_rank(person, width_px, height_px) for person in seen.people)
        if rank > self._best_rank:
            self.best, self._best_rank = seen, rank

    def newest_jpeg(self) -> bytes | None:
        """40 to 60 kB; None where nobody was seen since the last call."""
        seen, self._newest = self._newest, None
        return None if seen is None else alert_jpeg(seen.frame.bgr, seen.people, quality=LIVE_JPEG_QUALITY)


def _rank(person: Person, width_px: int, height_px: int) -> tuple[bool, float]:
    is_whole = person.x1 >= EDGE_PX and person.y1 >= EDGE_PX
    is_whole = is_whole and person.x2 <= width_px - EDGE_PX and person.y2 <= height_px - EDGE_PX
    return is_whole, (person.x2 - person.x1) * (person.y2 - person.y1) * person.confidence
