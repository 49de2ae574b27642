"""From the start of the process to the first finished look, with somebody in the picture; and where the time goes.

    python -m bench.startup [--rounds N]

The stand-in camera replays an encoded file: what is measured includes its own start, as a real camera's start would be.
The graph has been converted before (that is done once, in some seconds).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import stage
from bench.report import ROOT, busy_share, spread, table, write_section
from tests.daemon import Daemon
from tests.s3_server import environment

MODULES = ("numpy", "av", "cv2", "psutil", "botocore", "boto3", "openvino", "guardianberry")
CODE = """
import detect_and_upload
import guardianberry.camera.supervisor, guardianberry.recording.clock, guardianberry.detection.detector
import guardianberry.recording.events, guardianberry.upload.uploader
import guardianberry.upload.s3
from guardianberry.detection.openvino_model import load_openvino
load_openvino()
"""


def one_start(folder: Path, h264: Path) -> dict[str, float]:
    env = {
        **environment("http://127.0.0.1:9"),
        **stage.camera_environment(h264, folder / "camera.log"),
        "PROBE_FILE": str(folder / "probe.json"),
        "PYTHONPATH": str(ROOT),
    }
    prefix = (sys.executable, str(ROOT / "bench" / "probe.py"))
    daemon = Daemon(folder / "daemon", ROOT / "models", env=env, prefix=prefix)
    spawned_s = time.monotonic()
    with daemon:
        assert daemon.process is not None
        daemon.wait_for_log(r"event \d+")
        marks = stage.read_probe(daemon.process.pid, folder / "probe.json")["marks"]
        daemon.terminate()
    first_sent_s = stage.camera_log(folder / "camera.log")[0]["monotonic_s"]
    return {
        "camera's first frame": first_sent_s - spawned_s,
        "first frame decoded": marks["first decode"] - spawned_s,
        "first look done": marks["first detect"] - spawned_s,
        "event certain, image written": marks["first image"] - spawned_s,
    }


def import_times_ms() -> dict[str, float]:
    """Of each package, the time its own modules took (with those of others that only it needs left out)."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", CODE], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True
    )
    own_ms = dict.fromkeys((*MODULES, "everything else"), 0.0)
    for line in result.stderr.splitlines():
        if match := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", line):
            top = match[2].split(".")[0]
            own_ms[top if top in own_ms else "everything else"] += int(match[1]) / 1000
    return own_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    busy, starts = busy_share(), []
    with tempfile.TemporaryDirectory() as temporary:
        h264 = stage.encode(Path(temporary) / "people.h264", stage.people, seconds=20, frame_rate_fps=10)
        for index in range(options.rounds + 1):
            folder = Path(temporary) / str(index)
            folder.mkdir()
            starts.append(one_start(folder, h264))
    starts = starts[1:]  # the first one fills the page cache
    imports = import_times_ms()
    lines = [
        f"{options.rounds} starts; {100 * busy:.0f} % of the machine was busy with other things before.",
        "",
        *table(["since the process was started", "s"], [[k, spread([s[k] for s in starts])] for k in starts[0]]),
        "",
        *table(["imports", "ms, without those of others"], [[name, f"{ms:.0f}"] for name, ms in imports.items()]),
    ]
    write_section("startup", lines, busy=busy, starts=starts)


if __name__ == "__main__":
    main()
