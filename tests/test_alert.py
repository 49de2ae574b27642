"""The alert image: what is drawn."""

import cv2
import numpy as np

from guardianberry.detection.detector import Person
from guardianberry.recording.snapshot import alert_jpeg, draw_people

FRAME = np.full((480, 640, 3), 90, np.uint8)
PEOPLE = [Person(100.2, 50.7, 200.0, 400.0, 0.87), Person(-3.0, 0.0, 60.0, 470.0, 0.3)]


def test_people_are_boxed_on_a_copy():
    before = FRAME.copy()
    picture = draw_people(FRAME, PEOPLE)
    assert (before == FRAME).all()
    assert (picture[225, 100] == (0, 0, 255)).all(), "no box around the first person"
    assert (picture[225, 60] == (0, 0, 255)).all(), "no box around the second person"
    assert (picture[225, 150] == 90).all(), "the person itself is painted over"
    assert (picture[:20, 4:60] != 90).any(), "a person at the upper edge has no label"


def test_a_label_at_the_right_edge_can_be_read_whole():
    inside = draw_people(FRAME, [Person(400.0, 200.0, 440.0, 300.0, 0.37)])
    at_the_edge = draw_people(FRAME, [Person(620.0, 200.0, 639.0, 300.0, 0.37)])
    white = [(picture[180:200] > 200).all(axis=2).sum() for picture in (inside, at_the_edge)]
    assert white[0] == white[1] > 50


def test_the_image_is_a_jpeg_of_the_frame():
    jpeg = np.frombuffer(alert_jpeg(FRAME, PEOPLE), np.uint8)
    assert cv2.imdecode(jpeg, cv2.IMREAD_COLOR).shape == FRAME.shape
