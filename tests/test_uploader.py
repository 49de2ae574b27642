"""The uploader on real files, against a moto server in a process of its own."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardianberry.filenames import ImageName, VideoName, parse
from guardianberry.upload.alert_lane import Alert
from guardianberry.upload.errors import Interrupted
from guardianberry.upload.pauses import Gate, backoff_s
from guardianberry.upload.queue import MediaType, QueuedFile, list_queued
from guardianberry.upload.upload_file import (
    OpenFile,
    UnfitError,
    event_uuid,
    header_value,
    local_time,
    metadata,
)
from tests.fakes import FakeClock
from tests.faulty_proxy import Answer, FaultyProxy
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.upload_rig import SERIAL, Rig, box, jpeg, lines, mp4, rig_of, wait_until, warnings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def rig(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Rig]:
    caplog.set_level(logging.DEBUG)
    with rig_of(s3, tmp_path, monkeypatch) as rig:
        yield rig


def uploaded_names(caplog: pytest.LogCaptureFixture) -> list[str]:
    """In the order in which S3 confirmed them."""
    return [line.split()[1].rstrip(":") for line in lines(caplog, logging.INFO) if ": uploaded" in line]


# What arrives


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_an_alert_image_arrives_as_the_contract_says(rig: Rig, s3: S3Server) -> None:
    content = jpeg(50_000)
    uploader = rig.start(camera_name="Front door")
    rig.alert(uploader, 1_700_000_000, content, arrival_s=time.monotonic() - 0.25)
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.images_bucket)
    latency_ms = stored.metadata.pop("alert_latency_ms")
    assert latency_ms.isdecimal()
    assert 250 <= int(latency_ms) < 20_000
    assert stored.metadata == {
        "rpi_serial_no": SERIAL,
        "camera_name": "Front door",
        "event": str(event_uuid(SERIAL, 1_700_000_000)),
        "local_time": "2023-11-14T23:13:20+01:00",
        "recording_start_time": "1700000000",
        "confidence": "81",
        "width": "640",
        "height": "480",
    }
    assert (stored.body, stored.content_type, stored.server_side_encryption) == (content, "image/jpeg", "AES256")
    assert stored.key.endswith(".jpg")
    assert uploader.counters().images == 1
    assert uploader.counters().worst_alert_latency_s >= 0.25


@pytest.mark.usefixtures("berlin")
def test_a_video_arrives_as_the_contract_says(rig: Rig, s3: S3Server) -> None:
    content = mp4(300_000)
    rig.add_video(1_700_000_000, content)
    rig.start()
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.videos_bucket)
    assert stored.metadata == {
        "rpi_serial_no": SERIAL,
        "camera_name": SERIAL[-4:],
        "event": str(event_uuid(SERIAL, 1_700_000_000)),
        "local_time": "2023-11-14T23:13:20+01:00",
        "model": "yolov5n.pt",
        "frame_rate": "10",
        "confidence_threshold": "0.255",
        "recording_start_time": "1700000000",
        "duration": "12",
        "duration_s": "12",
        "max_people_found": "2",
        "max_confidence": "88",
        "inference_time_ms": "43",
        "width": "640",
        "height": "480",
    }
    assert (stored.body, stored.content_type, stored.server_side_encryption) == (content, "video/mp4", "AES256")
    assert stored.key.endswith(".mp4")


def test_nothing_of_the_event_can_be_read_off_the_key(rig: Rig, s3: S3Server) -> None:
    rig.add_image(1_700_000_000)
    rig.start()
    rig.wait_until_empty()
    (key,) = s3.keys(rig.images_bucket)
    assert len(key.removesuffix(".jpg")) == 36
    assert not any(secret in key for secret in ("1700000000", "640", "480", SERIAL))


@pytest.mark.parametrize("encryption", ["AES256", None])
def test_encryption_is_asked_for_unless_the_server_has_none(rig: Rig, s3: S3Server, encryption: str | None) -> None:
    """Looked for in the request itself: the server encrypts of its own accord, as the real one does."""
    rig.add_image(1_700_000_000)
    with FaultyProxy(s3.port) as proxy:
        rig.use(proxy.url)
        rig.start(server_side_encryption=encryption)
        rig.wait_until_empty()
        (head,) = proxy.heads
    assert (b"x-amz-server-side-encryption: AES256" in head) is (encryption == "AES256")
    assert b"If-None-Match: *" in head


@pytest.mark.parametrize(("age_s", "expected"), [(90, "90000"), (-90, None)])
def test_an_image_of_an_earlier_process_tells_how_late_it_is(
    rig: Rig, s3: S3Server, age_s: int, expected: str | None
) -> None:
    rig.add_image(1_700_000_000)
    rig.start(wall_clock=lambda: 1_700_000_000 + age_s)
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.images_bucket)
    assert stored.metadata.get("alert_latency_ms") == expected  # a clock before the event knows no latency


def test_the_latency_is_that_of_the_first_try(rig: Rig, s3: S3Server) -> None:
    """The image fails until the sweep gets it through, a good second later."""
    with FaultyProxy(s3.port) as proxy:
        proxy.answer = Answer(500, "InternalError")
        rig.use(proxy.url)
        uploader = rig.start()
        offered_s = time.monotonic()
        rig.alert(uploader, 1_700_000_000, arrival_s=offered_s)
        wait_until(lambda: uploader.counters().failed_tries, "it does not fail")
        first_try_is_over_s = time.monotonic()
        wait_until(lambda: uploader.counters().failed_tries >= 3, "it does not fail")
        proxy.answer = None
        rig.wait_until_empty()
    (stored,) = s3.objects(rig.images_bucket)
    assert int(stored.metadata["alert_latency_ms"]) <= 1000 * (first_try_is_over_s - offered_s)


def test_strange_settings_cannot_break_a_header(rig: Rig, s3: S3Server) -> None:
    rig.add_video(1_700_000_000)
    rig.start(video_metadata={"model": "modèle\r\nX-Evil: 1" + "x" * 3000})
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.videos_bucket)
    assert stored.metadata["model"] == ("mod?le??X-Evil: 1" + "x" * 3000)[:200]


def test_the_metadata_of_a_clip_fit_s3s_limit_whatever_the_settings() -> None:
    """2 KB, names and values together."""
    long = {name: header_value("x" * 999) for name in ("rpi_serial_no", "model", "camera_name")}
    others = {"frame_rate": "10.123456789012345", "confidence_threshold": "0.123456789012345"}
    numbers = VideoName(*[10**14] * 7)
    told = metadata(QueuedFile(videos(Path()), numbers.encode(), numbers), long | others)
    assert "local_time" not in told, "there is no such year"
    assert (
        sum(len(name) + len(value) for name, value in told.items()) + len("local_time2023-11-14T23:13:20+01:00") < 2048
    )


@pytest.mark.usefixtures("berlin")
def test_local_times_in_the_hour_that_comes_twice() -> None:
    first = int(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp())
    assert [local_time(first + hour * 3600) for hour in range(2)] == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:30:00+01:00",
    ]
    assert local_time(10**14) == ""


@given(st.text(), st.text())
def test_a_header_value_is_short_printable_ascii(text: str, more: str) -> None:
    value = header_value(text + more * 50)
    assert len(value) <= 200
    assert value.isascii()
    assert value == value.strip()
    assert value.isprintable()


# In which order


def test_the_newest_image_goes_first_then_images_then_videos_oldest_first(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    starts = [1_700_000_000 + 10 * number for number in range(6)]
    for start in random.sample(starts, len(starts)):
        rig.add_video(start)
        rig.add_image(start)
    rig.start()
    rig.wait_until_empty()
    names = uploaded_names(caplog)
    assert [int(name.split("-")[0]) for name in names] == [starts[-1], *starts[:-1], *starts]
    assert [name[-4:] for name in names] == [".jpg"] * 6 + [".mp4"] * 6


def test_a_new_image_in_mid_sweep_is_the_next_one(rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10):
        rig.add_video(1_700_000_000 + number)
    with FaultyProxy(s3.port) as proxy:
        proxy.delay_s = 0.3
        rig.use(proxy.url)
        uploader = rig.start()
        wait_until(lambda: len(uploaded_names(caplog)) >= 2, "the sweep does not start")
        rig.add_image(1_600_000_000)
        uploader.sweep_soon()
        rig.wait_until_empty()
    assert 2 <= [name[-4:] for name in uploaded_names(caplog)].index(".jpg") <= 4


# Exactly once


def images(folder: Path) -> MediaType:
    return MediaType("image", folder, "bucket", ImageName)


def videos(folder: Path) -> MediaType:
    return MediaType("video", folder, "bucket", VideoName)


def open_file(path: Path) -> OpenFile:
    media_type = images(path.parent) if path.suffix == ".jpg" else videos(path.parent)
    name = parse(path.name)
    assert isinstance(name, media_type.name_type)
    return OpenFile(QueuedFile(media_type, path.name, name))


def key_of(path: Path, serial: str = SERIAL) -> str:
    with open_file(path) as file:
        return file.key_and_body(serial)[0]


def test_the_key_is_the_same_at_every_try_from_memory_and_from_the_disk(rig: Rig) -> None:
    content = jpeg()
    path = rig.add_image(1_700_000_000, content)
    key = key_of(path)
    assert key == key_of(path)
    os.utime(path, (1, 1))  # FAT keeps the time to two seconds only, and memory has none
    assert key == key_of(path)
    queued = QueuedFile(images(rig.images), path.name, ImageName(1_700_000_000, 81, 640, 480))
    assert key == Alert(queued, content, lambda: None).key_and_body(SERIAL)[0]


def test_no_two_events_share_a_key(rig: Rig) -> None:
    """Not even with the same picture, as a looped film gives it; nor two cameras."""
    same = jpeg()
    first, second = rig.add_image(1_700_000_000, same), rig.add_image(1_700_000_060, same)
    assert key_of(first) != key_of(second)
    assert key_of(first) != key_of(first, serial="another")


def test_a_lost_reply_makes_no_second_object(rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    rig.add_image(1_700_000_000)
    rig.add_video(1_700_000_000)
    with FaultyProxy(s3.port) as proxy:
        proxy.replies_to_lose = 5
        rig.use(proxy.url)
        rig.start()
        rig.wait_until_empty()
        assert proxy.lost_replies == 5
    assert len(s3.keys(rig.images_bucket)) == len(s3.keys(rig.videos_bucket)) == 1
    assert any("was in the bucket already" in line for line in lines(caplog, logging.INFO))
    assert len(warnings(caplog)) == 1


def test_a_crash_between_upload_and_delete_makes_no_second_object(rig: Rig, s3: S3Server) -> None:
    """A real process that is killed with SIGKILL in between."""
    path = rig.add_image(1_700_000_000)
    script = f"""
        import os, signal, time
        from pathlib import Path
        from guardianberry.upload import upload_file, uploader
        upload_file.OpenFile.delete = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        uploader.Uploader(
            images_folder=Path({str(rig.images)!r}), videos_folder=Path({str(rig.videos)!r}),
            images_bucket={rig.images_bucket!r}, videos_bucket={rig.videos_bucket!r}, server_side_encryption="AES256",
            rpi_serial_no={SERIAL!r}, video_metadata={{}},
        ).start()
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.exists()
    assert len(s3.keys(rig.images_bucket)) == 1
    rig.start()
    rig.wait_until_empty()
    assert len(s3.keys(rig.images_bucket)) == 1


