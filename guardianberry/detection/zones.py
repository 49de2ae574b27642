"""Parts of the picture that do not count: the street, a neighbour's door. Polygons in fractions of the picture."""

from collections.abc import Sequence

import cv2
import numpy as np

from guardianberry.detection.postprocess import Person

_COLOUR_BGR = (255, 128, 0)

Zone = Sequence[tuple[float, float]]  # (x, y) from 0 to 1, from the top left corner; at least three


def outside(zones: Sequence[Zone], people: Sequence[Person], width_px: int, height_px: int) -> list[Person]:
    """`people` less those who stand in a zone: the middle of the box's lower edge is where the feet are."""
    polygons = _in_pixels(zones, width_px, height_px)

    def counts(person: Person) -> bool:
        feet = ((person.x1 + person.x2) / 2, person.y2)
        return all(cv2.pointPolygonTest(polygon, feet, measureDist=False) < 0 for polygon in polygons)

    return [person for person in people if counts(person)]


def outline(picture_bgr: np.ndarray, zones: Sequence[Zone]) -> None:
    """Draw the zones into the picture."""
    height_px, width_px = picture_bgr.shape[:2]
    polygons = [polygon.astype(np.int32) for polygon in _in_pixels(zones, width_px, height_px)]
    cv2.polylines(picture_bgr, polygons, isClosed=True, color=_COLOUR_BGR, thickness=2)


def _in_pixels(zones: Sequence[Zone], width_px: int, height_px: int) -> list[np.ndarray]:
    return [np.array(zone, np.float32) * np.array([width_px, height_px], np.float32) for zone in zones]
