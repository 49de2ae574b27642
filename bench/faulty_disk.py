"""How late is an alert on a disk that is slow, full, read-only, failing or gone? From its frame to S3's confirmation.

    python -m bench.faulty_disk [--events 5]

The faults are made by tests/faulty_disk.c, which needs a C compiler; "slow" means that an fsync takes ten seconds. The
seconds are the daemon's own, from its log: they begin with the arrival of the frame's last byte.
"""

from __future__ import annotations

import argparse
import errno
import re
import subprocess
import tempfile
import time
from pathlib import Path

from bench.footage import FRAME_RATE_FPS, write_footage
from bench.report import busy_share, spread, table, write_section
from tests.daemon import ROOT, Daemon, install_models
from tests.s3_server import S3Server

CONSTANTS = {
    "MAX_RECORDING_DURATION_S": 2,
    "PRE_ROLL_S": 1,
    "MIN_GAP_BETWEEN_VIDEO_START_S": 3,
    "FRAME_RATE_FPS": FRAME_RATE_FPS,
    "CLOCK_WAIT_S": 0,
}
FAULTS = {
    "none": None,
    "images/: an fsync takes 10 s": "slow images",
    "videos/: an fsync takes 10 s": "slow videos",
    "images/ does not answer": "hang images",
    "videos/ does not answer": "hang videos",
    "images/ read-only": f"{errno.EROFS} images",
    "images/ full": f"{errno.ENOSPC} images",
    "images/ fails with EIO": f"{errno.EIO} images",
    "images/ removed": f"{errno.ENOENT} images",
}
LINE = re.compile(r"image (\d+)-\S+: uploaded, .* (\d+\.\d) s after its frame")
SETTLE_S = 4.0
LIMIT_S = 60.0


def latencies_s(daemon: Daemon, events: int) -> list[float]:
    """Of the next events."""
    since_s, give_up_s = time.time(), time.monotonic() + LIMIT_S
    while time.monotonic() < give_up_s:
        found = [float(seconds) for start, seconds in LINE.findall(daemon.log) if int(start) > since_s]
        if len(found) >= events:
            return found[:events]
        time.sleep(0.2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5, help="for each fault")
    options = parser.parse_args()
    busy, rows = busy_share(), []
    with tempfile.TemporaryDirectory() as temporary, S3Server() as s3:
        folder = Path(temporary)
        library, control = folder / "faulty_disk.so", folder / "fault"
        source = ROOT / "tests" / "faulty_disk.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        s3.create_bucket("guardianberry.images", "guardianberry.videos")
        write_footage(folder / "footage.h264")
        env = s3.environment() | {"STAND_IN_H264": str(folder / "footage.h264")}
        env |= {"LD_PRELOAD": str(library), "FAULTY_DISK": str(control), "FAULTY_DISK_SLOW_S": "10"}
        with Daemon(folder / "home", install_models(folder / "models"), env=env, **CONSTANTS) as daemon:
            daemon.wait_for_log("video .*: uploaded", timeout_s=120)
            for name, fault in FAULTS.items():
                if fault:
                    control.write_text(fault, encoding="ascii")
                found = latencies_s(daemon, options.events)
                control.unlink(missing_ok=True)
                rows.append(
                    [name, str(len(found)), str(options.events - len(found)), spread(found, 1) if found else ""]
                )
                time.sleep(SETTLE_S)
            daemon.terminate(timeout_s=30)
    head = ["fault", "alerts", "missed", "seconds from the frame to S3: median (least to most)"]
    lines = [f"{100 * busy:.0f} % of the machine was busy with other things before.", "", *table(head, rows)]
    write_section("faulty_disk", lines)


if __name__ == "__main__":
    main()
