"""`--check`: would the daemon work here? If not, what has to be done?

It runs the daemon's own code, keeps nothing on the disk but the converted model, and does not disturb a running daemon.
It writes into the buckets only when it is asked to, because a new object may alert people.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from guardianberry.armed import ArmedHours
from guardianberry.camera.other_users import RunningCamera, running_cameras
from guardianberry.disk import DiskThread
from guardianberry.doctor.camera import check_camera, check_model, check_program, check_use, save_picture
from guardianberry.doctor.machine import (
    User,
    check_clock,
    check_folder,
    check_power,
    check_start_at_boot,
    check_system,
    check_user,
    current_user,
)
from guardianberry.doctor.page import Finding, Page, fail, ok, warn
from guardianberry.doctor.permissions import check_permissions
from guardianberry.doctor.s3 import check_s3
from guardianberry.duty import Duty
from guardianberry.machine import is_locked
from guardianberry.recording.clock import system_clock_is_synchronised
from guardianberry.settings import by_name, find_problems

if TYPE_CHECKING:
    from guardianberry.camera.supervisor import Camera
    from guardianberry.detection.detector import Detector


class Site(NamedTuple):
    """What the daemon's surroundings say; a test has its own."""

    root: Path = Path("/")
    env: Path = Path(sys.prefix)
    user: Callable[[], User] = current_user
    running_cameras: Callable[[], list[RunningCamera]] = running_cameras
    clock_is_synchronised: Callable[[], bool] = system_clock_is_synchronised
    wait_s: float = 15.0  # for the first frame after the boot, the camera of a daemon that loads its model, and a disk


def check(
    folder: Path,
    constants: Mapping[str, Any],
    make_camera: Callable[..., Camera],
    make_detector: Callable[[], Detector],
    *,
    upload: bool = False,
    site: Site = Site(),  # noqa: B008 (immutable)
    out: TextIO = sys.stdout,
) -> int:
    """Write the page to `out`, each line as soon as it is known; 0 if the daemon would work, else 1.

    The script's constants, by name, and its functions, which are called only if the constants are right.
    """
    logging.getLogger("guardianberry").addHandler(logging.NullHandler())  # the page says what warnings would say
    c, page, user = by_name(constants), Page(out), site.user()
    problems = find_problems(constants)
    page.add(fail("settings", problem, "Edit the top of detect_and_upload.py.") for problem in problems)
    if not problems:
        page.add([ok("settings", "the constants in detect_and_upload.py fit together")])
        page.add([check_heartbeat(c.HEARTBEAT_S)])
    page.add([check_system(site.root)])
    page.add(check_user(folder, user))
    page.add(check_permissions(folder, site.env))
    is_worth_trying = not page.failed  # as root in another user's folder, trying would leave files that he cannot read
    page.add(check_power())
    page.add([check_clock(site.clock_is_synchronised, time.strftime("%Y-%m-%d %H:%M:%S %Z"))])
    min_free_bytes = 0 if problems else c.MIN_FREE_DISK_BYTES
    page.add(_check_folder(folder / name, min_free_bytes, user, site.wait_s) for name in ("images", "videos"))
    page.add([check_start_at_boot(folder, site.root)])
    if is_worth_trying:
        page.add(_camera_and_model(folder, c, make_camera, make_detector, site))
    else:
        page.add([warn("camera", "not tried, nor the model", "Correct what is said above, then check again.")])
    buckets = {"images": c.IMAGES_BUCKET, "videos": c.VIDEOS_BUCKET} if upload and is_worth_trying else {}
    page.add(check_s3(getattr(c, "SERVER_SIDE_ENCRYPTION", None), site.root, buckets))
    return page.end(upload=upload)


def check_heartbeat(every_s: float) -> Finding:
    if every_s:
        return ok("heartbeat", f"every {every_s:.0f} s")
    advice = "HEARTBEAT_S = 300 in detect_and_upload.py and the stack of aws/ do that."
    return warn("heartbeat", "off: nobody is told when this camera falls silent", advice)


def _check_folder(folder: Path, min_free_bytes: int, user: User, wait_s: float) -> Finding:
    try:
        return DiskThread(wait_s).call(check_folder, folder, min_free_bytes, user)
    except TimeoutError:
        advice = "See `dmesg`; check the cable, or replace the card or disk."
        return fail(folder.name + "/", f"no answer for {wait_s:.0f} s", advice)


def _camera_and_model(
    folder: Path,
    c: SimpleNamespace,
    make_camera: Callable[..., Camera],
    make_detector: Callable[[], Detector],
    site: Site,
) -> Iterator[Finding]:
    daemon_runs = is_locked(folder)
    if daemon_runs:
        yield ok("daemon", f"one is running in {folder}")
    program = yield from check_program(site.root, c.CAMERA_OPTIONS)
    frame = None
    duty = Duty(folder, ArmedHours(c.ARMED_HOURS), is_synchronised=site.clock_is_synchronised)
    duty.check_file()
    if daemon_runs and not duty.is_armed():
        yield warn("camera", f"off duty: {duty.off_reason}", "The running daemon films nothing. Check again on duty.")
    elif in_use := check_use(site.running_cameras, c.STREAM_URL, daemon_runs=daemon_runs, wait_s=site.wait_s):
        yield in_use
    elif program:
        frame = yield from check_camera(program, make_camera, (c.FRAME_WIDTH_PX, c.FRAME_HEIGHT_PX), site.wait_s)
    is_converted = any((folder / "models/.cache").glob(f"{Path(c.WEIGHTS).stem}-*.xml"))
    if daemon_runs and not is_converted:  # a second conversion would delay the first
        yield warn("model", f"the running daemon is still preparing {c.WEIGHTS}", "Check again in a minute.")
    else:
        people = yield from check_model(make_detector, frame)
        if frame is not None:
            yield save_picture(folder / "check.jpg", frame.bgr, people, c.IGNORE_ZONES)
