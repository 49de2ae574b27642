"""What bench/arm64.sh compares between this machine and an emulated Pi, and its table.

python -m bench.arm64 prepare FOLDER        on x86-64: weights, their graph, the people of some frames, a slow film
python -m bench.arm64 people GRAPH.xml      on either: people of some frames of the demo's scene, as JSON
python -m bench.arm64 report SUITE FOLDER   the table of one Debian, also for docs/arm64.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import ROOT, fill_in, table, write_section

SCENE = ROOT / "demo" / "scene.mp4"
WEIGHTS, ADAPTER = "yolov5n.pt", "yolov5n-night.npz"
FRAMES = (60, 80, 100, 120, 140, 220, 240, 260)  # of scene.mp4: one of its two people, nobody, the other
SLOWER = 20  # an inference takes some seconds under emulation
CPUS = {"cortex-a53": "Zero 2 W, Pi 3", "cortex-a72": "Pi 4", "cortex-a76": "Pi 5"}


def prepare(folder: Path) -> None:
    """Put into `folder` what the guest gets (models/, film.mp4) and what it is compared with (x86-64.*)."""
    from tests.daemon import OFFICIAL_WEIGHTS

    at_hand = [path for path in (ROOT / "models" / WEIGHTS, OFFICIAL_WEIGHTS) if path.is_file()]
    if not at_hand:
        raise SystemExit(f"bench.arm64: put {WEIGHTS} into models/, or run ./launch.sh --demo once, which downloads it")
    (folder / "models").mkdir(exist_ok=True)
    weights = Path(shutil.copy(at_hand[0], folder / "models"))
    graph = folder / "x86-64.xml"
    convert = [sys.executable, "-m", "guardianberry.convert", weights, graph, ROOT / "models" / ADAPTER]
    subprocess.run(convert, cwd=ROOT, check=True)
    (folder / "x86-64.json").write_text(json.dumps(people(graph, precision="f32")), encoding="utf-8")
    write_slow_film(folder / "film.mp4")


def write_slow_film(path: Path) -> None:
    """The demo's scene, SLOWER times as long: the same packets at other times."""
    import av

    with av.open(str(SCENE)) as source, av.open(str(path), "w") as film:
        video = film.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None:
                continue
            packet.pts, packet.dts = packet.pts * SLOWER, packet.dts * SLOWER
            packet.duration *= SLOWER
            packet.stream = video
            film.mux(packet)


def people(graph: Path, *, precision: str = "") -> dict[str, Any]:
    """People of each of FRAMES, from H.264 on, with the daemon's own parts, and the precision used.

    "people" of pixels that should be the same everywhere ("pixels" is their sha256), "own_pixels" with the conversion
    from YUV to BGR that the daemon uses: FFmpeg's code differs from processor to processor, by a level or two.
    """
    import av
    import cv2

    import detect_and_upload as script
    from guardianberry.detection.detector import Detector
    from guardianberry.detection.openvino_model import load_openvino
    from guardianberry.detection.weights import Graph
    from guardianberry.recording.snapshot import alert_jpeg

    used = precision or load_openvino().Core().compile_model(graph, "CPU").get_property("INFERENCE_PRECISION_HINT")
    detector = Detector(
        Graph(graph, WEIGHTS),
        frame_width_px=script.FRAME_WIDTH_PX,
        frame_height_px=script.FRAME_HEIGHT_PX,
        input_width_px=script.DETECTOR_INPUT_WIDTH_PX,
        conf_thres=script.CONF_THRES,
        iou_thres=script.IOU_THRES,
        max_det=script.MAX_DET,
        precision=precision,
    )
    pixels = hashlib.sha256()
    found: dict[str, Any] = {"people": [], "own_pixels": []}
    with av.open(str(SCENE)) as source:
        for number, frame in enumerate(source.decode(video=0)):
            if number in FRAMES:
                same_bgr = cv2.cvtColor(frame.to_ndarray(format="yuv420p"), cv2.COLOR_YUV2BGR_I420)
                pixels.update(same_bgr.tobytes())
                found["people"].append(detector.find_people(same_bgr))
                own_bgr = frame.to_ndarray(format="bgr24")
                found["own_pixels"].append(detector.find_people(own_bgr))
                alert_jpeg(own_bgr, found["own_pixels"][-1])
    return {"precision": used if precision else used.to_string(), "pixels": pixels.hexdigest(), **found}


