"""The viewer: what it asks and fetches, how objects become events, and what hostile objects cannot do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guardianberry.recording.mp4 import close_killed_file
from guardianberry.upload.upload_file import camera_uuid
from tests.daemon import ROOT
from tests.h264 import decode
from tests.s3_server import S3Server
from tests.viewer_rig import (
    START_S,
    CountingProxy,
    Film,
    ListStore,
    clip_metadata,
    film,
    image_metadata,
    jpeg,
    part_metadata,
)
from viewer import PRE_ROLL_S, show
from viewer.archive import Archive, ArchiveError
from viewer.events import PICTURE, UNDER_WAY, UNFINISHED, WHOLE, Event, Gap, events_and_gaps
from viewer.fetching import fetch
from viewer.objects import IMAGES, VIDEOS, Role, clean_text, content_problem, parse_beat, parse_key, read_facts
from viewer.script import constants
from viewer.stores import StoreError

IMAGES_BUCKET, VIDEOS_BUCKET = "guardianberry.images", "guardianberry.videos"
A, B, C = (str(uuid.UUID(int=number << 64)) for number in (10, 11, 12))
PICTURE_BYTES = jpeg()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Film:
    return film(tmp_path_factory.mktemp("film"))


def run(store: ListStore, folder: Path, *, days: float = 7, later_s: int = 0) -> list[Event]:
    return show(store, folder, days=days, clock=lambda: store.now_s + later_s)[1]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- Names, metadata, bodies


@pytest.mark.parametrize(
    "key",
    [
        *("CON.jpg", "nul.mp4", "../../etc/passwd", "..\\..\\x.jpg", f"../{A}.jpg", f"{A}.jpg/..", f"{A}.jpg\n"),
        *(f"{A.upper()}F.jpg", f"{A}.html", f"{A}.jpg.exe", f"/{A}.jpg", f"x/{A}.jpg", "a.jpg", "", ".jpg"),
        *(
            f"live/{A}/1.part",
            f"live/{A}/00000.part",
            f"live/{A}/../0000.part",
            f"live/{A}/\u0661\u0661\u0661\u0661.part",
        ),
        *(f"best/{A}.jpg/x", f"best/{A}.mp4", "<script>alert(1)</script>", f"{A}.jpg<script>"),
    ],
)
def test_a_key_that_is_no_events_is_left_alone(key: str) -> None:
    assert parse_key(IMAGES, key) is None
    assert parse_key(VIDEOS, key) is None


def test_a_file_name_is_made_of_the_uuid_alone() -> None:
    keys = [(IMAGES, f"{A}.jpg"), (VIDEOS, f"{A}.mp4"), (VIDEOS, f"best/{A}.jpg"), (VIDEOS, f"live/{A}/0007.part")]
    named = [parse_key(bucket, key) for bucket, key in keys]
    assert [name.file for name in named if name] == [
        f"images/{A}.jpg",
        f"clips/{A}.mp4",
        f"best/{A}.jpg",
        f"parts/{A}-0007.part",
    ]
    assert parse_key(VIDEOS, f"{A}.jpg") is None, "each new .jpg at the top of the images bucket only"


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0x10", " 7", "7 ", "\u0667", "9" * 400, "1.5", "None", "<b>"])
def test_integers_are_parsed_and_bounded(text: str) -> None:
    told = dict.fromkeys(("recording_start_time", "max_people_found", "max_confidence", "duration", "duration_s"), text)
    facts = read_facts(told, modified=START_S)
    assert facts.start == START_S, "the time of arrival stands in"
    assert (facts.people, facts.confidence, facts.duration_s) == (None, None, None)


def test_an_event_from_the_future_is_dated_by_its_arrival() -> None:
    assert read_facts({"recording_start_time": str(START_S + 86400)}, modified=START_S).start == START_S
    assert read_facts({"recording_start_time": str(START_S - 86400)}, modified=START_S).start == START_S - 86400


def test_local_time_tells_the_cameras_zone() -> None:
    def offset(text: str) -> int | None:
        return read_facts({"local_time": text}, modified=START_S).offset_min

    assert offset("2026-11-22T19:26:15+01:00") == 60
    assert offset("2026-11-22T13:56:15.250-04:30") == -270
    assert [offset(text) for text in ("", "2026-11-22", "2026-11-22T19:26:15+19:00", "+01:00<script>")] == [None] * 4


def test_text_is_one_short_line_that_reads_forwards() -> None:
    hostile = "Door\r\n\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}gpj\x00" + "x" * 3000
    assert clean_text(hostile).isprintable()
    assert len(clean_text(hostile)) <= 40
    assert clean_text("Haustür ") == "Haustür"
    assert parse_beat("alive/Front%20door/1795371975") == "Front door"
    assert [parse_beat(key) for key in ("alive/x", "alive/../x/1", "alive/x/-1", f"alive/{'x' * 999}/1")] == [None] * 4


def picture_of(width: int, height: int) -> bytes:
    """The small file of a picture that says it is this large."""
    at = PICTURE_BYTES.index(b"\xff\xc0") + 5
    return PICTURE_BYTES[:at] + height.to_bytes(2) + width.to_bytes(2) + PICTURE_BYTES[at + 4 :]


def bomb_behind(marker: int) -> bytes:
    """A size that a browser finds, before one that a reader finds who takes each marker for the head of a block."""
    bomb, small = picture_of(65000, 8000), picture_of(640, 480)
    size_at = bomb.index(b"\xff\xc0")
    passed = bomb[size_at : size_at + 2 + int.from_bytes(b"\xff\xc0")].ljust(2 + int.from_bytes(b"\xff\xc0"), b"\0")
    return bomb[:2] + bytes([0xFF, marker]) + passed[: int.from_bytes(b"\xff\xc0")] + small[small.index(b"\xff\xc0") :]


@pytest.mark.parametrize(
    ("role", "body", "problem"),
    [
        (Role.IMAGE, PICTURE_BYTES, ""),
        *((Role.IMAGE, bomb_behind(marker), "it is no JPEG") for marker in (0x01, 0xD0, 0xD7, 0xFF)),
        (Role.IMAGE, b"", "it is empty"),
        (Role.IMAGE, b"<html><script>alert(1)</script>", "it is no JPEG"),
        (Role.IMAGE, b"\xff\xd8\xff", "it is no JPEG"),
        (Role.IMAGE, b"\xff\xd8\xff\xe0\x00\x00" * 50_000, "it is no JPEG"),
        (Role.IMAGE, picture_of(65535, 65535), "the picture is too large"),
        (Role.BEST, b"GIF89a", "it is no JPEG"),
        (Role.STILL, b"<svg onload=alert(1)>", "it is no JPEG"),
        (Role.CLIP, b"", "it is empty"),
        (Role.CLIP, b"MZ\x90\x00", "it is no MP4"),
        (Role.CLIP, b"\0\0\0\x20ftypisom", ""),
        (Role.PART, b"", "it is empty"),
    ],
)
def test_a_body_begins_as_its_kind_does(role: Role, body: bytes, problem: str) -> None:
    assert content_problem(role, body, len(body)) == problem


# ---- Fetching


def test_only_good_bodies_stay_and_the_others_are_asked_for_once(tmp_path: Path, clip: Film) -> None:
    store = ListStore()
    good = store.image(PICTURE_BYTES, image_metadata())
    bad = [store.image(b"", image_metadata(START_S - 100)), store.clip(b"<html>", clip_metadata(START_S - 200))]
    long = store.put(IMAGES, f"{A}.jpg", PICTURE_BYTES * 2, image_metadata(), listed_size=len(PICTURE_BYTES))
    short = store.put(VIDEOS, f"{A}.mp4", clip.finished, clip_metadata(), listed_size=10**7)
    huge = store.put(VIDEOS, f"{B}.mp4", b"", clip_metadata(), listed_size=10**12)
    report = show(store, tmp_path, days=7, clock=lambda: store.now_s)[2]
    assert files(tmp_path) == [f"images/{good}", "index.html", "index.json"]
    assert len(report.notes) == 5, report.notes
    assert huge not in store.asked + store.read_keys
    assert set(store.read_keys) == {good, *bad, long, short}
    store.read_keys.clear()
    run(store, tmp_path)
    assert store.read_keys == []


def test_a_run_that_breaks_off_leaves_whole_files_and_the_next_goes_on(tmp_path: Path) -> None:
    store = ListStore(fail_after_reads=10)
    keys = [store.image(PICTURE_BYTES, image_metadata(START_S - 100 * number)) for number in range(40)]
    with pytest.raises(StoreError, match="the network is gone"):
        run(store, tmp_path)
    first = {path.name for path in (tmp_path / "images").iterdir()}
    assert 0 < len(first) < 40
    assert all((tmp_path / "images" / name).read_bytes() == PICTURE_BYTES for name in first)
    store.fail_after_reads, store.read_keys, asked = None, [], len(store.asked)
    assert len(run(store, tmp_path)) == 40
    assert sorted(store.read_keys) == sorted(set(keys) - first)
    assert len(store.asked) == asked == 40


def test_a_file_that_was_cut_off_here_is_fetched_again(tmp_path: Path) -> None:
    store = ListStore()
    path = tmp_path / "images" / store.image(PICTURE_BYTES, image_metadata())
    run(store, tmp_path)
    path.write_bytes(PICTURE_BYTES[:100])
    (tmp_path / "index.json").write_text('{"version": 1, "items": {"')
    run(store, tmp_path)
    assert path.read_bytes() == PICTURE_BYTES


def test_an_object_that_nobody_may_read_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    """Encrypted with a key of the thief's own, say: S3 then refuses HeadObject."""
    store = ListStore()
    store.denied = {store.image(PICTURE_BYTES, image_metadata(START_S - 1))}
    store.image(PICTURE_BYTES, image_metadata())
    _, events, report = show(store, tmp_path, days=7, clock=lambda: store.now_s)
    assert (len(events), report.failed, report.reason) == (1, 1, "images: this key may not read it")


