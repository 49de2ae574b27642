"""File names: the format round-trips, and nothing else is taken for it."""

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardianberry.filenames import (
    OPEN_PREFIX,
    HeldName,
    ImageName,
    VideoName,
    free_path,
    parse,
    parse_held,
    parse_open,
    with_event_id,
)

fields = st.integers(0, 10**15 - 1)
video_names = st.builds(VideoName, *[fields] * 7)
image_names = st.builds(ImageName, *[fields] * 4)
names = st.one_of(video_names, image_names)
held_names = st.builds(HeldName, st.from_regex(r"[0-9a-f]{8}", fullmatch=True), fields, names)


def test_the_contracts_examples():
    assert VideoName(1700000000, 17, 2, 93, 12, 640, 480).encode() == "1700000000-17-2-93-12-640-480.mp4"
    assert ImageName(1700000000, 93, 640, 480).encode() == "1700000000-93-640-480.jpg"
    assert parse("1700000000-17-2-93-12-640-480.mp4") == VideoName(1700000000, 17, 2, 93, 12, 640, 480)
    assert parse("1700000000-93-640-480.jpg") == ImageName(1700000000, 93, 640, 480)


@given(names)
def test_a_name_comes_back_as_it_went(name):
    assert parse(name.encode()) == name


@given(held_names)
def test_a_held_name_comes_back_and_is_no_finished_file(held):
    assert parse_held(held.encode()) == held
    assert parse(held.encode()) is None


@given(video_names, st.from_regex(r"[0-9a-f]{8}", fullmatch=True), fields)
def test_an_open_clip_tells_its_event_plain_or_held(name, boot, monotonic_ms):
    held = HeldName(boot, monotonic_ms, name)
    assert parse_open(OPEN_PREFIX + name.encode()) == name
    assert parse_open(OPEN_PREFIX + held.encode()) == held
    assert parse(OPEN_PREFIX + name.encode()) is None


@given(st.text())
def test_whatever_parses_is_exactly_what_encode_would_write(text):
    for candidate in (text, text + ".mp4", text + ".jpg"):
        parsed = parse(candidate)
        assert parsed is None or parsed.encode() == candidate


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1700000000-93-640-480.jpeg",
        "1700000000-93-640-480.jpg.part",
        "1700000000-93-640-480.jpg\n",
        "01700000000-93-640-480.jpg",  # encode writes no leading zero
        "1700000000-93-640--480.jpg",
        "1700000000-93-640.jpg",
        "1700000000-93-640-480-1.jpg",
        "1700000000-93-640-480.mp4",  # an image's fields with a video's suffix
        "\u0661700000000-93-640-480.jpg",  # a digit, but not an ASCII one
        "1700000000-17-2-93-12-640-480.mp4/..",
        " 1700000000-93-640-480.jpg",
        "1" * 16 + "-93-640-480.jpg",
    ],
)
def test_other_names_are_refused(name):
    assert parse(name) is None


@pytest.mark.parametrize("bad", [-1, 10**15])
def test_a_field_that_would_not_come_back_is_refused_when_encoding(bad):
    for field in dataclasses.fields(ImageName):
        with pytest.raises(ValueError, match="does not fit"):
            dataclasses.replace(ImageName(1, 2, 3, 4), **{field.name: bad}).encode()


def test_a_free_path_never_replaces_another_events_file(tmp_path: Path):
    name = ImageName(1700000000, 93, 640, 480)
    for _ in range(3):
        free_path(tmp_path, name).touch(exist_ok=False)
    starts = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert starts == ["1700000000", "1700000001", "1700000002"]


def test_thousands_of_files_of_the_same_second_take_no_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name, looks, look = ImageName(1700000000, 93, 640, 480), [], os.path.lexists
    monkeypatch.setattr("os.path.lexists", lambda path: looks.append(path) or look(path))
    for _ in range(2000):
        free_path(tmp_path, name).touch(exist_ok=False)
    assert len(looks) < 2000 * 50, "in turn they would be two millions"
    starts = sorted(int(path.name.partition("-")[0]) for path in tmp_path.iterdir())
    assert starts[:20] == list(range(1700000000, 1700000020))
    assert starts[-1] < 1700000000 + 10_000_000


def test_with_event_id_changes_the_start_alone():
    name = VideoName(1, 2, 3, 4, 5, 6, 7)
    assert with_event_id(name, 99) == VideoName(99, 2, 3, 4, 5, 6, 7)


def test_no_name_is_too_large_to_count_on_from(tmp_path: Path):
    for name in (ImageName(10**15 - 1, 93, 640, 480), VideoName(10**15 - 1, *[10**15 - 1] * 6)):
        for _ in range(3):
            path = free_path(tmp_path, name)
            assert parse(path.name)
            path.touch(exist_ok=False)
    for event_id in (10**15, 10**40):
        assert parse(with_event_id(ImageName(1, 2, 3, 4), event_id).encode())
