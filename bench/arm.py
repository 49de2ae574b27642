"""Arm instructions a frame, counted under emulation: the only deterministic figure about a Pi to be had without one.

    python -m bench.arm [--folder FOLDER]

Debian's Python for arm64 and the aarch64 wheels of numpy and OpenVINO run under qemu-user with a plugin that counts
instructions. Two runs with a different number of frames; the difference is what a frame costs, from the frame to the
people, with Python and numpy. Instructions are not time: caches, memory and clock are not in it. Beside it the network
alone, without finding people in its outputs, under ncnn, the runtime that was not chosen (docs/design.md).

Needs Debian's qemu-user and gcc, and 300 MB in FOLDER (kept for the next time). Nothing is installed on the machine.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import detect_and_upload as script
from bench.report import ROOT, table, write_section
from guardianberry.detection.weights import find_graph

CPUS = {"cortex-a72": "Pi 4", "cortex-a76": "Pi 5"}
SIZES_PX = ((320, 256), (416, 320), (640, 480))
FRAMES = (1, 3)
PACKAGES = ("python3.11", "libstdc++6", "libgomp1", "zlib1g", "libatomic1")
WHEELS = ("numpy", "openvino")
PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux_2_35_aarch64")
GUEST = """
import sys
from pathlib import Path
import numpy as np
from guardianberry.detection.detector import Detector
from guardianberry.detection.weights import Graph

xml, width, height, frames, precision = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
detector = Detector(Graph(Path(xml), "model"), frame_width_px=width, frame_height_px=height, conf_thres=0.255,
                    iou_thres=0.45, max_det=1000, precision=precision, threads=1)
frame = np.fromfile(sys.argv[6], np.uint8).reshape(height, width, 3)
for _ in range(frames):
    people = detector.find_people(frame)
print(len(people), "people")
"""


NCNN_GUEST = """
import importlib.util, sys
from pathlib import Path
import numpy as np

spec = importlib.util.spec_from_file_location("ncnn.ncnn", next(Path(sys.argv[1]).glob("ncnn/ncnn.cpython*")))
ncnn = importlib.util.module_from_spec(spec)  # not through its package, which loads a model zoo and requests
spec.loader.exec_module(ncnn)
net, width, height, frames = ncnn.Net(), *map(int, sys.argv[2:5])
net.opt.num_threads = 1
if sys.argv[5] == "f32":
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(sys.argv[1] + "/net.ncnn.param")
net.load_model(sys.argv[1] + "/net.ncnn.bin")
frame = np.fromfile(sys.argv[6], np.uint8).reshape(height, width, 3)
for _ in range(frames):
    image = ncnn.Mat.from_pixels(frame, ncnn.Mat.PixelType.PIXEL_BGR2RGB, width, height)
    image.substract_mean_normalize([], [1 / 255] * 3)
    extractor = net.create_extractor()
    extractor.input("in0", image)
    heads = [np.array(extractor.extract(f"out{i}")[1]) for i in range(3)]
print([head.shape for head in heads])
"""


def make_ncnn(folder: Path) -> Path:
    """The same network for ncnn, by its own converter, beside ncnn's aarch64 wheel."""
    import torch

    from guardianberry.detection import yolov5

    out = folder / "ncnn"
    out.mkdir()
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(out)]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run([*fetch, *platforms, "--python-version", "3.11", "ncnn"], check=True)
    subprocess.run([*fetch, "pnnx"], check=True)
    for wheel in out.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(out)
    network = yolov5.fuse(yolov5.keep_person_only(yolov5.load_checkpoint(ROOT / "models" / script.WEIGHTS)))
    torch.jit.trace(network, torch.zeros(1, 3, 256, 320), check_trace=False).save(out / "net.pt")
    converter = out / "pnnx" / "pnnx"
    converter.chmod(0o755)
    sizes = ("inputshape=[1,3,256,320]", "inputshape2=[1,3,480,640]")
    subprocess.run([str(converter), "net.pt", *sizes], cwd=out, check=True, stdout=subprocess.DEVNULL)
    return out


def make_sysroot(folder: Path) -> None:
    """Unpack Debian's packages and the wheels under `folder`, through apt and pip, without installing anything."""
    (folder / "debs").mkdir(parents=True, exist_ok=True)
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / "apt" / name).mkdir(parents=True, exist_ok=True)
    (folder / "apt" / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": str(folder / "apt" / "state"),
        "Dir::State::status": str(folder / "apt" / "status"),
        "Dir::Cache": str(folder / "apt" / "cache"),
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    wanted = ["apt-get", *options, "-qq", "-y", "--no-install-recommends", "--download-only", "install", *PACKAGES]
    subprocess.run(wanted, check=True)
    for package in (folder / "apt" / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    pins = re.findall(rf"^((?:{'|'.join(WHEELS)})==\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
    subprocess.run([*fetch, "--python-version", "3.11", "-d", str(folder / "wheels"), *pins], check=True)
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")


def make_plugin(folder: Path) -> Path:
    plugin = folder / "count_instructions.so"
    source = ROOT / "bench" / "count_instructions.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(plugin), str(source)], check=True)
    return plugin


def instructions(folder: Path, cpu: str, guest: str, words: list[str]) -> int:
    root, plugin = folder / "root", folder / "count_instructions.so"
    search = f"PYTHONPATH={folder / 'site'}:{ROOT}"
    command = ["qemu-aarch64", "-cpu", cpu, "-L", str(root), "-E", search, "-E", "PYTHONDONTWRITEBYTECODE=1"]
    command += ["-plugin", str(plugin), str(root / "usr/bin/python3.11"), "-c", guest, *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"instructions: (\d+)", result.stderr)[1])  # type: ignore[index]


def a_frame(path: Path, width_px: int, height_px: int) -> Path:
    """Somebody in the demo scene, as raw bytes."""
    import cv2

    from bench import offline

    shown = next(frame for frame in offline.frames(offline.SCENE, frame_rate_fps=10) if frame.arrival_s >= 8)
    cv2.resize(shown.bgr, (width_px, height_px), interpolation=cv2.INTER_AREA).tofile(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "guardianberry-arm")
    folder = parser.parse_args().folder
    if not (folder / "site").exists():
        make_sysroot(folder)
    make_plugin(folder)
    graph = find_graph(script.WEIGHTS, ROOT / "models")
    ncnn = folder / "ncnn" if (folder / "ncnn").exists() else make_ncnn(folder)
    rows = []
    for width_px, height_px in SIZES_PX:
        frame = a_frame(folder / "frame.bgr", width_px, height_px)
        for cpu, pi in CPUS.items():
            cells = []
            for guest, net in ((GUEST, graph.xml), (NCNN_GUEST, ncnn)):
                for precision in ("", "f32"):
                    counts = []
                    for frames in FRAMES:
                        words = [str(net), str(width_px), str(height_px), str(frames), precision, str(frame)]
                        counts.append(instructions(folder, cpu, guest, words))
                    cells.append(f"{(counts[1] - counts[0]) / (FRAMES[1] - FRAMES[0]) / 1e6:.0f}")
            rows.append([f"{width_px}x{height_px}", f"{cpu} ({pi})", *cells])
    lines = [f"{graph.model_name}, millions of instructions a frame, one thread.", ""]
    head = [
        "input",
        "CPU",
        "this daemon, best precision of that CPU",
        "f32",
        "ncnn, network alone, best precision",
        "f32",
    ]
    write_section("arm", [*lines, *table(head, rows)])


if __name__ == "__main__":
    main()
