"""A figure that never moves, for a day under flicker and lamps: how many alerts? `python -m bench.still_things`.

A person of the demo's film is cut out and pasted into its empty room for good. The detector sees each kind of light
with several patterns of noise once; a day is then played from that, through the daemon's own filter and recorder.
"""

from __future__ import annotations

import argparse
import random
from typing import NamedTuple

import av
import cv2
import numpy as np

import detect_and_upload as script
from bench.offline import SCENE, detector
from bench.pictures import LIGHT, with_noise
from bench.report import table, write_section
from guardianberry.detection.detector import Detector
from guardianberry.detection.motion import shrink
from guardianberry.detection.postprocess import Person
from guardianberry.detection.stationary import StationaryFilter
from guardianberry.recording.recorder import Alert, Inference, Recorder, Start

PATTERNS = 6  # of noise, for each light
SWITCH_S = 900  # the light changes so often
VISIT_EVERY_S, VISIT_S = 7200, 8


class Shown(NamedTuple):
    small: np.ndarray
    people: list[Person]


def room_with_figure(finder: Detector) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The empty room, the same with a still figure in its corner, and frames of somebody who walks there beside it."""
    with av.open(str(SCENE)) as container:
        film = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    empty = film[0]
    seen = [(picture, people[0]) for picture in film[::5] if (people := finder.find_people(picture))]
    donor, figure = max(seen, key=lambda pair: pair[1].confidence)
    x1, y1, x2, y2 = (int(value) for value in figure[:4])
    cut = donor[y1:y2, x1:x2]
    place = np.s_[-len(cut) :, -cut.shape[1] :] if x1 < empty.shape[1] / 2 else np.s_[-len(cut) :, : cut.shape[1]]

    def pasted(picture: np.ndarray) -> np.ndarray:
        picture = picture.copy()
        picture[place] = cut
        return picture

    return empty, pasted(empty), [pasted(picture) for picture, _ in seen[: VISIT_S * 2]]


def show(finder: Detector, picture: np.ndarray, name: str, noise: np.random.Generator) -> Shown:
    """The picture in another light, with noise: what the filter and the detector get of it."""
    grey = shrink(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    ratio = np.ones_like(grey) if name == "plain" else LIGHT[name](grey) / np.maximum(grey, 1)
    lit = picture * cv2.resize(ratio, picture.shape[1::-1])[..., None] + noise.normal(0, 5, picture.shape)
    lit_bgr = np.clip(lit, 0, 255).astype(np.uint8)
    return Shown(with_noise(shrink(cv2.cvtColor(lit_bgr, cv2.COLOR_BGR2GRAY)), noise, 0.3), finder.find_people(lit_bgr))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an hour of two kinds of light; nothing is kept")
    options = parser.parse_args()
    finder, noise, chance = detector(), np.random.default_rng(1), random.Random(1)
    _, still, visit = room_with_figure(finder)
    lights = ["plain", *(name for name in LIGHT if name != "shake")][: 2 if options.quick else None]
    shown = {name: [show(finder, still, name, noise) for _ in range(PATTERNS)] for name in lights}
    visits = [show(finder, picture, "plain", noise) for picture in visit]
    hours = 1 if options.quick else 24
    rows = []
    for remembers in (False, True):
        stills, recorder = StationaryFilter(), _recorder()
        alerts = of_visits = 0
        full_s = float("inf")  # when the current clip is full
        for half_second in range(int(hours * 7200)):
            time_s = half_second / 2
            into_visit = int(time_s % VISIT_EVERY_S * 2) if time_s >= VISIT_EVERY_S else len(visits)
            name = lights[int(time_s // SWITCH_S) % len(lights)]
            is_visit = into_visit < len(visits)
            now = visits[into_visit] if is_visit else chance.choice(shown[name])
            people = (
                stills.people_who_count(now.people, now.small, script.FRAME_WIDTH_PX, time_s)
                if remembers
                else now.people
            )
            action = recorder.step(Inference(time_s, [person.confidence for person in people]))
            if isinstance(action, Start):
                full_s = time_s + script.MAX_RECORDING_DURATION_S - script.PRE_ROLL_S
            elif time_s >= full_s:
                recorder.end(time_s, "the clip has its full length")
                full_s = float("inf")
            alerts += isinstance(action, Start | Alert) and not is_visit
            of_visits += isinstance(action, Start | Alert) and is_visit
        due = max(0, int((hours * 3600 - 1) // VISIT_EVERY_S))
        label = "still things do not count" if remembers else "every detection counts"
        rows.append([label, str(alerts), f"{of_visits} of {due}"])
    lines = table(["", f"alerts in {hours} h of the figure alone", "visits told"], rows)
    print("\n".join(lines)) if options.quick else write_section("still_things", lines)


def _recorder() -> Recorder:
    return Recorder(
        min_gap_between_video_start_s=script.MIN_GAP_BETWEEN_VIDEO_START_S,
        person_gone_after_s=script.PERSON_GONE_AFTER_S,
        detections_to_start=script.DETECTIONS_TO_START,
    )


if __name__ == "__main__":
    main()
