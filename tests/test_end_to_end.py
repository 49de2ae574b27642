"""The whole mission on one machine: the real process, a camera program on PATH, an S3 server over HTTP."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import detect_and_upload as script
from tests.daemon import CLIPS, ROOT, SCENE, SMALL_INPUT, Daemon
from tests.faulty_proxy import FaultyProxy
from tests.h264 import decode
from tests.s3_server import S3Server, StoredObject, environment

CCTV = CLIPS / "anubhavm55_CCTV.mp4"
SHORT_EVENTS = {"MAX_RECORDING_DURATION_S": 4, "PRE_ROLL_S": 1, "MIN_GAP_BETWEEN_VIDEO_START_S": 5, "CLOCK_WAIT_S": 0}
SHORT_EVENTS |= SMALL_INPUT


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def buckets(s3: S3Server, request: pytest.FixtureRequest) -> dict[str, str]:
    """Two buckets of this test's own, as constants of the script."""
    unique = uuid.uuid4().hex[:8]
    names = {"IMAGES_BUCKET": f"images-{unique}", "VIDEOS_BUCKET": f"videos-{unique}"}
    s3.create_bucket(*names.values())
    return names


def camera(folder: Path, video: Path, **settings: str) -> dict[str, str]:
    """The stand-in camera's environment; what it sends is logged to `folder`/camera.jsonl."""
    return {"STAND_IN_VIDEO": str(video), "STAND_IN_AT_END": "hold", "STAND_IN_LOG": str(folder / "camera.jsonl")} | {
        f"STAND_IN_{name.upper()}": value for name, value in settings.items()
    }