def test_days_bound_what_is_asked_and_fetched_and_the_page_keeps_the_rest(tmp_path: Path) -> None:
    store = ListStore()
    old = store.image(PICTURE_BYTES, image_metadata(START_S - 10 * 86400), at_s=START_S - 10 * 86400)
    new = store.image(PICTURE_BYTES, image_metadata())
    assert len(run(store, tmp_path, days=7)) == 1
    assert store.asked == store.read_keys == [new]
    assert len(run(store, tmp_path, days=14)) == 2
    del store.objects[IMAGES, old]  # its bucket has dropped it
    assert len(run(store, tmp_path, days=7)) == 2


def test_a_flood_of_objects_is_bounded_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viewer.fetching.MOST_KEYS", 50)
    monkeypatch.setattr("viewer.fetching.MOST_OBJECTS", 20)
    store = ListStore()
    newest = store.image(PICTURE_BYTES, image_metadata())
    for number in range(40):
        store.image(PICTURE_BYTES, image_metadata(), at_s=START_S - number)
    for number in range(100):
        store.put(VIDEOS, f"junk/{number}")
        store.put(VIDEOS, f"alive/{number}/{START_S}", at_s=START_S)
    report = show(store, tmp_path, days=7, clock=lambda: store.now_s)[2]
    assert len(store.asked) == 20
    assert newest in store.asked
    assert len([note for note in report.notes if "the rest was not seen" in note]) == 1
    assert any("older than the 20 newest" in note for note in report.notes)


