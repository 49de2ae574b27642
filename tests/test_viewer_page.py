"""The page in a real browser: it plays, it goes on, it fits a phone, and hostile objects run nothing."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.chromium import Chromium
from tests.s3_server import S3Server
from tests.viewer_rig import (
    START_S,
    Film,
    ListStore,
    clip_metadata,
    film,
    image_metadata,
    jpeg,
    part_metadata,
)
from viewer import show
from viewer.events import WHOLE, Event, Gap
from viewer.objects import VIDEOS
from viewer.page import write_page
from viewer.stores import S3Store

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium (apt install chromium)")

HOUR_S = 3600
EVENT = "0b9d5ad2-55a6-4a6e-9e0c-0f7f2a4f9f01"
MOMENT_S = 3  # PRE_ROLL_S
WAIT = "new Promise((done) => setTimeout(done, 300))"
SCRIPTS = [
    "<script>pwned('tag')</script>",
    "</script><script>pwned('end')</script>",
    "<!--<script>",
    "<img src=x onerror=pwned('img')>",
    "'\"><svg onload=pwned('svg')>",
    "javascript:pwned('url')",
    "https://example.com/x.jpg",
    "<link rel=stylesheet href=//example.com>",
    "{{constructor.constructor('pwned()')()}}",
    "\u2028pwned('line')\u2029",
    "__proto__",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Film:
    return film(tmp_path_factory.mktemp("film"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def quiet(browser: Chromium) -> Iterator[Chromium]:
    """The browser; afterwards it must have had nothing to complain about and have asked no other place."""
    browser.console.clear()
    browser.requests.clear()
    yield browser
    assert browser.console == []
    assert asked_elsewhere(browser) == []


def asked_elsewhere(browser: Chromium) -> list[str]:
    """Its own controls are drawn from data: URLs."""
    return [url for url in browser.requests.values() if not url.startswith(("file:", "data:image/svg+xml"))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, clip: Film) -> Path:
    """Out of an S3 server: three events at the front door, one in the garden, one that was not finished."""
    folder = tmp_path_factory.mktemp("events")
    with S3Server() as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment().items():
            patch.setenv(name, value)
        s3.create_bucket("images", "videos")
        client = s3.client()
        for number, camera in enumerate(["Front door", "Garden", "Front door", "Front door"]):
            start_s = START_S - number * 5 * HOUR_S
            about = {"camera_name": camera, "local_time": "2026-11-22T19:26:15+01:00"}
            for bucket, suffix, body, told in (
                ("images", "jpg", jpeg(shade=60 + 40 * number), image_metadata(start_s, **about)),
                ("videos", "mp4", clip.finished, clip_metadata(start_s, **about)),
            ):
                client.put_object(Bucket=bucket, Key=f"{uuid.uuid4()}.{suffix}", Body=body, Metadata=told)
        for number, body in enumerate(clip.parts(20, 40, 70)):
            told = part_metadata(EVENT, number, START_S - 30 * HOUR_S)
            client.put_object(Bucket="videos", Key=f"live/{EVENT}/{number:04}.part", Body=body, Metadata=told)
        client.put_object(Bucket="videos", Key=f"best/{EVENT}.jpg", Body=jpeg(), Metadata=told)
        store = S3Store(images_bucket="images", videos_bucket="videos", profile=None)
        return show(store, folder, days=30_000)[0]


def fresh(browser: Chromium, page: Path) -> None:
    """Open it as in a browser that has never seen it."""
    browser.open(page.as_uri())
    browser.run("localStorage.clear()")
    browser.open(page.as_uri())


def times(browser: Chromium) -> list[str]:
    return browser.run("[...document.querySelectorAll('.card .time')].map((e) => e.textContent)")


def test_a_click_plays_the_clip_from_the_moment_of_detection(quiet: Chromium, page: Path) -> None:
    fresh(quiet, page)
    assert times(quiet)[:2] == ["19:26:15", "14:26:15"], "newest first, in the camera's local time"
    assert "2 people · 88 % · 8 s" in quiet.run("document.querySelector('.card').innerText")
    quiet.wait_for("document.querySelector('.card img').naturalWidth === 640")
    quiet.click(".card")
    quiet.wait_for("video.currentTime > 0 && !video.paused")
    at_s = quiet.run("video.currentTime")
    assert at_s >= MOMENT_S
    quiet.wait_for(f"video.currentTime > {at_s} + 0.3")
    assert quiet.run("video.error") is None
    assert quiet.run("video.videoWidth") == 320


def test_a_clip_shorter_than_its_pre_roll_plays_from_its_beginning(quiet: Chromium, tmp_path: Path) -> None:
    store = ListStore()
    store.clip(film(tmp_path, seconds=3).finished, clip_metadata())
    fresh(quiet, show(store, tmp_path, days=7, clock=lambda: store.now_s)[0])
    quiet.click(".card")
    quiet.wait_for("video.currentTime > 0 && video.currentTime < 1.5")


def test_a_clip_that_does_not_play_says_so(browser: Chromium, tmp_path: Path, clip: Film) -> None:
    store = ListStore()
    store.clip(b"\0\0\0\x20ftypisom" + bytes(1000), clip_metadata())
    store.clip(clip.finished, clip_metadata(START_S - 60))
    fresh(browser, show(store, tmp_path, days=7, clock=lambda: store.now_s)[0])
    browser.click(".card")
    browser.wait_for("document.getElementById('caption').textContent.endsWith('this clip does not play')")
    browser.press("ArrowRight")
    browser.wait_for("video.currentTime > 3")
    assert "does not play" not in browser.run("document.getElementById('caption').textContent")


def test_arrow_keys_go_on_and_what_was_seen_comes_after_what_was_not(quiet: Chromium, page: Path) -> None:
    fresh(quiet, page)
    assert "5 events, 5 not yet seen" in quiet.run("document.getElementById('summary').innerText")
    quiet.click("[data-place='1']")
    for key, place in (("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 0)):
        quiet.press(key)
        assert quiet.run("current") == place
    quiet.wait_for("video.readyState > 1")
    quiet.press("Escape")
    quiet.wait_for("!player.open && !video.hasAttribute('src')")
    quiet.open(page.as_uri())
    assert quiet.run("document.querySelector('#list h2').textContent") == "Not yet seen (2)"
    assert quiet.run("document.querySelectorAll('.card.new').length") == 2
    assert times(quiet)[:3] == ["04:26:15", quiet.run("shown[1].at.time"), "19:26:15"]
    quiet.click("#all-seen")
    assert quiet.run("document.querySelectorAll('.card.new').length") == 0
    assert len(times(quiet)) == 5, "nothing is there twice"


def test_cameras_and_hours_are_chosen(quiet: Chromium, page: Path) -> None:
    def choose(select: str, value: str) -> list[str]:
        quiet.run(f"{select}_choice = document.getElementById('{select}'), {select}_choice.value = '{value}',"
                  f" {select}_choice.dispatchEvent(new Event('change'))")  # fmt: skip
        return times(quiet)

    fresh(quiet, page)
    assert choose("camera", "Garden") == ["14:26:15"]
    assert choose("hour", "19") == []
    assert choose("camera", "") == ["19:26:15"]
    assert choose("hour", "night")[0] == "04:26:15"
    assert len(choose("hour", "")) == 5


def test_parts_of_an_unfinished_event_play_and_the_whole_clip_takes_their_place(
    quiet: Chromium, tmp_path: Path, clip: Film
) -> None:
    store = ListStore()
    store.parts(EVENT, clip.parts(20, 40, 70))
    store.put(VIDEOS, f"best/{EVENT}.jpg", jpeg(shade=200), image_metadata(event=EVENT))
    fresh(quiet, show(store, tmp_path, days=7, clock=lambda: store.now_s + 300)[0])
    assert "the camera did not finish this one" in quiet.run("document.querySelector('.card').innerText")
    quiet.wait_for("document.querySelector('.card img').naturalWidth === 640")
    quiet.click(".card")
    quiet.wait_for(f"video.currentTime > {MOMENT_S} + 0.3 && !video.error")
    assert quiet.run("video.currentSrc").endswith(f"joined/{EVENT}.mp4")
    store.clip(clip.finished, clip_metadata(event=EVENT))
    quiet.open(show(store, tmp_path, days=7, clock=lambda: store.now_s + 300)[0].as_uri())
    assert len(times(quiet)) == 1, "it is there twice"
    assert "did not finish" not in quiet.run("document.body.innerText")
    quiet.click(".card")
    quiet.wait_for(f"video.currentTime > {MOMENT_S} + 0.3 && !video.error")
    assert "/clips/" in quiet.run("video.currentSrc")


def event(number: int, **changes: object) -> Event:
    made = Event(
        f"e{number}", START_S - number * HOUR_S, 60, "Garden", 1, 80, 8, WHOLE, "clips/x.mp4", ["images/x.jpg"]
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_a_silence_stands_between_the_events_around_it(browser: Chromium, tmp_path: Path) -> None:
    gaps = [
        Gap("garden", START_S - HOUR_S, START_S - HOUR_S // 2),
        Gap("garden", START_S + 60, None),
    ]
    page = write_page(tmp_path, [event(0), event(2)], gaps, now_s=START_S + HOUR_S, pre_roll_s=3)
    fresh(browser, page)
    order = browser.run("[...document.querySelectorAll('.gap, .card')].map((e) => e.textContent)")
    assert order[0].startswith("Garden: no heartbeat since ")
    assert order[0].endswith("(59 min)")
    assert order[2].startswith("Garden: no heartbeat ")
    assert order[2].endswith("(30 min)")
    assert len(order) == 4


def test_cards_are_made_when_they_come_near_the_window(browser: Chromium, tmp_path: Path) -> None:
    events = [event(number) for number in range(400)]
    fresh(browser, write_page(tmp_path, events, [], now_s=START_S, pre_roll_s=3))
    assert 60 <= len(times(browser)) < 200
    browser.run("window.scrollTo(0, document.documentElement.scrollHeight)")
    browser.wait_for("document.querySelector('[data-place=\"399\"]') !== null")
    assert len(times(browser)) < 300
    browser.run("open_event(200)")
    browser.press("ArrowRight")
    browser.press("Escape")
    browser.wait_for("document.querySelector('[data-place=\"201\"]')?.getBoundingClientRect().bottom <= innerHeight")


def test_an_object_with_script_in_every_field_runs_nothing(browser: Chromium, tmp_path: Path, clip: Film) -> None:
    store = ListStore()
    for number, script in enumerate(SCRIPTS):
        fields = {*image_metadata(), *clip_metadata(), "local_time", "event", script[:20]}
        told = dict.fromkeys(fields, script) | {"recording_start_time": str(START_S - number * 60)}
        polyglot = jpeg()[:-2] + script.encode() + b"\xff\xd9"
        store.image(polyglot, told)
        store.clip(clip.finished + b"\0\0\0\x08free" + script.encode(), told)
        store.clip(f"\0\0\0\x20ftyp{script}".encode(), dict.fromkeys(told, script))
        store.image(script.encode(), told)
        store.put(VIDEOS, f"alive/{script.replace('/', '')}/{START_S}", script.encode(), told)
        store.put(VIDEOS, f"live/{uuid.uuid4()}/0000.part", b"\0\0\0\x20ftyp" + script.encode(), told)
        store.put(VIDEOS, script, script.encode(), told)
    page, events, _ = show(store, tmp_path, days=7, clock=lambda: store.now_s + HOUR_S)
    assert len(events) >= 3 * len(SCRIPTS)
    assert_runs_nothing(browser, page)


def test_the_page_runs_nothing_even_of_what_python_should_have_refused(browser: Chromium, tmp_path: Path) -> None:
    events, gaps = [], []
    for number, script in enumerate(SCRIPTS):
        changes = dict.fromkeys(("id", "camera", "state", "clip", "people", "confidence", "duration_s"), script)
        events.append(event(number, pictures=[script], **changes))
        gaps.append(Gap(script, START_S - number * HOUR_S, START_S))
    page = write_page(tmp_path, events, gaps, now_s=START_S, pre_roll_s=3)
    assert_runs_nothing(browser, page)


def assert_runs_nothing(browser: Chromium, page: Path) -> None:
    browser.requests.clear()
    fresh(browser, page)
    browser.run("window.ran = [], window.pwned = (what) => ran.push(what)")
    browser.console.clear()
    browser.run("render()")
    cards = browser.run("document.querySelectorAll('.card').length")
    assert cards > 0
    for place in range(min(cards, 12)):
        browser.click(f"[data-place='{place}']")
        browser.press("ArrowRight")
        browser.press("Escape")
    browser.run(WAIT)
    assert browser.run("ran") == []
    assert not [line for line in browser.console if "dialog" in line]
    assert asked_elsewhere(browser) == []
    expected = ["BUTTON", "IMG", "SPAN"]
    assert (
        browser.run("[...new Set([...document.querySelectorAll('#list .card, .card *')].map((e) => e.tagName))].sort()")
        == expected
    )
    # Had something got in as markup after all, the page's policy would have stopped it.
    browser.run("""document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="pwned(1)">'
        + '<iframe srcdoc="<script>parent.pwned(2)<\\/script>"></iframe><img src="https://example.com/x">')""")
    browser.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'pwned(3)'}))")
    browser.run(WAIT)
    assert browser.run("ran") == []
    assert browser.run("fetch('https://example.com').then(() => 'sent', () => 'refused')") == "refused"
    blocked = [line for line in browser.console if "Content Security Policy" in line]
    assert len(blocked) >= 4, browser.console


@pytest.mark.parametrize("dark", [True, False])
def test_it_fits_a_phone_and_is_dark_at_night(page: Path, tmp_path: Path, dark: bool) -> None:
    with Chromium(width_px=360, height_px=740, dark=dark) as phone:
        phone.open(page.as_uri())
        assert phone.run("document.documentElement.scrollWidth") <= 360
        right_edges = "[...document.querySelectorAll('.card, header *')].map((e) => e.getBoundingClientRect().right)"
        assert max(phone.run(right_edges)) <= 360
        phone.click(".card")
        phone.wait_for("video.currentTime > 0")
        assert phone.run("player.getBoundingClientRect().width") <= 360
        assert phone.run("player.getBoundingClientRect().bottom") <= 740
        brightness = sum(map(int, phone.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")))
        assert (brightness < 3 * 60) is dark
        assert phone.console == []
