"""What DETECTIONS_TO_START does on the CCTV clips, for several settings: starts with nobody there, and later ones.

    python -m bench.false_starts [VIDEO ...]

Plays every clip of ../shared/clips (or the videos given) through the detector at the script's frame rate and feeds the
looks to the recorder without a gap, so that every start counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import detect_and_upload as script
from bench import offline
from bench.report import table, write_section

DETECTIONS_TO_START = (1, 2, 3, 4)
# Seconds with people, read by eye to half a second; clips that are not listed have none.
PEOPLE_S = {
    "anubhavm55_CCTV.mp4": ((4.6, 7.8), (9.0, 12.3)),
    "glenn_burglar.mp4": ((0, 5.8), (8.3, 11.8), (13.0, 14.8), (16.3, 20.7)),
}
SLACK_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO")
    videos = parser.parse_args().videos or sorted(offline.CLIPS.glob("*.mp4"))
    finder, rows = offline.detector(), []
    for video in videos:
        seen = offline.see(finder, video, frame_rate_fps=script.FRAME_RATE_FPS)
        spans = PEOPLE_S.get(video.name, ())
        cells = []
        for needed in DETECTIONS_TO_START:
            times = offline.play(seen, gate=None, needed=needed).starts_s
            wrong = [t for t in times if not any(a - SLACK_S <= t <= b + SLACK_S for a, b in spans)]
            when = f", at {', '.join(f'{t:.1f}' for t in times)} s" if times else ""
            cells.append(f"{len(times)}, of these {len(wrong)} false{when}")
        rows.append([video.name, f"{sum(bool(s.confidences) for s in seen)} of {len(seen)}", *cells])
    head = ["clip", "looks with a person", *(f"starts by {needed} of {needed + 1}" for needed in DETECTIONS_TO_START)]
    lines = [f"{finder.model_name}, CONF_THRES {script.CONF_THRES}.", "", *table(head, rows)]
    write_section("false_starts", lines)


if __name__ == "__main__":
    main()