def test_links_in_the_folder_lead_nothing_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "events", tmp_path / "outside"
    theirs = b"x" * len(PICTURE_BYTES)
    outside.write_bytes(theirs)
    store = ListStore()
    key = store.image(PICTURE_BYTES, image_metadata())
    (folder / "images").mkdir(parents=True)
    (folder / "images" / key).symlink_to(outside)
    (folder / "index.html").symlink_to(outside)
    run(store, folder)
    assert outside.read_bytes() == theirs
    assert not (folder / "images" / key).is_symlink()
    shutil.rmtree(folder / "clips")
    (folder / "clips").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ArchiveError, match="is a link"):
        run(store, folder)


def test_what_is_fetched_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = ListStore()
    store.image(PICTURE_BYTES, image_metadata())
    folder = tmp_path / "events"
    run(store, folder)
    open_to_others = [path for path in [folder, *folder.rglob("*")] if path.stat().st_mode & 0o077]
    assert open_to_others == []


# ---- Pairing


def test_image_and_clip_are_paired_by_serial_number_and_start(tmp_path: Path, clip: Film) -> None:
    store = ListStore()
    image = store.image(PICTURE_BYTES, image_metadata())
    film = store.clip(clip.finished, clip_metadata(camera_name=""))
    other = store.image(PICTURE_BYTES, image_metadata(rpi_serial_no="other", camera_name=""))
    events = {event.camera: event for event in run(store, tmp_path)}
    assert len(events) == 2
    paired = events["Front door"]
    assert (paired.pictures, paired.clip, paired.state) == ([f"images/{image}"], f"clips/{film}", WHOLE)
    assert (paired.start, paired.people, paired.confidence, paired.duration_s) == (START_S, 2, 88, 8)
    alone = events["ther"]
    assert (alone.pictures, alone.clip, alone.state) == ([f"images/{other}"], "", PICTURE)


