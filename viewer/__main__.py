"""python3 -m viewer: fetch what is new, write the page, say where it is."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from viewer import PRE_ROLL_S, show
from viewer.archive import ArchiveError
from viewer.events import UNDER_WAY, UNFINISHED, Event
from viewer.script import constants
from viewer.stores import S3Store, StoreError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "detect_and_upload.py"
DEFAULT_DAYS = 7.0
_MOST_NOTES = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m viewer", description="Fetch the events and write a page of them.")
    parser.add_argument("--profile", help="of your AWS configuration; without: the default one")
    parser.add_argument(
        "--days", type=float, default=DEFAULT_DAYS, help="fetch what came in the last so many (%(default)g)"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "events", help="where pictures, clips and page go")
    options = parser.parse_args()
    os.umask(0o077)  # what is fetched is for its owner alone
    try:
        found = constants(SCRIPT)
        store = S3Store(
            images_bucket=found["IMAGES_BUCKET"], videos_bucket=found["VIDEOS_BUCKET"], profile=options.profile
        )
        pre_roll_s = float(found.get("PRE_ROLL_S", PRE_ROLL_S))
        path, events, report = show(
            store, options.folder, days=options.days, pre_roll_s=pre_roll_s, progress=progress_bar
        )
    except KeyboardInterrupt:
        print("\nStopped. The next run goes on from here.", file=sys.stderr)
        return 130
    except (StoreError, ArchiveError) as error:
        print(f"{error}\nWhat was fetched is kept; the next run goes on from here.", file=sys.stderr)
        return 1
    except (OSError, KeyError, SyntaxError) as error:
        print(f"{SCRIPT}: the buckets' names cannot be read from it ({error!r})", file=sys.stderr)
        return 1
    for note in report.notes[:_MOST_NOTES]:
        print(ascii(note)[1:-1])  # keys are whatever somebody put there
    if (more := len(report.notes) - _MOST_NOTES) > 0:
        print(f"... and {more} more lines like these")
    if report.failed:
        print(f"{report.failed} object(s) could not be had this time: {report.reason}")
    if unfinished := unfinished_line(events):
        print(unfinished)
    print(f"{report.fetched} new object(s), {report.fetched_bytes / 1e6:.1f} MB; {len(events)} event(s)")
    print(f"Open {path.resolve().as_uri()}")
    return 0


def unfinished_line(events: list[Event]) -> str:
    """Which events the camera did not finish; "" when there are none."""
    names = []
    for event in events:
        if event.state in (UNFINISHED, UNDER_WAY):
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.start))
            names.append(
                f"{at} {ascii(event.camera)[1:-1]}{' (perhaps still under way)' if event.state == UNDER_WAY else ''}"
            )
    return f"{len(names)} event(s) that the camera did not finish: {', '.join(names)}" if names else ""


@contextlib.contextmanager
def progress_bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", leave=False, dynamic_ncols=True) as bar:
        yield bar.update


if __name__ == "__main__":
    sys.exit(main())
