"""`--demo`: the whole daemon, with stand-ins for the camera and the buckets.

The camera is demo/rpicam-vid, found on PATH like the real one; the buckets are demo/s3_stand_in.py on the loopback
interface. Both are processes that speak the real protocols, so all of the daemon's own code runs.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from guardianberry.disk import what_to_do
from guardianberry.machine import for_child

log = logging.getLogger(__name__)

_UPLOAD_WAIT_S = 15.0
_POLL_S = 0.2


@contextmanager
def demo_folder(here: Path, video: str, stop: threading.Event) -> Iterator[Path]:
    """Start the stand-ins for a run over `video` (empty: the built-in scene); yields the folder for the daemon's files.

    Sets `stop` when the video is over and all files are uploaded, and logs at the end where the objects are. Raises
    SystemExit where the folder cannot be made, and where there are files and none of them arrived.
    """
    source = Path(video) if video else here / "demo" / "scene.mp4"
    if not source.is_file():
        raise SystemExit(f"{source}: no such video")
    folder = _new_folder(here / "demo-output")
    end_file = folder / "video-is-over"
    with _s3_stand_in(here, folder / "s3") as endpoint:
        os.environ.update(
            PATH=os.pathsep.join([str(Path(sys.executable).parent), str(here / "demo"), os.environ["PATH"]]),
            STAND_IN_VIDEO=str(source),
            STAND_IN_AT_END="hold",
            STAND_IN_END_FILE=str(end_file),
            **_demo_credentials(endpoint),
        )
        os.environ.pop("AWS_PROFILE", None)
        log.info("demo: %s plays as the camera; the buckets are %s", source.name, endpoint)
        threading.Thread(target=_stop_at_end, args=(folder, end_file, stop), daemon=True).start()
        yield folder
    if not log_objects(folder) and (left := _queued(folder)):
        log.error("demo: nothing arrived in the buckets, see the warnings above; %d file(s) stay in %s", left, folder)
        raise SystemExit(1)
    _write_page(here, folder)


def _new_folder(parent: Path) -> Path:
    """Named after the time; demos may begin in the same second."""
    now = time.strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(exist_ok=True)
        for number in count(1):
            folder = parent / (now if number == 1 else f"{now}-{number}")
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                break
    except OSError as error:
        raise SystemExit(f"{parent}: {what_to_do(error, parent)}") from error
    return folder


@contextmanager
def _s3_stand_in(here: Path, folder: Path) -> Iterator[str]:
    """A process that answers PutObject on a loopback port; yields its URL."""
    command = [sys.executable, str(here / "demo" / "s3_stand_in.py"), str(folder)]
    with subprocess.Popen(command, **for_child(), stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def _demo_credentials(endpoint: str) -> dict[str, str]:
    """None of the user's own: the demo must never write into a real bucket."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def _stop_at_end(folder: Path, end_file: Path, stop: threading.Event) -> None:
    while not end_file.exists():
        if stop.wait(_POLL_S):
            return
    log.info("demo: the video is over")
    give_up_s = time.monotonic() + _UPLOAD_WAIT_S
    while _queued(folder):
        if time.monotonic() > give_up_s or stop.wait(_POLL_S):
            break
    stop.set()


def _queued(folder: Path) -> int:
    return sum(1 for name in ("images", "videos") for _ in folder.glob(f"{name}/*"))


def log_objects(folder: Path) -> int:
    """Images first, then videos, by time; returns how many."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("s3/*/*.metadata.json")]
    found.sort(key=lambda item: (item[0].parent.name, item[1]["metadata"].get("recording_start_time", "")))
    if not found and not _queued(folder):
        log.info("demo: no event began; a warning above tells where inferences are too slow for this video")
        return 0
    log.info("demo: %d object(s) arrived in the buckets", len(found))
    parts, bests = (len(list(folder.glob(f"s3/*/{pattern}.metadata.json"))) for pattern in ("live/*/*", "best/*"))
    log.info("demo: and %d part(s) of clips while they were recorded, %d best picture(s)", parts, bests)
    for path, stored in found:
        metadata = stored["metadata"]
        log.info("  %s", path.with_name(path.name.removesuffix(".metadata.json")).relative_to(folder.parent.parent))
        shown = sorted(metadata.keys() - {"rpi_serial_no", "camera_name", "event", "local_time"})
        log.info("      %s", ", ".join(f"{name} {metadata[name]}" for name in shown))
    return len(found)


def _write_page(here: Path, folder: Path) -> None:
    """The page of these events, as `python3 -m viewer` makes it of an owner's."""
    from viewer import show_folder
    from viewer.script import constants

    names = constants(here / "detect_and_upload.py")
    page = show_folder(
        folder / "s3",
        folder / "page",
        images_bucket=names["IMAGES_BUCKET"],
        videos_bucket=names["VIDEOS_BUCKET"],
        pre_roll_s=names["PRE_ROLL_S"],
    )
    log.info("demo: open %s in a browser", page.as_uri())
