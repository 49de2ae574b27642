"""Where the memory goes: resident MiB after each step of what the daemon loads, in a fresh process.

python -m bench.memory
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.report import ROOT, table, write_section

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}


def load(*names: str) -> Callable[[], None]:
    return lambda: [importlib.import_module(name) for name in names] and None


def make_client() -> None:
    from guardianberry.upload.s3 import S3

    os.environ.update(CREDENTIALS, AWS_CONFIG_FILE="/dev/null", AWS_EC2_METADATA_DISABLED="true")
    KEPT.append(S3(server_side_encryption="AES256"))
    KEPT[-1].prepare()


def load_openvino() -> None:
    from guardianberry.detection.openvino_model import load_openvino

    load_openvino()


def make_detector() -> None:
    import detect_and_upload

    KEPT.append(detect_and_upload.make_detector())


def look() -> None:
    import numpy as np

    KEPT[-1].find_people(np.zeros((480, 640, 3), np.uint8))


KEPT: list = []
STEPS: dict[str, Callable[[], None]] = {
    "Python": lambda: None,
    "numpy": load("numpy"),
    "PyAV": load("av"),
    "our camera side (psutil)": load("guardianberry.camera.stream", "guardianberry.camera.supervisor"),
    "OpenCV": load("cv2"),
    "botocore": load("guardianberry.upload.s3"),
    "boto3, an S3 client": make_client,
    "OpenVINO": load_openvino,
    "the graph, compiled": make_detector,
    "first look": look,
}


def child() -> None:
    found = []
    for step in STEPS.values():
        step()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        found.append([int(re.search(rf"{key}:\s+(\d+)", status)[1]) / 1024 for key in ("VmRSS", "RssAnon")])  # type: ignore[index]
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().child:
        child()
        return
    command = [sys.executable, "-m", "bench.memory", "--child"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows, before_mb = [], 0.0
    for name, (resident_mb, anonymous_mb) in zip(STEPS, json.loads(output.splitlines()[-1]), strict=True):
        rows.append([name, f"{resident_mb:.0f}", f"{resident_mb - before_mb:+.0f}", f"{anonymous_mb:.0f}"])
        before_mb = resident_mb
    write_section("memory", table(["after loading", "resident MiB", "more by", "of it not file pages"], rows))


if __name__ == "__main__":
    main()