def test_image_clip_and_best_picture_are_paired_by_the_events_uuid(tmp_path: Path, clip: Film) -> None:
    store = ListStore()
    image = store.image(PICTURE_BYTES, image_metadata(event=A))
    film = store.clip(clip.finished, clip_metadata(START_S + 1, event=A))
    best = store.put(VIDEOS, f"best/{A}.jpg", jpeg(shade=200), image_metadata(event=A, confidence="95"))
    store.parts(A, clip.parts(20, 40))
    (event,) = run(store, tmp_path)
    assert event.id == A
    assert event.pictures == [best, f"images/{image}"], "the best picture is the cover"
    assert event.clip == f"clips/{film}"
    assert sorted(store.asked) == sorted([image, film]), "an event that is known need not be asked for twice"
    assert not [key for key in store.read_keys if ".part" in key], "the clip has all that its parts have"


def test_what_claims_to_be_of_an_event_stands_beside_it_and_not_in_its_place(tmp_path: Path, clip: Film) -> None:
    """Whoever has a camera's key can write a second clip of an event, or an object with the event's UUID as its key."""
    store = ListStore()
    image = store.image(PICTURE_BYTES, image_metadata(event=A), at_s=START_S + 1)
    film = store.clip(clip.finished, clip_metadata(event=A), at_s=START_S + 30)
    store.clip(b"\0\0\0\x20ftypisom false", clip_metadata(event=A), at_s=START_S + 50)
    store.put(IMAGES, f"{A}.jpg", PICTURE_BYTES, image_metadata(START_S - 999), at_s=START_S + 50)
    events = run(store, tmp_path)
    assert len(events) == 3
    true = next(event for event in events if event.id == A)
    assert (true.pictures, true.clip) == ([f"images/{image}"], f"clips/{film}")


# ---- Parts


def test_parts_of_an_unfinished_event_become_a_file_that_plays(tmp_path: Path, clip: Film) -> None:
    store = ListStore()
    store.parts(A, clip.parts(20, 40, 70))
    best = store.put(VIDEOS, f"best/{A}.jpg", PICTURE_BYTES, image_metadata(event=A))
    (event,) = run(store, tmp_path, later_s=300)
    assert (event.state, event.pictures, event.clip) == (UNFINISHED, [best], f"joined/{A}.mp4")
    assert (event.start, event.camera) == (START_S, "Front door")
    assert (tmp_path / event.clip).read_bytes() == b"".join(clip.parts(20, 40, 70))
    assert decode(tmp_path / event.clip)[0] >= 70
    assert len(store.asked) == 1, "one object tells of the event"


def test_joining_ends_at_the_first_part_that_is_missing(tmp_path: Path, clip: Film) -> None:
    store = ListStore()
    parts = clip.parts(20, 40, 60, 70)
    store.parts(A, parts)
    lost = store.objects.pop((VIDEOS, f"live/{A}/0002.part"))
    (event,) = run(store, tmp_path)
    assert event.state == UNDER_WAY, "its newest part is a minute old"
    assert (tmp_path / event.clip).read_bytes() == parts[0] + parts[1]
    store.objects[VIDEOS, lost.key] = lost
    run(store, tmp_path)
    assert (tmp_path / event.clip).read_bytes() == b"".join(parts)


