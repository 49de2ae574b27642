"""The best and the newest view of a person in an event, and the file and object of the best one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from guardianberry.detection.postprocess import Person
from guardianberry.filenames import BestName, parse, parse_held
from guardianberry.recording.recorder import Inference
from guardianberry.recording.snapshot import Views
from guardianberry.upload.upload_file import event_uuid
from tests.s3_server import S3Server
from tests.upload_rig import SERIAL, Rig, jpeg

FAR = Person(300, 200, 320, 260, 0.9)
NEAR = Person(200, 100, 300, 400, 0.6)
CUT = Person(0, 50, 250, 479, 0.95)


class FakeFrame(NamedTuple):
    bgr: np.ndarray = np.zeros((480, 640, 3), np.uint8)

    def luma(self) -> np.ndarray:
        return self.bgr[:, :, 0]


def seen(*people: Person) -> Inference:
    return Inference(0.0, [person.confidence for person in people], frame=FakeFrame(), people=list(people))


@pytest.mark.parametrize(
    ("views", "best"),
    [
        ([(FAR,), (NEAR,), (FAR,)], 1),
        ([(CUT,), (FAR,), (CUT,)], 1),  # a whole person, however small, rather than half a large one
        ([(CUT,)], 0),
        ([(), (FAR,), ()], 1),
        ([(FAR, CUT), (NEAR,)], 1),
        ([(NEAR,), (NEAR._replace(confidence=0.5),)], 0),
    ],
)
def test_the_best_view_is_whole_then_large_and_sure(views, best):
    inferences, remembered = [seen(*people) for people in views], Views()
    for inference in inferences:
        remembered.add(inference)
    assert remembered.best is inferences[best]


def test_the_newest_view_is_given_once():
    views = Views()
    assert views.newest_jpeg() is None
    views.add(seen(FAR))
    views.add(seen())
    picture = views.newest_jpeg()
    assert picture is not None
    assert picture.startswith(b"\xff\xd8\xff")
    assert views.newest_jpeg() is None


def test_its_name_comes_back_and_is_no_images():
    name = BestName(1_700_000_000, 88, 640, 480)
    assert parse(name.encode()) == name
    held = parse_held(f".held-0123abcd-5000-{name.encode()}")
    assert held is not None
    assert held.name == name


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


def test_it_goes_once_to_the_videos_bucket_under_its_event(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path, monkeypatch, url=s3.url, name="best")
    s3.create_bucket(rig.images_bucket, rig.videos_bucket)
    (rig.videos / BestName(1_700_000_123, 88, 640, 480).encode()).write_bytes(jpeg())
    rig.add_video(1_700_000_123)
    rig.start()
    rig.wait_until_empty()
    rig.close()
    best = f"best/{event_uuid(SERIAL, 1_700_000_123)}.jpg"
    assert best in s3.keys(rig.videos_bucket)
    assert len(s3.keys(rig.videos_bucket)) == 2
    assert s3.keys(rig.images_bucket) == set(), "nobody is alerted"
    assert "not an event's" not in caplog.text