def test_two_sweeps_at_once_make_one_object_of_each_file(
    rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(30):
        rig.add_image(1_700_000_000 + number)
    for _ in range(3):
        rig.start()
    rig.wait_until_empty()
    assert len(s3.keys(rig.images_bucket)) == 30
    assert warnings(caplog) == []


def test_the_sweep_skips_an_alert_that_is_being_uploaded(
    rig: Rig, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even after it has stopped waiting for the alert."""
    monkeypatch.setattr("guardianberry.upload.pauses._PAUSED_BLOCK_S", 0.01)
    with FaultyProxy(s3.port) as proxy:
        proxy.delay_s = 0.5
        rig.use(proxy.url)
        uploader = rig.start()
        rig.alert(uploader, 1_700_000_000)
        for _ in range(4):
            uploader.sweep_soon()
        rig.wait_until_empty()
        assert proxy.connections == 1
    assert uploader.counters().images == 1


def test_a_file_that_is_changed_during_its_upload_is_not_lost(rig: Rig, s3: S3Server) -> None:
    first, second = jpeg(), jpeg()
    path = rig.add_image(1_700_000_000, first)
    with FaultyProxy(s3.port) as proxy:
        proxy.delay_s = 0.5
        rig.use(proxy.url)
        uploader = rig.start()
        wait_until(lambda: proxy.connections, "it does not connect")
        path.unlink()
        rig.add_image(1_700_000_000, second)
        proxy.delay_s = 0
        wait_until(lambda: uploader.counters().images == 1, "the first one does not arrive")
        rig.wait_until_empty()
    assert {stored.body for stored in s3.objects(rig.images_bucket)} == {first, second}


def test_a_file_that_grows_faster_than_it_can_be_read_is_read_to_its_first_end(rig: Rig) -> None:
    """Another program makes a hole of it, terabytes long, once it was found fit."""
    path = rig.add_video(1_700_000_000)
    with open_file(path) as file:
        key = file.key_and_body(SERIAL)[0]
        os.truncate(path, 1 << 43)
        again: list[str] = []
        reader = threading.Thread(target=lambda: again.append(file.key_and_body(SERIAL)[0]), daemon=True)
        reader.start()
        reader.join(20)
        assert again == [key]


def test_a_file_that_grows_during_its_upload_is_not_deleted(rig: Rig, s3: S3Server) -> None:
    path = rig.add_video(1_700_000_000, mp4(200_000))
    with FaultyProxy(s3.port) as proxy:
        proxy.delay_s = 0.5
        rig.use(proxy.url)
        uploader = rig.start()
        wait_until(lambda: proxy.connections, "it does not connect")
        with path.open("ab") as file:
            file.write(box(b"free", b"more"))
        wait_until(lambda: uploader.counters().videos == 1, "it does not arrive")
        grown = path.read_bytes()
        rig.wait_until_empty()
    assert grown in {stored.body for stored in s3.objects(rig.videos_bucket)}


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_file_that_shrinks_during_its_upload_is_left(
    rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    monkeypatch.setattr("guardianberry.upload.s3._ATTEMPTS", attempts)  # botocore meets the error in other places
    path = rig.add_video(1_700_000_000, mp4(400_000))
    good = rig.add_video(1_700_000_001)
    with FaultyProxy(s3.port) as proxy:
        proxy.rate_bytes_per_s = 100_000
        rig.use(proxy.url)
        rig.start()
        wait_until(lambda: proxy.connections, "it does not connect")
        os.truncate(path, 1000)
        wait_until(lambda: not good.exists(), "it blocks the others")
    assert path.exists()
    assert any("it became shorter during the upload" in line for line in warnings(caplog))
    assert len(s3.keys(rig.videos_bucket)) == 1


# What is not uploaded


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=40))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_that_are_no_events_are_never_queued(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    for name in names:
        if name not in (b".", b"..") and not set(name) & set(b"/\0"):
            (folder / os.fsdecode(name)).touch()
    queued, odd = list_queued([images(folder)])
    assert queued == []
    assert sorted(odd) == sorted(name for name in os.listdir(folder) if not name.startswith("."))


def test_a_video_among_the_images_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "1-2-3-4-5-6-7.mp4").touch()
    (tmp_path / "1-2-3-4.jpg").touch()
    for media_type, own in (
        (images(tmp_path), "1-2-3-4.jpg"),
        (videos(tmp_path), "1-2-3-4-5-6-7.mp4"),
    ):
        queued, odd = list_queued([media_type])
        assert [each.file_name for each in queued] == [own]
        assert len(odd) == 1


def odd_names(count: int) -> list[bytes]:
    """Random, and near misses."""
    dice = random.Random(1)
    alphabet = b"0123456789-.jpgm4 \n\r\t'\";$`\\*?\xff\xc3\xa9~=<>|&"
    near = [
        b"1700000000-81-640-480.jpg\n",
        b"-1-81-640-480.jpg",
        b"1700000000-81-640-480.jpeg",
        b"01-1-1-1.jpg",
        b"1.5-81-640-480.jpg",
    ]
    near += [b"1700000000-12-2-88-43-640-480.jpg", "١٢٣-81-640-480.jpg".encode(), b"x" * 255, b"..\\..\\etc", b"-rf"]
    drawn = [bytes(dice.choices(alphabet, k=dice.randint(1, 60))) for _ in range(count)]
    return [name for name in {*near, *drawn} if not name.startswith(b".") and parse(os.fsdecode(name)) is None]


def test_thousands_of_odd_names_do_no_harm(rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    names = odd_names(3000)
    for name in names:
        for folder in (rig.images, rig.videos):
            (folder / os.fsdecode(name)).write_bytes(jpeg(50))
    rig.add_image(1_700_000_000)
    rig.add_video(1_700_000_000)
    uploader = rig.start()
    wait_until(lambda: sum(uploader.counters()[:2]) == 2, "the good ones are held up")
    for _ in range(3):
        uploader.sweep_soon()
        time.sleep(0.1)
    for folder in (rig.images, rig.videos):
        assert sorted(os.listdir(os.fsencode(folder))) == sorted(names)
    assert len(s3.keys(rig.images_bucket)) == len(s3.keys(rig.videos_bucket)) == 1
    assert len(warnings(caplog)) == 2
    assert all("\n" not in line and line.isprintable() for line in warnings(caplog))


def test_unfit_files_stay_and_are_reported_once(
    rig: Rig, s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(jpeg())
    start = iter(range(1_700_000_000, 1_800_000_000))
    rig.add_image(next(start), b"")
    rig.add_image(next(start), jpeg()[:-1])
    rig.add_image(next(start), b"GIF89a" + jpeg())
    rig.add_video(next(start), b"")
    rig.add_video(next(start), mp4()[:-50])  # the old program, killed before it wrote its index
    rig.add_video(next(start), box(b"moov", b"") + box(b"mdat", b""))
    rig.add_video(next(start), jpeg())
    (rig.images / f"{next(start)}-1-640-480.jpg").mkdir()
    (rig.images / f"{next(start)}-1-640-480.jpg").symlink_to(outside)
    (rig.images / f"{next(start)}-1-640-480.jpg").symlink_to("/nowhere")
    os.mkfifo(rig.images / f"{next(start)}-1-640-480.jpg")
    with socket.socket(socket.AF_UNIX) as unix_socket, monkeypatch.context() as context:
        context.chdir(rig.images)  # a socket's path has 107 bytes at most
        unix_socket.bind(f"{next(start)}-1-640-480.jpg")
    before = rig.left()
    good = rig.add_image(next(start)), rig.add_video(next(start))
    uploader = rig.start()
    wait_until(lambda: not any(path.exists() for path in good), "the good ones are held up")
    for _ in range(3):
        uploader.sweep_soon()
        time.sleep(0.1)
    assert rig.left() == before
    assert outside.exists()
    assert len(s3.keys(rig.images_bucket)) == len(s3.keys(rig.videos_bucket)) == 1
    assert sorted(line.split(": ")[1] for line in warnings(caplog)) == [
        "it cannot be opened",  # the socket
        *["it is a link"] * 2,
        *["it is empty"] * 2,
        *["it is not a complete JPEG"] * 2,
        *["it is not a complete MP4"] * 3,
        *["it is not an ordinary file"] * 2,
    ]


@pytest.mark.parametrize(
    ("boxes", "fit"),
    [
        ([(b"ftyp", 8), (b"moov", 10), (b"mdat", 20)], True),
        ([(b"ftyp", 8), (b"free", 0), (b"mdat", 20), (b"moov", 10)], True),
        ([(b"ftyp", 8), (b"moov", 10), (b"moof", 10), (b"mdat", 20)], True),
        ([(b"ftyp", 8), (b"moov", 10)], False),
        ([(b"ftyp", 8), (b"mdat", 20)], False),
        ([(b"moov", 8), (b"ftyp", 10), (b"mdat", 20)], False),
    ],
)
def test_a_video_needs_its_index_and_media(rig: Rig, boxes: list[tuple[bytes, int]], fit: bool) -> None:
    content = b"".join(box(name, bytes(size)) for name, size in boxes)
    assert is_fit(rig.add_video(1, content)) is fit
    # Cut short, only a fragmented file is still worth something.
    cut = content + box(b"mdat", bytes(50))[:-10]
    assert is_fit(rig.add_video(1, cut)) is (fit and (b"moof", 10) in boxes)


@pytest.mark.parametrize("header", [b"\0\0\0\1mdat" + (30).to_bytes(8, "big") + bytes(14), b"\0\0\0\0mdat" + bytes(9)])
def test_long_and_open_ended_boxes_are_understood(rig: Rig, header: bytes) -> None:
    start = box(b"ftyp", bytes(8)) + box(b"moov", bytes(8))
    assert is_fit(rig.add_video(1, start + header))
    assert not is_fit(rig.add_video(1, start + b"\0\0\0\1mdat" + (2**63).to_bytes(8, "big") + bytes(14)))
    assert not is_fit(rig.add_video(1, start + b"\0\0\0\3mdat" + bytes(9)))


def is_fit(path: Path) -> bool:
    try:
        with open_file(path):
            return True
    except UnfitError:
        return False


@pytest.mark.parametrize(
    ("duration", "size_bytes", "fit"), [(20, 60_000_000, True), (20, 5 * 1024**3, False), (10**9, 5 * 1024**3, False)]
)
def test_a_clip_that_weighs_more_than_its_seconds_can_is_left(
    rig: Rig, duration: int, size_bytes: int, fit: bool
) -> None:
    """A hole of 5 GiB takes no room on the disk, and would be sent for days."""
    path = rig.add_video(1_700_000_000).rename(rig.videos / f"1700000000-{duration}-2-88-43-640-480.mp4")
    os.truncate(path, size_bytes - 10)
    with path.open("r+b") as file:
        file.write(box(b"ftyp", bytes(8)) + box(b"moov", bytes(8)) + b"\0\0\0\0mdat")
    assert is_fit(path) is fit


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_never_fit(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("1-2-3-4.jpg", "1-2-3-4-5-6-7.mp4"):
        (folder / name).write_bytes(content)
        assert not is_fit(folder / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_file_stays_and_holds_nobody_up(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    path = rig.add_image(1_700_000_000)
    path.chmod(0)
    good = rig.add_image(1_600_000_000)
    rig.start()
    wait_until(lambda: not good.exists(), "the good one is held up")
    assert path.exists()
    assert any("cannot be opened: Permission denied" in line for line in warnings(caplog))


def test_a_file_that_vanishes_during_a_sweep_is_no_error(
    rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [rig.add_video(1_700_000_000 + number) for number in range(6)]
    with FaultyProxy(s3.port) as proxy:
        proxy.delay_s = 0.3
        rig.use(proxy.url)
        rig.start()
        wait_until(lambda: proxy.connections, "the sweep does not start")
        for path in paths[2:]:
            path.unlink()
        rig.wait_until_empty()
    assert len(s3.keys(rig.videos_bucket)) == 2
    assert warnings(caplog) == []


def test_a_file_that_cannot_be_deleted_is_not_sent_over_and_over(
    rig: Rig, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a remount read-only, which an SD card's error brings about."""

    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    path = rig.add_video(1_700_000_000)
    with FaultyProxy(s3.port) as proxy, monkeypatch.context() as patch:
        patch.setattr("guardianberry.upload.upload_file.os.unlink", refuse)
        rig.use(proxy.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().videos == 1, "it is not uploaded")
        for _ in range(3):
            uploader.sweep_soon()
            time.sleep(0.1)
        assert proxy.connections == 1
    assert path.exists()
    assert warnings(caplog) == [
        f"video {path.name!r} is left where it is: it is uploaded but cannot be deleted: Read-only file system"
    ]


def test_thousands_of_unfit_files_do_not_bury_the_log(rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    """Of so many causes not each one is remembered, so that each sweep told them all again."""
    for number in range(1200):
        rig.add_image(1_600_000_000 + number, b"")
    uploader = rig.start()
    for number in range(3):
        rig.add_image(1_700_000_000 + number)
        rig.add_video(1_700_000_000 + number)  # after all images
        uploader.sweep_soon()
        wait_until(lambda n=number: uploader.counters().videos > n, "the good ones are held up")
    assert uploader.counters().images == 3
    assert len(warnings(caplog)) == 101
    assert "not named" in warnings(caplog)[-1]


def test_files_in_work_are_not_touched(rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    names = [".part-x", ".open-1-2-3-4-5-6-7.mp4", ".held-00000000-1-1-2-3-4.jpg"]
    for name in names:
        (rig.images / name).write_bytes(jpeg())
    rig.add_image(1_700_000_000)
    rig.start()
    wait_until(lambda: rig.left() == sorted(names), "the good one is held up")
    assert warnings(caplog) == []


def test_a_folder_that_cannot_be_read_is_reported_once_and_tried_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.images.rmdir()
    rig.add_video(1_700_000_000)
    rig.start()
    wait_until(lambda: not list(rig.videos.iterdir()), "videos are held up")
    time.sleep(0.3)
    assert warnings(caplog) == ["the folder of the images cannot be read: No such file or directory; it is tried again"]
    rig.images.mkdir()
    rig.add_image(1_700_000_000)
    rig.wait_until_empty()


# When


def test_nothing_is_uploaded_before_the_clock_is_set(rig: Rig, s3: S3Server) -> None:
    clock_is_set = threading.Event()
    rig.add_video(1_700_000_000)
    uploader = rig.start(may_upload=clock_is_set.is_set)
    rig.alert(uploader, 1_700_000_001, arrival_s=time.monotonic() - 7)
    time.sleep(0.3)
    assert len(rig.left()) == 2
    assert not s3.keys(rig.images_bucket) | s3.keys(rig.videos_bucket)
    clock_is_set.set()
    uploader.sweep_soon()
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.images_bucket)
    assert 7000 <= int(stored.metadata["alert_latency_ms"]) < 30_000


def test_other_uploads_pause_while_an_alert_is_being_uploaded(rig: Rig) -> None:
    gate, read = Gate(), threading.Event()
    path = rig.add_video(1_700_000_000)
    with open_file(path) as file:
        _, body = file.key_and_body(SERIAL, gate.wait)
        reader = threading.Thread(target=lambda: (body.read(), read.set()), daemon=True)
        with gate.closed(), gate.closed():
            reader.start()
            assert not read.wait(0.3)
        assert read.wait(5)


def test_a_paused_upload_sends_a_block_now_and_then_so_that_the_server_does_not_hang_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guardianberry.upload.pauses._PAUSED_BLOCK_S", 0.05)
    gate = Gate()
    with gate.closed():
        waits = threading.Thread(target=gate.wait, daemon=True)
        started_s = time.monotonic()
        waits.start()
        waits.join(5)
        assert not waits.is_alive()
        assert time.monotonic() - started_s >= 0.05


def test_a_paused_upload_ends_at_shutdown() -> None:
    gate = Gate()
    threading.Timer(0.05, gate.stop).start()
    with gate.closed(), pytest.raises(Interrupted):
        gate.wait()


def test_no_block_is_larger_than_what_may_be_under_way(rig: Rig) -> None:
    content = mp4(100_000)
    with open_file(rig.add_video(1_700_000_000, content)) as file:
        _, body = file.key_and_body(SERIAL)
        blocks = list(iter(lambda: body.read(1024 * 1024), b""))
    assert b"".join(blocks) == content
    assert max(map(len, blocks)) <= 16 * 1024


def test_stop_does_not_wait_for_the_network(rig: Rig) -> None:
    with FaultyProxy() as proxy:
        proxy.silent = True
        rig.use(proxy.url)
        rig.add_video(1_700_000_000)
        uploader = rig.start()
        rig.alert(uploader, 1_700_000_000)
        wait_until(lambda: proxy.connections >= 1, "it does not connect")
        asked_s = time.monotonic()
        uploader.stop(0.3)
        assert time.monotonic() - asked_s < 2
    assert len(rig.left()) == 2


def test_stop_lets_an_alert_under_way_finish(rig: Rig, s3: S3Server) -> None:
    with FaultyProxy(s3.port) as proxy:
        proxy.delay_s = 0.5
        rig.use(proxy.url)
        uploader = rig.start()
        rig.alert(uploader, 1_700_000_000)
        wait_until(lambda: proxy.connections, "it does not connect")
        uploader.stop(20)
    assert rig.left() == []


@pytest.mark.parametrize("attempts", [1, 2])
def test_stop_in_mid_upload_is_prompt_and_no_failure(
    rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    monkeypatch.setattr("guardianberry.upload.s3._ATTEMPTS", attempts)
    rig.add_video(1_700_000_000, mp4(2_000_000))
    with FaultyProxy(s3.port) as proxy:
        proxy.rate_bytes_per_s = 50_000
        rig.use(proxy.url)
        uploader = rig.start()
        wait_until(lambda: proxy.connections, "it does not connect")
        time.sleep(0.2)
        asked_s = time.monotonic()
        uploader.stop(30)
        assert time.monotonic() - asked_s < 15
    assert len(rig.left()) == 1
    assert warnings(caplog) == []
    assert not s3.keys(rig.videos_bucket)


def test_pauses_grow_to_five_minutes_with_jitter() -> None:
    pauses_s = backoff_s(uniform=lambda low, high: high)
    assert list(itertools.islice(pauses_s, 11)) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert len({next(backoff_s()) for _ in range(20)}) > 1


def test_a_day_without_network_is_no_busy_loop(rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(length_s=86_400)
    for number in range(5):
        rig.add_image(1_700_000_000 + number)
    rig.use("http://127.0.0.1:1")  # refused at once
    uploader = rig.start(clock=clock, pause=clock.pause)
    wait_until(clock.over.is_set, "the day does not pass")
    assert 86_400 / 300 <= uploader.counters().failed_tries <= 86_400 / 150 + 10
    assert len(warnings(caplog)) == 1
    assert len(rig.left()) == 5


def test_a_day_without_network_and_disk_is_no_busy_loop(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The alert is in memory alone."""
    clock = FakeClock(length_s=86_400)
    rig.images.rmdir()
    rig.use("http://127.0.0.1:1")
    uploader = rig.uploader(clock=clock, pause=clock.pause)
    uploader.offer_alert("1700000000-81-640-480.jpg", jpeg(), frame_arrival_s=0.0)
    wait_until(lambda: uploader.counters().failed_tries == 3, "the alert lane does not try")
    uploader.start()
    wait_until(clock.over.is_set, "the day does not pass")
    assert 86_400 / 300 <= uploader.counters().failed_tries <= 86_400 / 150 + 10
    assert uploader.pending().images == 1


def test_after_a_long_outage_a_new_alert_is_tried_every_few_seconds_again(rig: Rig) -> None:
    clock = FakeClock(length_s=10_000)  # pauses are the longest after ten minutes
    pauses_s: list[float] = []
    offered_after: list[int] = []

    def pause(event: threading.Event, timeout_s: float) -> None:
        pauses_s.append(timeout_s)
        clock.pause(event, timeout_s)

    def offer() -> None:
        offered_after.append(len(pauses_s))
        rig.alert(uploader, 1_700_000_001, arrival_s=clock())

    clock.at(8_000, offer)
    rig.add_image(1_700_000_000)
    rig.use("http://127.0.0.1:1")
    uploader = rig.start(clock=clock, pause=pause)
    wait_until(clock.over.is_set, "the time does not pass")
    assert max(pauses_s[: offered_after[0]][-2:]) >= 149
    assert max(pauses_s[offered_after[0] :][:4]) <= 8


def test_an_impatient_caller_makes_no_busy_loop(rig: Rig) -> None:
    rig.add_image(1_700_000_000)
    rig.use("http://127.0.0.1:1")
    uploader = rig.start(pause=threading.Event.wait)
    ends_s = time.monotonic() + 3
    while time.monotonic() < ends_s:
        uploader.sweep_soon()
        time.sleep(0.001)
    assert 1 <= uploader.counters().failed_tries <= 8


def test_an_alert_that_goes_through_wakes_the_sweep(rig: Rig, s3: S3Server) -> None:
    """The network is back, and the next sweep would have come much later."""
    video = rig.add_video(1_700_000_000)
    with FaultyProxy(target_port=1) as proxy:
        rig.use(proxy.url)
        uploader = rig.start(pause=lambda event, timeout_s: event.wait(0.1 if timeout_s == 0.5 else 60))
        wait_until(lambda: uploader.counters().failed_tries, "it does not fail")
        proxy.target_port = s3.port
        rig.alert(uploader, 1_700_000_001)
        wait_until(lambda: not video.exists(), "the sweep sleeps on", timeout_s=30)


# Credentials and transport


def test_no_credential_and_no_serial_number_is_ever_logged(
    rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    rig.monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    rig.add_image(1_700_000_000)
    rig.add_video(1_700_000_000)
    with FaultyProxy(s3.port) as proxy:
        proxy.replies_to_lose = 3
        rig.use(proxy.url)
        rig.start()
        rig.wait_until_empty()
    keys = s3.keys(rig.images_bucket) | s3.keys(rig.videos_bucket)
    assert len(keys) == 2
    for secret in (ACCESS_KEY, SECRET_KEY, "a-session-token", SERIAL, "Signature", *keys):
        assert secret not in caplog.text
    assert {record.name.split(".")[0] for record in caplog.records if "boto" in record.name} == set()