@pytest.mark.parametrize("lost", [0, None])
def test_parts_that_cannot_play_leave_the_pictures(tmp_path: Path, clip: Film, lost: int | None) -> None:
    store = ListStore()
    store.parts(A, clip.parts(20, 40)[1:] if lost == 0 else [b"<script>alert(1)</script>"], first=1)
    stills = [
        store.put(VIDEOS, f"live/{A}/{number:04}.jpg", PICTURE_BYTES, part_metadata(A, number)) for number in (3, 5)
    ]
    (event,) = run(store, tmp_path, later_s=300)
    assert event.clip == ""
    assert event.state == UNFINISHED
    assert event.pictures == [f"parts/{A}-0005.jpg", f"parts/{A}-0003.jpg"], "the newest is the cover"
    assert len(stills) == 2


@pytest.mark.parametrize("killed", [True, False])
def test_the_whole_clip_takes_the_place_of_its_parts(tmp_path: Path, clip: Film, killed: bool) -> None:
    """Also where the camera was killed, and its next start has made a new file of the same pictures."""
    whole, recovered = clip.finished, tmp_path / "killed.mp4"
    if killed:
        recovered.write_bytes(clip.growing)
        close_killed_file(recovered, frame_rate_fps=10)
        whole = recovered.read_bytes()
        recovered.unlink()
    store = ListStore()
    store.parts(A, clip.parts(20, 40), at_s=START_S + 10)
    assert [event.state for event in run(store, tmp_path, later_s=300)] == [UNFINISHED]
    late = store.clip(whole, clip_metadata(event=A), at_s=START_S + 4000)  # the camera has come back
    store.now_s = START_S + 5000
    (event,) = run(store, tmp_path)
    assert (event.id, event.state, event.clip) == (A, WHOLE, f"clips/{late}")
    assert [name for name in files(tmp_path) if name.startswith(("parts/", "joined/"))] == []
    store.read_keys.clear()
    assert len(run(store, tmp_path)) == 1
    assert store.read_keys == [], "parts that have given way are not fetched again"


@pytest.mark.parametrize("seen_before", [True, False])
def test_a_late_clip_without_what_the_parts_showed_stands_beside_them(
    tmp_path: Path, clip: Film, seen_before: bool
) -> None:
    """A thief with the camera's key may put any clip where the event's own should be."""
    store = ListStore()
    store.parts(A, clip.parts(20, 40), at_s=START_S + 10)
    if seen_before:
        run(store, tmp_path)
    false = film(tmp_path, width=640)
    store.clip(false.finished, clip_metadata(event=A), at_s=START_S + 4000)
    store.now_s = START_S + 5000
    events = run(store, tmp_path)
    assert sorted((event.id, event.state) for event in events) == [(A, WHOLE), (f"{A}-parts", UNFINISHED)]
    assert (tmp_path / "joined" / f"{A}.mp4").read_bytes() == b"".join(clip.parts(20, 40))


# ---- Heartbeats


def gaps(store: ListStore, archive: Archive, *, now_s: int) -> list[Gap]:
    fetch(store, archive, days=7, now_s=now_s)
    return events_and_gaps(archive, now_s=now_s)[1]


def beat(store: ListStore, *times: int, camera: str = "Garden") -> None:
    for time_s in times:
        store.put(VIDEOS, f"alive/{camera}/{time_s}", b"{}", at_s=time_s)


def test_silence_between_heartbeats_is_a_gap(tmp_path: Path) -> None:
    store, archive, t = ListStore(), Archive(tmp_path), START_S
    beat(store, *range(t, t + 3600, 300), *range(t + 7200, t + 9000, 300))
    expected = Gap("Garden", t + 3300, t + 7200)
    assert gaps(store, archive, now_s=t + 9000) == [expected]
    assert gaps(store, archive, now_s=t + 9700) == [expected, Gap("Garden", t + 8700, None)], "16 minutes, still silent"
    beat(store, t + 9800)
    assert gaps(store, archive, now_s=t + 9900) == [expected, Gap("Garden", t + 8700, t + 9800)]
    archive.save_index()
    assert gaps(store, Archive(tmp_path), now_s=t + 9900) == [expected, Gap("Garden", t + 8700, t + 9800)]


