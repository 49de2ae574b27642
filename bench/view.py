"""Is a lost view told, and is light not? Every film, every change; then a day of light: `python -m bench.view`."""

from __future__ import annotations

import argparse

import numpy as np

from bench.pictures import LIGHT, LOST, Change, films, small_pictures, with_noise
from bench.report import table, write_section
from guardianberry.detection.lost_view import ViewGuard

NORMAL_S = 180


def told_after_s(pictures: list[np.ndarray], change: Change, seconds: int) -> float | None:
    """Seconds from the change to the alert; None without one."""
    guard, random = ViewGuard(), np.random.default_rng(1)
    for second in range(NORMAL_S + seconds):
        picture = pictures[second % len(pictures)]
        shown = with_noise(change(picture) if second >= NORMAL_S else picture, random)
        if guard.lost(shown, float(second)):
            return second - NORMAL_S
    return None


def a_day(pictures: list[np.ndarray], hours: float) -> int:
    """How many alerts `hours` of light, IR cut filter and shake make: another one every 20 minutes, then none."""
    guard, random, changes = ViewGuard(), np.random.default_rng(2), list(LIGHT.values())
    alerts = 0
    for second in range(int(hours * 3600)):
        picture = pictures[second % len(pictures)]
        turn, on = divmod(second // 600, 2)
        shown = changes[turn % len(changes)](picture) if on else picture
        alerts += bool(guard.lost(with_noise(shown, random), float(second)))
    return alerts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one film, one hour; nothing is kept")
    options = parser.parse_args()
    rows = []
    for film in films()[: 1 if options.quick else None]:
        pictures = small_pictures(film)
        told = {name: told_after_s(pictures, change, 200) for name, change in {**LOST, **LIGHT}.items()}
        late = max((told[name] if told[name] is not None else np.inf for name in LOST), default=0.0)
        false = [name for name in LIGHT if told[name] is not None]
        missed = [name for name in LOST if told[name] is None]
        rows.append(
            [film.name, f"{len(LOST) - len(missed)} of {len(LOST)}", f"{late:.0f}", ", ".join(missed) or "-",
             f"{len(false)} of {len(LIGHT)}", str(a_day(pictures, 1 if options.quick else 24))]
        )  # fmt: skip
    head = ["film", "lost views told", "slowest, s", "missed", "told of light", "alerts in 24 h of light and shake"]
    lines = table(head, rows)
    print("\n".join(lines)) if options.quick else write_section("view", lines)


if __name__ == "__main__":
    main()
