"""How fluent is the viewer's page with thousands of events? Measured in headless Chromium, without a graphics card.

    python -m bench.viewer [--events N ...]
    python -m bench.viewer --screenshot docs/viewer.png --page demo-output/.../page/index.html

The second one only takes a picture of a page.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import uuid
from pathlib import Path

import av
import cv2

from bench import report
from bench.chromium import Chromium
from viewer.events import PICTURE, WHOLE, Event
from viewer.page import write_page

_START_S = 1_795_371_975
_GAP_S = 1200  # between events: 72 a day
_SCENE = report.ROOT / "demo" / "scene.mp4"
# Every animation frame while the page is scrolled from its top to its end in 6 s, as with a thumb on the scroll bar.
_SCROLL = """new Promise((done) => {
    const gaps = [], length = document.documentElement.scrollHeight, began = performance.now();
    let last = began;
    function step(now) {
        gaps.push(now - last);
        last = now;
        const share = (now - began) / 6000;
        window.scrollTo(0, share * length);
        share < 1 ? requestAnimationFrame(step) : done(gaps.slice(2));
    }
    requestAnimationFrame(step);
})"""
# From the choice of a camera to the frame that shows its events.
_FILTER = """new Promise((done) => {
    const began = performance.now(), select = document.getElementById("camera");
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    select.dispatchEvent(new Event("change"));
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""


def make_page(folder: Path, count: int) -> Path:
    """A page of `count` events, each with a picture of its own."""
    pictures = []
    with av.open(str(_SCENE)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 20 == 0:
                pictures.append(cv2.imencode(".jpg", frame.to_ndarray(format="bgr24"))[1].tobytes())
    for name in ("images", "clips"):
        (folder / name).mkdir()
    clip = folder / "clips" / "scene.mp4"
    clip.write_bytes(_SCENE.read_bytes())
    events = []
    for number in range(count):
        name = f"images/{uuid.uuid4()}.jpg"
        (folder / name).write_bytes(pictures[number % len(pictures)])
        camera = ("Front door", "Garden", "Garage")[number % 3]
        state = PICTURE if number % 10 == 9 else WHOLE
        event = Event(
            str(uuid.uuid4()), _START_S - number * _GAP_S, 60, camera, 1 + number % 3, 50 + number % 50, 12, state
        )
        event.pictures = [name]
        event.clip = "clips/scene.mp4" if state == WHOLE else ""
        events.append(event)
    return write_page(folder, events, [], now_s=_START_S, pre_roll_s=3)


def measure(count: int) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="viewer-") as folder, Chromium() as browser:
        page = make_page(Path(folder), count)
        browser.open(page.as_uri())
        browser.call("Performance.enable")
        load_ms = browser.run("performance.getEntriesByType('navigation')[0].domComplete")
        paint_ms = browser.run("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
        gaps_ms = browser.run(_SCROLL)
        filter_ms = [browser.run(_FILTER) for _ in range(8)]
        browser.run("window.scrollTo(0, 0)")
        browser.run("clicked_ms = 0, addEventListener('click', () => clicked_ms = performance.now(), true)")
        browser.run("played = new Promise((done) => video.onplaying = () => done(performance.now())), 0")
        browser.click(".card")
        play_ms = browser.run("played.then((at) => at - clicked_ms)")
        metrics = {each["name"]: each["value"] for each in browser.call("Performance.getMetrics")["metrics"]}
        return [
            f"{count:,}",
            f"{page.stat().st_size / 1e6:.1f}",
            f"{paint_ms:.0f}",
            f"{load_ms:.0f}",
            f"{report.percentile(gaps_ms, 0.5):.0f} / {report.percentile(gaps_ms, 0.99):.0f} / {max(gaps_ms):.0f}",
            f"{report.percentile(filter_ms, 0.5):.0f}",
            f"{play_ms:.0f}",
            f"{metrics['JSHeapUsedSize'] / 1e6:.0f}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[100, 1000, 5000, 20000])
    parser.add_argument("--screenshot", type=Path, metavar="PNG")
    parser.add_argument("--page", type=Path, metavar="HTML")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    if options.screenshot:
        if not options.page:
            parser.error("--screenshot needs --page")
        take_screenshot(options.page, options.screenshot, dark=options.dark)
        return
    head = ["events", "page MB", "first picture ms", "loaded ms", "ms between frames: median / p99 / longest"]
    head += ["choose a camera ms", "click to video ms", "JavaScript heap MB"]
    lines = report.table(head, [measure(count) for count in options.events])
    with Chromium() as browser:
        version = browser.call("Browser.getVersion", session=False)["product"]
    lines += ["", f"{version}, window of 1200 x 800 px, the page scrolled from top to end in 6 s. {report.machine()}."]
    report.write_section("viewer", lines)


def take_screenshot(page: Path, picture: Path, *, dark: bool) -> None:
    with Chromium(width_px=640, height_px=510, dark=dark) as browser:
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(page.resolve().as_uri())
        browser.wait_for("[...document.querySelectorAll('.card img')].slice(0, 3).every((image) => image.complete)")
        browser.screenshot(picture)
    print(f"{picture}: {os.path.getsize(picture) // 1000} kB")


if __name__ == "__main__":
    main()