def test_a_gap_has_the_name_that_the_cameras_events_have(tmp_path: Path) -> None:
    store, archive, t = ListStore(), Archive(tmp_path), START_S
    serial = "10000000deadbeef"
    told = {"rpi_serial_no": serial, "recording_start_time": str(t), "camera_name": "Front door"}
    store.put(IMAGES, f"{A}.jpg", PICTURE_BYTES, told, at_s=t)
    beat(store, t, t + 7200, camera=str(camera_uuid(serial)))
    assert gaps(store, archive, now_s=t + 7200) == [Gap("Front door", t, t + 7200)]


def test_ten_minutes_are_no_gap_and_a_week_without_the_viewer_is_none(tmp_path: Path) -> None:
    store, archive, t = ListStore(), Archive(tmp_path), START_S
    beat(store, *range(t, t + 3600, 600))
    assert gaps(store, archive, now_s=t + 3600) == []
    week = t + 7 * 86400
    store.objects.clear()  # heartbeats leave the bucket after two days
    beat(store, *range(week - 2 * 86400, week, 300))
    assert gaps(store, archive, now_s=week) == []


def test_a_heartbeat_counts_when_it_arrives_whatever_its_name_says(tmp_path: Path) -> None:
    store, archive, t = ListStore(), Archive(tmp_path), START_S
    beat(store, t, t + 7200)
    for time_s in range(t, t + 7200, 300):
        store.put(VIDEOS, f"alive/Garden/{time_s + 1}", b"{}", at_s=t + 7200)
    assert gaps(store, archive, now_s=t + 7200) == [Gap("Garden", t, t + 7200)]


# ---- The program, against an S3 server over HTTP


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def buckets(s3: S3Server, clip: Film) -> Iterator[Any]:
    """Two events of three objects, and one that the camera did not finish."""
    client = s3.client()
    s3.create_bucket(IMAGES_BUCKET, VIDEOS_BUCKET)
    for event, start_s in ((A, START_S), (B, START_S + 100)):
        put(client, IMAGES_BUCKET, f"{uuid.uuid4()}.jpg", PICTURE_BYTES, image_metadata(start_s, event=event))
        put(client, VIDEOS_BUCKET, f"{uuid.uuid4()}.mp4", clip.finished, clip_metadata(start_s, event=event))
        put(client, VIDEOS_BUCKET, f"best/{event}.jpg", PICTURE_BYTES, image_metadata(start_s, event=event))
    for number, body in enumerate(clip.parts(20, 40)):
        put(client, VIDEOS_BUCKET, f"live/{C}/{number:04}.part", body, part_metadata(C, number, START_S + 200))
    put(client, VIDEOS_BUCKET, f"alive/Garden/{START_S}", b"{}", {})
    yield client
    for bucket in (IMAGES_BUCKET, VIDEOS_BUCKET):
        for key in s3.keys(bucket):
            client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)


def put(client: Any, bucket: str, key: str, body: bytes, metadata: dict[str, str]) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=body, Metadata=metadata)


