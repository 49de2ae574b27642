"""The live lane: parts of a clip that is being recorded, in order, once, and never beside an alert."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guardianberry.upload.errors import CUT, UploadError
from guardianberry.upload.live import PART_LIMIT_S, LiveClip, LiveLane
from guardianberry.upload.upload_file import event_uuid
from tests.faulty_proxy import Answer, FaultyProxy
from tests.raw_server import DONE, RawServer, read_body
from tests.s3_server import S3Server
from tests.upload_rig import SERIAL, jpeg, wait_until
from tests.upload_rig import Rig as UploadRig

START = 1_700_000_000


class Bucket:
    """Takes the objects of one event after the other at a rate, and fails when told to."""

    def __init__(self, bytes_per_s: float = 1e9) -> None:
        self.event_id = START
        self.objects: dict[str, bytes] = {}  # of this event
        self.tries: list[str] = []
        self.faults: list[Callable[[str, bytes], None]] = []
        self._bytes_per_s = bytes_per_s

    def put(self, event_id: int, number: int, suffix: str, content: bytes) -> None:
        name = f"{number:04}{suffix}"
        if event_id != self.event_id:
            self.event_id, self.objects = event_id, {}
        self.tries.append(name)
        time.sleep(len(content) / self._bytes_per_s)
        if self.faults:
            self.faults.pop(0)(name, content)
        assert name not in self.objects or self.objects[name] == content, "the same key never gets other bytes"
        self.objects[name] = content

    def joined(self) -> bytes:
        return b"".join(self.objects[name] for name in sorted(self.objects) if name.endswith(".part"))


class Rig:
    def __init__(self, folder: Path, bucket: Bucket, *, may_upload: Callable[[], bool] = lambda: True) -> None:
        self.path = folder / ".open-clip.mp4"
        self.path.touch()
        self.pictures = 0
        self.use(bucket, may_upload=may_upload)

    def use(self, bucket: Bucket, *, may_upload: Callable[[], bool] = lambda: True) -> None:
        self.bucket, self.lane = bucket, LiveLane(bucket.put, may_upload=may_upload)
        self.lane.thread.start()

    def begin(self, event_id: int = START) -> LiveClip:
        return self.lane.begin(event_id, os.open(self.path, os.O_RDONLY), self._picture)

    def write(self, content: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(content)

    def _picture(self) -> bytes:
        self.pictures += 1
        return b"\xff\xd8\xff" + b"p" * 20_000


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guardianberry.upload.live.PART_EVERY_S", 0.05)
    rig = Rig(tmp_path, Bucket())
    yield rig
    rig.lane.stop()


def lose_reply(rig: Rig) -> Callable[[str, bytes], None]:
    def fault(name: str, content: bytes) -> None:
        rig.bucket.objects[name] = content
        raise UploadError(CUT, "the reply was lost")

    return fault


def fail(name: str, content: bytes) -> None:
    raise UploadError(CUT, "HTTP 500")


def test_parts_in_order_are_the_file_and_nothing_is_there_twice(rig: Rig):
    rig.bucket.faults = [fail, lose_reply(rig), fail]
    clip = rig.begin()
    written = b""
    for number in range(8):
        piece = bytes([number]) * 50_000
        rig.write(piece)
        written += piece
        time.sleep(0.1)
    wait_until(lambda: rig.bucket.joined() == written, what="the parts")
    clip.end()
    assert sorted(rig.bucket.objects) == [f"{n:04}.part" for n in range(len(rig.bucket.objects))]


def test_after_the_end_no_byte_is_read_any_more(rig: Rig):
    rig.write(b"a" * 1000)
    clip = rig.begin()
    wait_until(lambda: rig.bucket.joined() == b"a" * 1000, what="the parts")
    clip.end()
    rig.write(b"rewritten head")
    time.sleep(0.3)
    assert rig.bucket.joined() == b"a" * 1000
    assert clip.read(0, 10) == b""


def test_the_file_may_be_renamed_meanwhile(rig: Rig, tmp_path: Path):
    rig.write(b"a" * 1000)
    clip = rig.begin()
    rig.path = rig.path.rename(tmp_path / ".open-other-name.mp4")
    rig.write(b"b" * 1000)
    wait_until(lambda: rig.bucket.joined() == b"a" * 1000 + b"b" * 1000, what="the parts")
    clip.end()


def test_on_a_slow_uplink_pictures_go_between_the_parts(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guardianberry.upload.live.PICTURE_EVERY_S", 0.3)
    monkeypatch.setattr("guardianberry.upload.live.LATE_S", 0.5)
    monkeypatch.setattr("guardianberry.upload.live.PART_LIMIT_S", 0.2)
    rig.use(Bucket(bytes_per_s=100_000))
    clip = rig.begin()
    written = b""
    for number in range(20):
        piece = bytes([number]) * 50_000  # ten times what the uplink takes
        rig.write(piece)
        written += piece
        time.sleep(0.1)
    wait_until(lambda: "0001.jpg" in rig.bucket.objects, what="the parts")
    clip.end()
    assert written.startswith(rig.bucket.joined())
    assert rig.bucket.joined()
    parts = sorted(name for name in rig.bucket.objects if name.endswith(".part"))
    assert parts == [f"{n:04}.part" for n in range(len(parts))], "pictures leave no gap in the numbers of the parts"


def test_nothing_is_uploaded_before_the_clock_is_set(tmp_path: Path):
    bucket, is_set = Bucket(), threading.Event()
    rig = Rig(tmp_path, bucket, may_upload=is_set.is_set)
    rig.write(b"a" * 1000)
    clip = rig.begin()
    time.sleep(0.3)
    assert bucket.tries == []
    is_set.set()
    wait_until(lambda: bucket.joined() == b"a" * 1000, what="the parts")
    clip.end()
    rig.lane.stop()


def test_the_next_clip_takes_the_lane(rig: Rig, tmp_path: Path):
    rig.write(b"a" * 1000)
    first = rig.begin()
    wait_until(lambda: rig.bucket.joined() == b"a" * 1000, what="the parts")
    rig.bucket.objects.clear()
    rig.path = tmp_path / ".open-next.mp4"
    rig.path.touch()
    rig.write(b"b" * 500)
    rig.begin()
    wait_until(lambda: rig.bucket.joined() == b"b" * 500, what="the parts")
    assert not first.ended


def test_a_part_that_fails_is_not_tried_once_the_clip_has_ended(rig: Rig):
    rig.bucket.faults = [fail] * 1000
    rig.write(b"a" * 1000)
    clip = rig.begin()
    wait_until(lambda: len(rig.bucket.tries) >= 3, what="several tries")
    clip.end()
    time.sleep(0.2)  # one may be under way
    tries = len(rig.bucket.tries)
    time.sleep(0.5)
    assert len(rig.bucket.tries) == tries


def test_the_first_part_of_each_event_is_small_and_the_next_ones_are_what_the_uplink_takes(rig: Rig):
    rig.use(Bucket(bytes_per_s=200_000))
    rig.write(b"a" * 700_000)

    def sizes(event_id: int) -> list[int]:
        clip = rig.begin(event_id)
        wait_until(lambda: rig.bucket.event_id == event_id and len(rig.bucket.joined()) > 300_000, what="the parts")
        clip.end()
        return [len(rig.bucket.objects[name]) for name in sorted(rig.bucket.objects) if name.endswith(".part")]

    for event_id in (START, START + 60):  # before the second one the lane knows that the uplink takes more
        first, *others = sizes(event_id)
        assert first == 64 * 1024
        assert first < max(others) <= 200_000 * PART_LIMIT_S


def test_no_part_is_tried_while_an_alert_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guardianberry.upload.pauses._PAUSED_BLOCK_S", 0.05)  # else one that is begun waits at its body
    heads: list[bytes] = []
    is_stored = threading.Event()

    def answer(connection: socket.socket, head: bytes) -> None:
        read_body(connection, head)
        if b"/live/" in head:
            heads.append(head)
        else:
            is_stored.wait(30)
        connection.sendall(DONE)

    with RawServer(answer) as server:
        rig = UploadRig(tmp_path / "queue", monkeypatch, url=server.url, name="live.alert")
        uploader, film = rig.start(), Rig(tmp_path, Bucket())
        uploader.offer_alert("1700000001-81-640-480.jpg", jpeg(), frame_arrival_s=time.monotonic())
        wait_until(lambda: server.connections, what="the alert")
        film.write(b"a" * 1000)
        clip = uploader.live.begin(START, os.open(film.path, os.O_RDONLY), lambda: None)
        time.sleep(0.5)
        assert heads == []
        is_stored.set()
        wait_until(lambda: heads, what="a part")
        clip.end()
        rig.close()


def test_it_leaves_no_descriptor_and_no_thread_behind(rig: Rig):
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):  # the newer clip takes the lane, some before the lane has seen the one before
        rig.write(b"a" * 1000)
        clip = rig.begin()
    wait_until(lambda: rig.bucket.tries, what="a part")
    clip.end()
    wait_until(lambda: set(os.listdir("/proc/self/fd")) <= before, what="the descriptors are closed")
    rig.lane.stop()
    rig.lane.thread.join(5)
    assert not rig.lane.thread.is_alive()


# What S3 and the network on the way to it do in mid-part

FAULTS: dict[str, dict[str, object]] = {
    "cut": {"cut_after_bytes": 8_000},
    "stall": {"stall_after_bytes": 8_000},
    "500": {"refused_text": b"/live/", "refusal": Answer(500, "InternalError")},
    "503": {"refused_text": b"/live/", "refusal": Answer(503, "SlowDown")},
    "expired": {"refused_text": b"/live/", "refusal": Answer(400, "ExpiredToken")},
    "lost reply": {"replies_to_lose": 2},
}
REQUESTS = {"stall": 1, "expired": 1}  # of one try that fails; of the others boto3 makes two
HEALTHY = {"cut_after_bytes": None, "stall_after_bytes": None, "refused_text": b"", "replies_to_lose": 0}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_mid_part_costs_that_part_at_most_and_neither_clip_nor_alert(
    fault: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardianberry.upload.live.PART_EVERY_S", 0.1)
    if fault == "stall":  # longer than the test takes
        monkeypatch.setattr("guardianberry.upload.transport._CONNECT_TIMEOUT_S", 100.0)
        monkeypatch.setattr("guardianberry.upload.pauses._PAUSED_BLOCK_S", 0.05)
    with FaultyProxy(s3.port) as proxy:
        rig = UploadRig(tmp_path / "queue", monkeypatch, url=proxy.url, name=f"live.{fault.replace(' ', '')}")
        s3.create_bucket(rig.images_bucket, rig.videos_bucket)
        uploader, film = rig.start(), Rig(tmp_path, Bucket())
        live = f"live/{event_uuid(SERIAL, START)}/"

        def joined() -> bytes:
            objects = {each.key: each.body for each in s3.objects(rig.videos_bucket, everything=True)}
            parts = sorted(key for key in objects if key.startswith(live))
            assert parts == [f"{live}{number:04}.part" for number in range(len(parts))]
            return b"".join(objects[key] for key in parts)

        film.write(os.urandom(50_000))
        clip = uploader.live.begin(START, os.open(film.path, os.O_RDONLY), lambda: None)
        wait_until(lambda: len(joined()) == 50_000, what="the first part")
        tries = len(proxy.heads)
        vars(proxy).update(FAULTS[fault])
        film.write(os.urandom(50_000))
        wait_until(lambda: len(proxy.heads) >= tries + REQUESTS.get(fault, 2), what="the fault")
        if fault == "lost reply":
            wait_until(lambda: proxy.lost_replies == 2, what="the loss")
        vars(proxy).update(HEALTHY)
        alert = rig.alert(uploader, START + 1)
        wait_until(lambda: s3.keys(rig.images_bucket) and not alert.exists(), what="the alert")
        if fault != "stall":
            wait_until(lambda: joined() == film.path.read_bytes(), what="the other parts")
        clip.end()
        rig.add_video(START)
        uploader.sweep_soon()
        wait_until(lambda: any(key.endswith(".mp4") for key in s3.keys(rig.videos_bucket)), what="the clip")
        assert film.path.read_bytes().startswith(joined())
        rig.close()
