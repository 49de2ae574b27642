"""`--check`: one page on whether the daemon would work here, and what to do where it would not.

It asks the same code that the daemon runs, leaves nothing behind but the converted model, and does not disturb a
daemon that runs already. Only with `upload` does it write into the buckets, because a new object may alert people.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from guardianberry.camera.others import RunningCamera, running_cameras
from guardianberry.doctor.camera import CameraPlan, ModelPlan, check_model, check_program, held_or_tried, is_prepared
from guardianberry.doctor.findings import FAIL, WARN, Finding, fail, ok, warn
from guardianberry.doctor.machine import (
    check_clock,
    check_folder,
    check_power,
    check_start_at_boot,
    check_system,
    check_user,
)
from guardianberry.machine import AlreadyRunningError, lock_folder
from guardianberry.recording.clock import marker_exists, system_clock_is_synchronised
from guardianberry.settings import find_problems


def check(
    folder: Path,
    *,
    camera: CameraPlan,
    model: ModelPlan,
    buckets: Mapping[str, str],
    server_side_encryption: str | None,
    clock_is_synchronised: Callable[[], bool],
    clock_wait_s: float,
    min_free_bytes: int,
    problems: Sequence[str] = (),
    upload: bool = False,
    root: Path = Path("/"),
    running: Callable[[], list[RunningCamera]] = running_cameras,
    page: TextIO | None = None,
) -> int:
    """Write the page to stdout as it comes to be known; 0 if the daemon would work, else 1.

    `buckets`: what goes in, "images" and "videos", to the bucket's name. `problems`: what is wrong with the constants.
    `root` and `running` stand in for the machine in tests.
    """
    page = page or sys.stdout
    logging.getLogger("guardianberry").addHandler(logging.NullHandler())  # this page says what warnings would say
    levels: Counter[str] = Counter()

    def tell(findings: Iterator[Finding]) -> None:
        for finding in findings:
            levels[finding.level] += 1
            page.write(f"{finding}\n")
            page.flush()

    now_text = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    tell(check_constants(problems))
    tell(iter([check_system(root)]))
    tell(check_user(folder))
    is_worth_trying = not levels[FAIL]  # with wrong constants, or as root in another's folder, trying would do harm
    tell(check_power())
    tell(iter([check_clock(clock_is_synchronised, clock_wait_s, now_text)]))
    tell(check_folder(folder / name, min_free_bytes) for name in ("images", "videos"))
    tell(iter([check_start_at_boot(folder, root)]))
    if is_worth_trying:
        tell(check_eyes(folder, camera, model, root, running))
    else:
        tell(iter([warn("camera", "not tried, nor the model", "Put right what is said above, then check again.")]))
    tell(check_way_out(buckets, server_side_encryption, root, upload=upload))
    page.write(f"\n{verdict(levels, upload=upload)}\n")
    return 1 if levels[FAIL] else 0


def examine(folder: Path, constants: Mapping[str, Any], *, upload: bool) -> int:
    """`check` with the constants of the script, by name; the exit code."""
    c = SimpleNamespace(**{name: value for name, value in constants.items() if name.isupper()})
    marker = c.CLOCK_SYNC_FILE
    return check(
        folder,
        camera=CameraPlan(
            width_px=c.FRAME_WIDTH_PX,
            height_px=c.FRAME_HEIGHT_PX,
            frame_rate_fps=c.FRAME_RATE_FPS,
            bitrate_bps=c.BITRATE_BPS,
            stream_url=c.STREAM_URL,
        ),
        model=ModelPlan(
            weights=c.WEIGHTS,
            models_folder=folder / "models",
            input_width_px=c.DETECTOR_INPUT_WIDTH_PX,
            conf_thres=c.CONF_THRES,
            iou_thres=c.IOU_THRES,
            max_det=c.MAX_DET,
        ),
        buckets={"images": c.IMAGES_BUCKET, "videos": c.VIDEOS_BUCKET},
        server_side_encryption=c.SERVER_SIDE_ENCRYPTION,
        clock_is_synchronised=marker_exists(marker) if marker else system_clock_is_synchronised,
        clock_wait_s=c.CLOCK_WAIT_S,
        min_free_bytes=c.MIN_FREE_DISK_BYTES,
        problems=find_problems(constants),
        upload=upload,
    )


def check_constants(problems: Sequence[str]) -> Iterator[Finding]:
    for problem in problems:
        yield fail("settings", problem, "Edit the top of detect_and_upload.py.")
    if not problems:
        yield ok("settings", "the constants in detect_and_upload.py fit together")


def check_eyes(
    folder: Path,
    camera: CameraPlan,
    model: ModelPlan,
    root: Path,
    running: Callable[[], list[RunningCamera]],
) -> Iterator[Finding]:
    """Another daemon, the camera, the model."""
    daemon_runs = is_locked(folder)
    if daemon_runs:
        yield ok("daemon", f"one is running in {folder}")
    found, program = check_program(root)
    yield found
    findings, frame = held_or_tried(daemon_runs, program, camera, running)
    yield from findings
    if daemon_runs and not is_prepared(model):
        yield warn("model", f"the running daemon is still preparing {model.weights}", "Check again in a minute.")
    else:
        yield check_model(model, (camera.width_px, camera.height_px), frame)


def check_way_out(
    buckets: Mapping[str, str], server_side_encryption: str | None, root: Path, *, upload: bool
) -> Iterator[Finding]:
    """Credentials, endpoint, buckets."""
    from guardianberry.doctor.s3 import check_s3, check_uploads

    findings, s3 = check_s3(server_side_encryption, root)
    yield from findings
    if upload and s3 is not None:
        yield from check_uploads(s3, buckets)


def is_locked(folder: Path) -> bool:
    """Whether a daemon works in the folder. To find out, the lock is taken and given back at once."""
    try:
        os.close(lock_folder(folder))
    except AlreadyRunningError:
        return True
    return False


def verdict(levels: Mapping[str, int], *, upload: bool) -> str:
    hint = (
        ""
        if upload
        else "\nNothing was uploaded. --check --upload puts a small text file into each bucket; whoever gets the"
        " alerts\nmay get one for it."
    )
    warnings = f", {levels[WARN]} warning{'s' * (levels[WARN] != 1)}" if levels[WARN] else ""
    if levels[FAIL]:
        return f"GuardianBerry would NOT work: {levels[FAIL]} FAIL{warnings}.{hint}"
    return f"GuardianBerry works here{warnings}.{hint}"