def viewer_process(folder: Path, environment: dict[str, str], *options: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    # Tests that run in the background may have SIGINT ignored.
    command = ["/usr/bin/env", "--default-signal=INT", sys.executable, "-m", "viewer", "--folder", str(folder)]
    command += ["--days", "30000", *options]
    env = {**os.environ, **environment, "TZ": "UTC"}
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def viewer(folder: Path, *settings: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    process = viewer_process(folder, *settings, **more)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_a_second_run_asks_nothing_twice(tmp_path: Path, s3: S3Server, buckets: Any) -> None:
    with CountingProxy(s3.port) as proxy:
        environment = s3.environment() | {"AWS_ENDPOINT_URL_S3": proxy.url}
        first = viewer(tmp_path, environment)
        assert first.returncode == 0, first.stderr
        kinds = [request.split(" ")[0] if "list-type" not in request else "LIST" for request in proxy.requests]
        # Two images and two clips are asked, and one object of the event that is known by its parts alone.
        assert {kind: kinds.count(kind) for kind in kinds} == {"LIST": 2, "HEAD": 5, "GET": 8}
        proxy.requests.clear()
        second = viewer(tmp_path, environment)
        assert second.returncode == 0, second.stderr
        assert ["list-type=2" in request for request in proxy.requests] == [True, True], proxy.requests


def test_a_run_that_is_interrupted_keeps_what_it_has(tmp_path: Path, s3: S3Server, buckets: Any) -> None:
    keys = [f"{uuid.uuid4()}.jpg" for _ in range(40)]
    for number, key in enumerate(keys):
        put(buckets, IMAGES_BUCKET, key, PICTURE_BYTES, image_metadata(START_S - 100 * number))
    with CountingProxy(s3.port) as proxy:
        environment = s3.environment() | {"AWS_ENDPOINT_URL_S3": proxy.url}
        proxy.delay_s = 0.2
        running = viewer_process(tmp_path, environment)
        while not list((tmp_path / "images").glob("*.jpg")):
            assert running.poll() is None, running.stderr
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
        assert (running.returncode, "goes on from here" in stderr, "Traceback" in stderr) == (130, True, False), stderr
        kept = len(fetched(tmp_path))
        assert 0 < kept < 48
        proxy.delay_s = 0
        proxy.requests.clear()
        assert viewer(tmp_path, environment).returncode == 0
        assert len(fetched(tmp_path)) == 48
        assert len([request for request in proxy.requests if request.startswith("HEAD")]) == 0
        assert len(proxy.requests) == 2 + 48 - kept


def test_the_program_says_which_events_were_not_finished_and_where_the_page_is(
    tmp_path: Path, s3: S3Server, buckets: Any
) -> None:
    put(buckets, VIDEOS_BUCKET, "\x1b[2Jowned.txt", b"x", {})
    told = viewer(tmp_path, s3.environment())
    assert told.stdout.splitlines() == [
        "1 object(s) in the buckets have names that no event has; they are left alone",
        "1 event(s) that the camera did not finish: 2026-11-22 18:29:35 Front door (perhaps still under way)",
        f"8 new object(s), {sum(len(path.read_bytes()) for path in fetched(tmp_path)) / 1e6:.1f} MB; 3 event(s)",
        f"Open {(tmp_path / 'index.html').as_uri()}",
    ]
    assert "asking" in told.stderr, "no progress bar"


def fetched(folder: Path) -> list[Path]:
    return [path for name in ("images", "clips", "best", "parts") for path in (folder / name).iterdir()]


def test_a_wrong_set_up_is_one_line_with_what_to_do(tmp_path: Path, s3: S3Server) -> None:
    no_bucket = viewer(tmp_path, s3.environment())
    assert (no_bucket.returncode, "are the names at the top" in no_bucket.stderr) == (1, True)
    no_profile = viewer(tmp_path, s3.environment(), "--profile", "nobody")
    assert (no_profile.returncode, "nobody" in no_profile.stderr) == (1, True)
    no_keys = {**s3.environment(), "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    assert "credentials" in viewer(tmp_path, no_keys).stderr.lower()
    (tmp_path / "file").touch()
    no_folder = viewer(tmp_path / "file", s3.environment())
    assert (no_folder.returncode, "choose another --folder" in no_folder.stderr) == (1, True)
    for told in (no_bucket, no_profile, no_folder):
        assert "Traceback" not in told.stderr


def test_the_pre_roll_is_the_scripts() -> None:
    assert constants(ROOT / "detect_and_upload.py")["PRE_ROLL_S"] == PRE_ROLL_S


def test_the_buckets_names_are_read_from_the_script_which_is_never_run(
    tmp_path: Path, s3: S3Server, buckets: Any
) -> None:
    shutil.copytree(ROOT / "viewer", tmp_path / "viewer")
    lines = [f'IMAGES_BUCKET = "{IMAGES_BUCKET}"', f'VIDEOS_BUCKET = "{VIDEOS_BUCKET}"', "open('RUN', 'w')", "1 / 0"]
    (tmp_path / "detect_and_upload.py").write_text("\n".join(lines))
    told = viewer(tmp_path / "events", s3.environment(), cwd=tmp_path)
    assert (told.returncode, "3 event(s)" in told.stdout) == (0, True), told.stderr
    assert not (tmp_path / "RUN").exists()
    (tmp_path / "detect_and_upload.py").write_text("VIDEOS_BUCKET = 'x'")
    assert "cannot be read" in viewer(tmp_path / "events", s3.environment(), cwd=tmp_path).stderr