def frames_sent(folder: Path) -> list[dict]:
    lines = (folder / "camera.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "number" in entry]


def save(folder: Path, stored: StoredObject) -> Path:
    path = folder / stored.key
    path.write_bytes(stored.body)
    return path


def place_in_clip(clip: Path, picture: np.ndarray) -> float:
    """Where in the clip the frame of the alert image stands, in seconds: the frame most like it."""

    def small(bgr: np.ndarray) -> np.ndarray:
        return cv2.resize(bgr, (160, 120), interpolation=cv2.INTER_AREA).astype(np.int16)

    with av.open(str(clip)) as container:
        differences = [
            (float(np.abs(small(frame.to_ndarray(format="bgr24")) - small(picture)).mean()), frame.time)
            for frame in container.decode(video=0)
        ]
    return min(differences)[1]


@pytest.mark.parametrize("film", [SCENE, CCTV], ids=lambda path: path.name)
def test_a_person_is_seen_and_both_objects_arrive(tmp_path, models, s3, buckets, film):
    if not film.exists():
        pytest.skip(f"needs ../shared/clips/{film.name}, which is not published")
    env = s3.environment() | camera(tmp_path, film, persona="pi5")  # slices, pieces, a bit rate bounded by request
    with Daemon(tmp_path, models, env=env, CLOCK_WAIT_S=0, **buckets) as daemon:
        daemon.wait_for_log("video .*: uploaded", timeout_s=90)
        daemon.wait_until(lambda: not daemon.pending(), "videos/ and images/ are not empty")
        serial = s3.objects(buckets["IMAGES_BUCKET"])[0].metadata["rpi_serial_no"]
    (image,) = s3.objects(buckets["IMAGES_BUCKET"])
    (video,) = (stored for stored in s3.objects(buckets["VIDEOS_BUCKET"]) if "/" not in stored.key)

    assert uuid.UUID(image.key.removesuffix(".jpg"))
    assert uuid.UUID(video.key.removesuffix(".mp4"))
    assert (image.content_type, video.content_type) == ("image/jpeg", "video/mp4")
    assert image.server_side_encryption == video.server_side_encryption == "AES256"

    picture = cv2.imdecode(np.frombuffer(image.body, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (480, 640, 3)
    assert set(image.metadata) == {
        "rpi_serial_no",
        "recording_start_time",
        "confidence",
        "width",
        "height",
        "alert_latency_ms",
        *("camera_name", "local_time", "event"),
    }
    assert image.metadata["camera_name"] == serial[-4:]
    assert (image.metadata["width"], image.metadata["height"]) == ("640", "480")
    assert abs(int(image.metadata["recording_start_time"]) - time.time()) < 120
    assert 26 <= int(image.metadata["confidence"]) <= 100
    assert 0 <= int(image.metadata["alert_latency_ms"]) < 5000

    clip = save(tmp_path, video)
    frames, duration_s, first_is_key = decode(clip)
    told = video.metadata
    assert first_is_key
    assert told["duration"] == told["duration_s"] == str(min(round(duration_s), script.MAX_RECORDING_DURATION_S))
    assert frames == pytest.approx(duration_s * script.FRAME_RATE_FPS, rel=0.1)
    assert told["recording_start_time"] == image.metadata["recording_start_time"]
    assert [told[name] for name in ("event", "local_time")] == [
        image.metadata[name] for name in ("event", "local_time")
    ]
    assert told["rpi_serial_no"] == serial != ""
    assert told["model"] in daemon.log
    assert "/" not in told["model"]
    assert (told["frame_rate"], told["confidence_threshold"]) == (
        str(script.FRAME_RATE_FPS),
        str(script.CONF_THRES),
    )
    assert (told["width"], told["height"]) == ("640", "480")
    assert int(told["max_people_found"]) >= 1
    assert int(image.metadata["confidence"]) <= int(told["max_confidence"]) <= 100
    assert int(told["inference_time_ms"]) >= 1
    assert set(told) == {
        "rpi_serial_no",
        "model",
        "frame_rate",
        "confidence_threshold",
        "recording_start_time",
        "duration",
        "duration_s",
        "max_people_found",
        "max_confidence",
        "inference_time_ms",
        "width",
        "height",
        *("camera_name", "local_time", "event"),
    }

    # The neighbours of the alert's frame look almost like it, hence the slack of three frames.
    pre_roll_s = place_in_clip(clip, picture)
    stream_length_s = frames_sent(tmp_path)[-1]["source_s"]
    assert stream_length_s > script.PRE_ROLL_S + 1, "the person is there too early for this test"
    assert pre_roll_s >= script.PRE_ROLL_S - 0.3
    assert pre_roll_s <= script.PRE_ROLL_S + 1 + 0.6


@pytest.mark.parametrize(("name", "start_s"), [("intel_car-detection.mp4", 18), ("moonfire_clip.mp4", 0)])
def test_clips_without_people_yield_no_event(tmp_path, models, s3, buckets, name, start_s):
    if not (CLIPS / name).exists():
        pytest.skip(f"needs ../shared/clips/{name}, which is not published")
    end = tmp_path / "end"
    env = s3.environment() | camera(tmp_path, CLIPS / name, start_s=str(start_s), end_file=str(end))
    with Daemon(tmp_path, models, env=env, **buckets) as daemon:
        daemon.wait_until(end.exists, "the clip does not end", timeout_s=120)
        code, _ = daemon.terminate()
    assert code == 0
    assert not re.search(r"event \d+", daemon.log)
    assert not s3.keys(buckets["IMAGES_BUCKET"]) | s3.keys(buckets["VIDEOS_BUCKET"])
    assert not daemon.pending()


def looks_while(daemon: Daemon, seconds: float) -> tuple[int, int]:
    """Frames that the detector saw, and frames that the camera sent, in the next seconds."""

    def counts() -> tuple[int, int]:
        return len(re.findall(r"frame \d+:", daemon.log)), len(frames_sent(daemon.folder))

    before = counts()
    time.sleep(seconds)
    after = counts()
    return after[0] - before[0], after[1] - before[1]


@pytest.mark.slow
def test_without_a_network_nothing_is_lost_and_the_loop_never_notices(tmp_path, models, s3, buckets):
    """First connections are taken and never answered, so that every time-out runs its course; then they are refused."""
    with FaultyProxy() as black_hole:
        black_hole.silent = True
        control = tmp_path / "control"
        env = environment(black_hole.url) | camera(tmp_path, SCENE, start_s="4", control=str(control))
        daemon = Daemon(tmp_path, models, env=env, arguments=("-v",), **SHORT_EVENTS, **buckets).start()
        try:
            daemon.wait_for_log(r"event \d+", timeout_s=90)
            looked_at, sent = looks_while(daemon, 10)
            assert looked_at >= 0.25 * sent > 0, "the loop waits for the network; on a busy machine it looks at half"
        except BaseException:
            daemon.kill()
            raise
    with daemon:
        daemon.wait_for_log("clip finished", count=3, timeout_s=120)
        daemon.wait_for_log("uploads of .* fail: S3 cannot be reached")
        control.write_text("dies,no-camera")  # so that no further event comes between those whose order is compared
        daemon.wait_for_log("no camera found")
        daemon.wait_until(lambda: not [n for n in daemon.pending() if "/." in n], "a file is not finished")
        time.sleep(6)  # the alert lane hands the last image over to the sweep
        waiting = [name.partition("/")[2] for name in daemon.pending() if "/." not in name]
        bests = [name for name in waiting if name.endswith(".best.jpg")]
        images = [name for name in waiting if name.endswith(".jpg") and name not in bests]
        assert len(images) >= 3

        with FaultyProxy(s3.port, port=black_hole.port):
            for name in waiting:
                daemon.wait_for_log(re.escape(name) + ": (?:uploaded|was in the bucket)", timeout_s=90)
            code, _ = daemon.terminate()
    assert code == 0
    order = re.findall(r"(\d+-\S+): uploaded", daemon.log)
    videos = [name for name in waiting if name.endswith(".mp4")]
    assert order == [images[-1], *images[:-1], *bests, *videos], (
        "newest image, images, best pictures, videos, oldest first"
    )
    assert not daemon.pending()


def test_sigterm_in_mid_clip_keeps_the_clip(tmp_path, models):
    """Without any S3 server: the exit must not wait for the network."""
    env = environment("http://127.0.0.1:9") | camera(tmp_path, SCENE, start_s="3")
    with Daemon(tmp_path, models, env=env, CLOCK_WAIT_S=0, **SMALL_INPUT) as daemon:
        daemon.wait_for_log(r"event \d+", timeout_s=90)
        time.sleep(1.5)
        code, took_s = daemon.terminate()
        camera_pids = re.findall(r"rpicam-vid \(pid (\d+)\)", daemon.log)
    assert code == 0, daemon.log
    assert took_s < 5
    assert not Path(f"/proc/{camera_pids[-1]}").exists(), "the camera was left running"
    (image, *best, video) = sorted(daemon.pending(), key=lambda name: (name[:7], name.endswith(".mp4")))
    assert image.startswith("images/1")
    assert video.startswith("videos/1")
    assert all(name.endswith(".best.jpg") for name in best)
    frames, duration_s, first_is_key = decode(daemon.folder / video)
    assert first_is_key
    assert frames >= 15
    assert video.split("-")[1] == str(round(duration_s))


def test_an_error_in_the_loop_still_finishes_camera_and_clip(tmp_path, models, s3, buckets):
    daemon = Daemon(tmp_path, models, env=s3.environment() | camera(tmp_path, SCENE), **SHORT_EVENTS, **buckets)
    script_text = daemon.script.read_text(encoding="utf-8")
    wait = "        # Wait: for a new frame\n"
    assert script_text.count(wait) == 1
    fails = f"        if Path({str(tmp_path / 'fail')!r}).exists():\n            raise RuntimeError('a bug')\n"
    daemon.script.write_text(script_text.replace(wait, fails + wait), encoding="utf-8")
    with daemon:
        daemon.wait_for_log(r"event \d+:.* clip begun")
        (tmp_path / "fail").touch()
        assert daemon.process.wait(10) == 1
    assert "a bug" in daemon.log
    assert "recording stopped: the daemon ends" in daemon.log
    assert "clip finished" in daemon.log
    pids = {int(pid) for pid in re.findall(r"video from rpicam-vid \(pid (\d+)\)", daemon.log)}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "the camera is left behind"


def test_a_second_daemon_on_the_folder_says_so_and_leaves(tmp_path, models):
    env = environment("http://127.0.0.1:9") | camera(tmp_path, SCENE)
    with Daemon(tmp_path, models, env=env) as first:
        first.wait_for_log("camera: video from")
        second = subprocess.run(first._command, env=first._env, capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode == 1
        assert "already" in second.stderr
        assert first.process.poll() is None


def test_asked_to_stop_while_the_weights_are_prepared_it_ends_well(tmp_path):
    for part in (ROOT / "models").glob("guardianberry-n.*"):
        (tmp_path / "models").mkdir(exist_ok=True)
        shutil.copy(part, tmp_path / "models")
    daemon = Daemon(tmp_path, tmp_path / "models", WEIGHTS="guardianberry-n.xml").start()
    daemon.wait_for_log("is being converted")
    code, took_s = daemon.terminate()
    assert code == 0
    assert took_s < 5
    assert "ERROR" not in daemon.log


@pytest.mark.parametrize("option", ["--upload", "--chec"])
def test_an_option_that_launch_sh_would_take_for_another_is_refused(tmp_path, models, option):
    daemon = Daemon(tmp_path, models, arguments=(option,)).start()
    assert daemon.process.wait(30) == 2
    assert option in daemon.log


@pytest.mark.parametrize(
    ("constants", "named"),
    [
        ({"CONF_THRES": 25.5}, "CONF_THRES"),
        ({"PRE_ROLL_S": 15}, "PRE_ROLL_S"),
        ({"MIN_GAP_BETWEEN_VIDEO_START_S": 5}, "MIN_GAP_BETWEEN_VIDEO_START_S"),
        ({"DETECTIONS_TO_START": 0}, "DETECTIONS_TO_START"),
        ({"DETECTIONS_TO_START": 9}, "DETECTIONS_TO_START"),
        ({"FRAME_WIDTH_PX": 641}, "FRAME_WIDTH_PX"),
    ],
)
def test_a_broken_constant_is_named_before_anything_starts(tmp_path, models, constants, named):
    daemon = Daemon(tmp_path, models, **constants).start()
    assert daemon.process.wait(30) == 78
    assert named in daemon.log
    assert "camera" not in daemon.log
