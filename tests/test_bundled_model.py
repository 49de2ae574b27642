"""The model that is shipped: whole, small, and good enough to find the people of the demo."""

import hashlib
from pathlib import Path

import pytest

from bench import offline
from guardianberry.detection.detector import Detector
from guardianberry.detection.weights import BUNDLED, find_graph
from tests.daemon import ROOT, install_models

FILES = [ROOT / "models" / Path(BUNDLED).with_suffix(suffix) for suffix in (".xml", ".bin")]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = install_models(tmp_path_factory.mktemp("bundled") / "models")
    return Detector(
        find_graph(BUNDLED, folder),
        frame_width_px=640,
        frame_height_px=480,
        input_width_px=416,
        conf_thres=0.255,
        iou_thres=0.45,
        max_det=100,
    )


def test_the_files_are_those_whose_sums_stand_beside_them():
    lines = FILES[0].with_suffix(".sha256").read_text().splitlines()
    assert lines == [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in FILES]


def test_they_are_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in FILES) <= 4_000_000


def test_it_says_its_own_name(detector):
    assert detector.model_name == BUNDLED


def test_it_finds_the_people_of_the_demo_and_nobody_in_its_empty_room(detector):
    """By hand: somebody is whole in the picture from 8 to 10 s and from 23 to 25 s, nobody before 4 s."""
    found = [
        (frame.arrival_s, detector.find_people(frame.bgr)) for frame in offline.frames(offline.SCENE, frame_rate_fps=5)
    ]
    assert not [people for at_s, people in found if at_s < 4 and people]
    for start_s, end_s in ((8, 10), (23, 25)):
        seen = [bool(people) for at_s, people in found if start_s <= at_s < end_s]
        assert sum(seen) >= 0.9 * len(seen) > 0
