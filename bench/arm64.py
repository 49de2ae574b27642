"""What bench/arm64.sh compares between this machine and an emulated Pi, and its table.

python -m bench.arm64 prepare FOLDER        on x86-64: weights, their graph, the people of some frames, a slow film
python -m bench.arm64 people GRAPH.xml      on either: people of some frames of the demo's scene, as JSON
python -m bench.arm64 report SUITE FOLDER   the table of one Debian, also for docs/arm64.md
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.report import ROOT, fill_in, table, write_section

SCENE = ROOT / "demo" / "scene.mp4"
WEIGHTS, ADAPTER = "yolov5n.pt", "yolov5n-night.npz"
FRAMES = range(40, 300, 20)  # of scene.mp4: nobody, one of the people, the other
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
    """From H.264 to alert images, with the daemon's own parts: people of each of FRAMES, and the precision used."""
    import av

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
    found = []
    with av.open(str(SCENE)) as source:
        for number, frame in enumerate(source.decode(video=0)):
            if number in FRAMES:
                bgr = frame.to_ndarray(format="bgr24")
                found.append(detector.find_people(bgr))
                alert_jpeg(bgr, found[-1])
    return {"precision": re.sub(r"\W|Type|float", "", str(used)), "people": found}


def compared(here: dict[str, Any], there: dict[str, Any]) -> str:
    """How far the people of two runs are apart, in a table's cell."""
    counts = [[len(frame) for frame in run["people"]] for run in (here, there)]
    if counts[0] != counts[1]:
        return f"**other people**: {counts[1]} in place of {counts[0]}"
    pairs = []
    for ours, theirs in zip(here["people"], there["people"], strict=True):
        for one in ours:
            pairs.append((one, min(theirs, key=lambda other, one=one: abs(other[0] - one[0]) + abs(other[2] - one[2]))))
    apart_px = max(abs(a - b) for one, other in pairs for a, b in zip(one[:4], other[:4], strict=True))
    score = max(abs(one[4] - other[4]) for one, other in pairs)
    return f"the same {len(pairs)} people within {apart_px:.2f} px, scores within {score:.4f} ({there['precision']})"


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


def report(suite: str, folder: Path) -> None:
    state = folder / suite
    said = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in (state / "said").iterdir()}
    versions = said["versions"].splitlines()
    rows = [
        ["userland", f"Debian {versions[0]} arm64, {versions[1]}, pip {versions[2]}; {versions[3]}"],
        ["`apt install python3-venv git`", "done"],
        [f"`git clone`, `./launch.sh --demo`, film {SLOWER} times slower, cortex-a72", of_demo(said["demo"])],
        ["`env/` that it made", said["size"].strip()],
        ["`./launch.sh --check`, stand-in camera", of_check(said["check"])],
    ]
    here = json.loads((folder / "x86-64.json").read_text(encoding="utf-8"))
    for cpu, pi in CPUS.items():
        rows.append([f"conversion, {cpu} ({pi})", same_graph(folder / "x86-64.xml", state / f"{cpu}.xml")])
        there = json.loads(said[f"people-{cpu}"].splitlines()[-1])
        rows.append([f"av, OpenCV, OpenVINO, {cpu}", compared(here, there)])
    rows.append(["tests", said["tests"].strip().splitlines()[-1].strip("= ")])
    died = sum(text.count("uncaught target signal") + text.count("Illegal instruction") for text in said.values())
    rows.append(["programs that died of a signal (SIGILL, ...)", str(died)])
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
