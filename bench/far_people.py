"""Who is found from how far away, when he moves: `python -m bench.far_people [--people N] [--quick]`.

People from the evaluation pictures, each cut out and scaled to a height, walk through the demo's empty room, with the
camera's noise. The daemon's own finder looks at every frame, once at the whole frame always and once in turns with
crops around what moves: the same number of inferences. Shares of those that find somebody where the person is.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from bench.close_look import finder_with
from bench.offline import SCENE, detector, frames
from bench.report import ROOT, table, write_section
from guardianberry.camera.decoder import Frame
from guardianberry.detection.finder import PeopleFinder
from training.data import read_tar

EVAL = ROOT.parent / "shared" / "eval"
HEIGHTS_PX = (24, 32, 40, 48, 64, 80, 96, 128)  # in the 640x480 frame
WALK_FRAMES = 30
STEP_PX = 6  # a frame: a walk at 10 fps
GROUND_PX = 390  # where the feet are
TALL_PX = 150  # a smaller picture of a person has too little to show


def cut_out(bgr: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The person in the box and its opacity (0 to 1), by GrabCut."""
    mask = np.zeros(bgr.shape[:2], np.uint8)
    left, top, right, bottom = (int(side) for side in box)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(bgr, mask, (left, top, right - left, bottom - top), *models, 4, cv2.GC_INIT_WITH_RECT)
    person = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.float32)
    place = np.s_[top:bottom, left:right]
    return bgr[place].astype(np.float32), cv2.GaussianBlur(person, (0, 0), 1)[place]


def whole_people(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """People who stand alone and whole in their picture, cut out."""
    for example in itertools.chain.from_iterable(read_tar(path) for path in sorted(folder.glob("*.tar"))):
        height_px, width_px = example.bgr.shape[:2]
        if len(example.boxes) != 1:
            continue
        left, top, right, bottom = box = example.boxes[0]
        is_inside = left > 4 and top > 4 and right < width_px - 4 and bottom < height_px - 4
        if is_inside and bottom - top >= TALL_PX and 2 <= (bottom - top) / (right - left) <= 4:
            bgr, alpha = cut_out(example.bgr, box)
            if 0.3 < alpha.mean() < 0.8:  # GrabCut found a figure, not nothing and not all
                yield bgr, alpha


def walk(
    room: list[np.ndarray], person: tuple[np.ndarray, np.ndarray], height_px: int
) -> Iterator[tuple[Frame, tuple]]:
    """Frames of a walk, and the box of the person in each."""
    scale = height_px / person[0].shape[0]
    size = max(1, round(person[0].shape[1] * scale)), height_px
    bgr, alpha = (cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in person)
    top = GROUND_PX - height_px
    for number in range(-20, WALK_FRAMES):  # two seconds of the empty room come first
        picture = room[number % len(room)].copy()
        left = 200 + STEP_PX * number
        if number >= 0:
            place = picture[top:GROUND_PX, left : left + size[0]]
            place[:] = np.rint(place * (1 - alpha[..., None]) + bgr * alpha[..., None])
        frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format="yuv420p")
        yield Frame(number, number / 10, frame), (left, top, left + size[0], GROUND_PX)


def share_found(finder: PeopleFinder, film: Iterator[tuple[Frame, tuple]]) -> float:
    """Of the inferences with the person in view, the share that finds somebody at his place."""
    found = []
    for frame, (left, top, right, bottom) in film:
        people = finder.find(frame, attentive=True) or []
        if frame.number >= 0:
            middles = [((each.x1 + each.x2) / 2, (each.y1 + each.y2) / 2) for each in people]
            found.append(any(left <= x <= right and top <= y <= bottom for x, y in middles))
    return sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="2 people at 2 heights; nothing is kept")
    options = parser.parse_args()
    heights_px = (32, 64) if options.quick else HEIGHTS_PX
    people = list(itertools.islice(whole_people(EVAL), 2 if options.quick else options.people))
    room = [frame.bgr for frame in itertools.islice(frames(SCENE, frame_rate_fps=10), 2, 45)]
    ways = {"the whole frame": False, "in turns with crops": True}
    rows = [[name] for name in ways]
    the_detector = detector()
    for height_px in heights_px:
        for row, crops in zip(rows, ways.values(), strict=True):
            shares = [
                share_found(finder_with(the_detector, crops=crops), walk(room, person, height_px)) for person in people
            ]
            row.append(f"{100 * np.mean(shares):.0f} %")
    head = [f"{len(people)} people walk, {the_detector.model_name}", *(f"{height_px} px" for height_px in heights_px)]
    lines = table(head, rows)
    print("\n".join(lines)) if options.quick else write_section("far_people", lines)


if __name__ == "__main__":
    main()