def apart(here: list[Any], there: list[Any]) -> tuple[int, float, float]:
    """How many people two runs found, and the largest difference of their boxes in px and of their scores.

    Raises ValueError if they did not find as many in each frame.
    """
    if [len(frame) for frame in here] != [len(frame) for frame in there]:
        raise ValueError("**other people**")
    pairs = [
        (one, min(theirs, key=lambda other, one=one: abs(other[0] - one[0]) + abs(other[2] - one[2])))
        for ours, theirs in zip(here, there, strict=True)
        for one in ours
    ]
    apart_px = max(abs(a - b) for one, other in pairs for a, b in zip(one[:4], other[:4], strict=True))
    return len(pairs), apart_px, max(abs(one[4] - other[4]) for one, other in pairs)


def compared(here: dict[str, Any], there: dict[str, Any]) -> str:
    """A cell of the table."""
    if here["pixels"] != there["pixels"]:
        return "**the decoded pictures differ**"
    try:
        (count, same_px, same_score), (_, own_px, own_score) = (
            apart(here[pixels], there[pixels]) for pixels in ("people", "own_pixels")
        )
    except ValueError as error:
        return str(error)
    return (
        f"{there['precision']}; pictures decoded bit for bit the same; the"
        f" same {count} people within {same_px:.2f} px and {same_score:.4f} of score; after FFmpeg's own conversion to"
        f" BGR {own_px:.2f} px and {own_score:.4f}"
    )


def same_graph(here: Path, there: Path) -> str:
    sums = [
        [subprocess.check_output(["sha256sum", xml.with_suffix(end)], text=True)[:64] for end in (".xml", ".bin")]
        for xml in (here, there)
    ]
    return f"byte for byte as on x86-64 (sha256 {sums[0][1][:12]}...)" if sums[0] == sums[1] else "**other bytes**"


def of_demo(log: str) -> str:
    ready = ", then ".join(re.findall(r"(\S+) is ready for", log))
    arrived = re.findall(r"demo: (\d+ object\(s\) arrived|and .*)", log)
    return f"detector: {ready}; {'; '.join(arrived)}; exit 0"


def of_check(log: str) -> str:
    """How many lines of `--check` say ok, and which do not."""
    lines = re.findall(r"^(ok|warn|FAIL) +(.+?)  ", log, re.MULTILINE)
    others = [f"{word}: {name}" for word, name in lines if word != "ok"]
    return f"{len(lines) - len(others)} ok; {', '.join(others) or 'no other'}"


def of_versions(said: str) -> str:
    debian, python, pip, qemu = said.splitlines()
    return f"Debian {debian} arm64, {python}, pip {pip}; {qemu}"


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1].strip("= ")


def report(suite: str, folder: Path) -> None:
    """From what the steps of bench/arm64.sh said; "not run" for one that is not done."""
    state = folder / suite
    said = {
        step.name: (state / "said" / step.name).read_text("utf-8", "replace") for step in (state / "done").iterdir()
    }
    here = json.loads((folder / "x86-64.json").read_text(encoding="utf-8"))
    demo = f"`git clone`, `./launch.sh --demo`, film {SLOWER} times slower, cortex-a72"
    steps: list[tuple[str, str, Callable[[str], str]]] = [
        ("userland", "versions", of_versions),
        ("`apt install python3-venv git`", "apt", lambda _: "done"),
        (demo, "demo", of_demo),
        ("`env/` that it made", "size", last_line),
        ("`./launch.sh --check`, stand-in camera", "check", of_check),
    ]
    for cpu, pi in CPUS.items():
        ours, theirs = folder / "x86-64.xml", state / f"{cpu}.xml"
        steps += [
            (
                f"conversion, {cpu} ({pi})",
                f"convert-{cpu}",
                lambda _, ours=ours, theirs=theirs: same_graph(ours, theirs),
            ),
            (f"av, OpenCV, OpenVINO, {cpu}", f"people-{cpu}", lambda text: compared(here, json.loads(last_line(text)))),
        ]
    steps.append(("tests (the list is in bench/arm64.sh)", "tests", lambda text: last_line(text).partition(" in ")[0]))
    rows = [[what, of(said[step]) if step in said else "not run"] for what, step, of in steps]
    died = sum(text.count("Illegal instruction") for text in said.values())
    rows.append(["programs that ended with SIGILL", str(died or "none")])
    write_section(f"arm64_{suite}", table(["what", "how it ended"], rows))
    fill_in(ROOT / "docs" / "arm64.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("prepare", "people", "report"))
    parser.add_argument("words", nargs="+")
    arguments = parser.parse_args()
    match arguments.task, arguments.words:
        case "prepare", [folder]:
            prepare(Path(folder))
        case "people", [graph]:
            print(json.dumps(people(Path(graph))))
        case "report", [suite, folder]:
            report(suite, Path(folder))
        case _:
            parser.error("wrong arguments")


if __name__ == "__main__":
    main()
