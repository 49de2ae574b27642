"""`--demo` where there is no network and nothing but what the repository holds: the bundled model finds both people."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest

from bench.chromium import Chromium
from guardianberry.detection.weights import BUNDLED
from guardianberry.recording.mp4 import Mp4Writer
from tests.daemon import ROOT, Daemon
from tests.h264 import units

NO_NETWORK = {"https_proxy": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}


@pytest.mark.slow
def test_a_fresh_clone_without_a_network_shows_two_events(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for suffix in (".xml", ".bin"):
        shutil.copy(ROOT / "models" / Path(BUNDLED).with_suffix(suffix), models)
    official = {"WEIGHTS": "yolov5n.pt"}
    with Daemon(tmp_path, models, env=NO_NETWORK, arguments=("--demo",), **official) as daemon:
        assert daemon.process.wait(120) == 0, daemon.log
    assert len(re.findall(f"WARNING .*yolov5n.pt is missing .*{BUNDLED} is used", daemon.log)) == 1
    assert len(re.findall(r"event \d+: ", daemon.log)) == 2
    arrived = [path for path in tmp_path.glob("demo-output/*/s3/*/*") if path.suffix in {".jpg", ".mp4"}]
    assert sorted(path.suffix for path in arrived) == [".jpg", ".jpg", ".mp4", ".mp4"]
    assert re.search(r"demo: and [1-9]\d* part\(s\) of clips while they were recorded, 2 best picture", daemon.log)
    assert daemon.log.count(f"model {BUNDLED}") == 2, "the clips' metadata does not tell which model ran"
    for clip in (path for path in arrived if path.suffix == ".mp4"):
        with av.open(str(clip)) as container:
            assert sum(1 for _ in container.decode(video=0)) > 50
    page = re.search(r"demo: open (file://\S+/page/index.html) in a browser", daemon.log)
    assert page, daemon.log
    if shutil.which("chromium"):
        assert_plays(page[1])


def test_a_demo_that_finds_nobody_says_how_long_inferences_take(tmp_path: Path, models: Path) -> None:
    """On a computer where one takes 1.5 s; the short film shows a moving square."""
    film = tmp_path / "film.mp4"
    mp4 = Mp4Writer(film, width=320, height=240, frame_rate_fps=10)
    for number, unit in enumerate(units(5)):
        mp4.write(unit._replace(arrival_s=number / 10))
    mp4.close()
    daemon = Daemon(tmp_path, models, env=NO_NETWORK, arguments=("--demo", str(film)))
    script = daemon.script.read_text(encoding="utf-8")
    assert script.count("detector.measure_ms()") == 1
    daemon.script.write_text(script.replace("detector.measure_ms()", "1500.0"), encoding="utf-8")
    with daemon:
        assert daemon.process.wait(60) == 0, daemon.log
    (slow,) = re.findall(r"WARNING .*an inference takes 1\.5 s, and an alert needs three", daemon.log)
    said = daemon.log.index("no event began; a warning above tells where inferences are too slow")
    assert daemon.log.index(slow) < said
    assert "object(s) arrived" not in daemon.log
    assert "event 1" not in daemon.log


STAND_INS_ALONE = """
import logging, sys, threading
from pathlib import Path
from guardianberry.demo import demo_folder
logging.basicConfig(level=logging.INFO, format="%(message)s")
with demo_folder(Path(sys.argv[1]), "", threading.Event()) as folder:
    {daemon}
"""
# Root without the power to write everywhere.
AS_ANY_USER = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]


def run_stand_ins(here: Path, daemon: str = "pass") -> subprocess.CompletedProcess[str]:
    """The demo in the folder `here`, with this line of Python in the daemon's place."""
    here.mkdir(exist_ok=True)
    for name in ("demo", "viewer", "detect_and_upload.py"):
        if not (here / name).exists():
            (here / name).symlink_to(ROOT / name)
    command = [*AS_ANY_USER, sys.executable, "-c", STAND_INS_ALONE.format(daemon=daemon), str(here)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_demo_whose_files_do_not_arrive_says_so_and_fails(tmp_path: Path) -> None:
    demo = run_stand_ins(tmp_path, "(folder / 'images').mkdir(); (folder / 'images/a.jpg').write_bytes(b'JPEG')")
    (left,) = tmp_path.glob("demo-output/*/images/a.jpg")
    said = f"demo: nothing arrived in the buckets, see the warnings above; 1 file(s) stay in {left.parent.parent}\n"
    assert said in demo.stderr
    assert "no event began" not in demo.stderr
    assert demo.returncode == 1
    demo = run_stand_ins(tmp_path / "without")
    assert "no event began" in demo.stderr
    assert demo.returncode == 0


def test_two_demos_in_one_second_have_two_folders(tmp_path: Path) -> None:
    second = """import time; time.strftime = lambda _: folder.name
    with demo_folder(Path(sys.argv[1]), "", threading.Event()) as other:
        assert other.is_dir() and other.name == folder.name + "-2", other"""
    demo = run_stand_ins(tmp_path, second)
    assert demo.returncode == 0, demo.stderr


def test_a_demo_that_cannot_make_its_folder_says_what_to_do(tmp_path: Path) -> None:
    output = tmp_path / "demo-output"
    output.mkdir()
    output.chmod(0o500)
    demo = run_stand_ins(tmp_path)
    assert re.fullmatch(f"{output}: Permission denied: sudo chown -R \\S+ {output}\n", demo.stderr)
    assert demo.returncode == 1


def assert_plays(url: str) -> None:
    """Both events have their picture, and a click plays their clip."""
    with Chromium() as browser:
        browser.open(url)
        assert browser.run("document.querySelectorAll('.card').length") == 2
        loaded = "[...document.querySelectorAll('.card img')].filter((image) => image.naturalWidth === 640)"
        browser.wait_for(f"{loaded}.length === 2")
        for place in (0, 1):
            browser.click(f"[data-place='{place}']")
            browser.wait_for("video.currentTime > 3.3 && !video.error")
            assert browser.run("video.videoWidth") == 640
            browser.press("Escape")
        assert browser.console == []
