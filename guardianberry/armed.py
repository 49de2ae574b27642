"""ARMED_HOURS: at which hours of the week the camera is on duty. Pure: text and local times in, yes or no out.

    "mon-fri 08:00-17:00, daily 23:00-06:00"

A period that ends at or before its beginning goes on into the next day and belongs to the day on which it begins.
Times are those of the clock on the wall: an hour that daylight saving repeats counts twice.
"""

import re
from dataclasses import dataclass
from datetime import datetime

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = "|".join(_DAYS)
_PERIOD = re.compile(rf"(?:(daily)|({_DAY})(?:-({_DAY}))?) (\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_DAY_MIN = 24 * 60


@dataclass(frozen=True)
class Period:
    """Minutes since midnight of each of `weekdays` (0: Monday); `end_min` is above 1,440 where it is the next day's."""

    weekdays: frozenset[int]
    begin_min: int
    end_min: int


class ArmedHours:
    """Raises ValueError for a text that is not understood; its message says which part, and why."""

    def __init__(self, text: str) -> None:
        self._periods = [_parse(part.strip()) for part in text.split(",")] if text.strip() else []

    def is_armed(self, now_local: datetime) -> bool:
        """Whether the camera is on duty at this local time. Always, where no hours are given."""
        minute, weekday = now_local.hour * 60 + now_local.minute, now_local.weekday()
        moments = ((weekday, minute), ((weekday - 1) % 7, minute + _DAY_MIN))  # the same moment, seen from both days
        return not self._periods or any(
            day in period.weekdays and period.begin_min <= at_min < period.end_min
            for period in self._periods
            for day, at_min in moments
        )


def _parse(part: str) -> Period:
    match = _PERIOD.fullmatch(" ".join(part.lower().split()))
    if match is None:
        raise ValueError(f'{part!r} is not understood; write "mon-fri 08:00-17:00" or "daily 23:00-06:00"')
    begin_min, end_min = (_minutes(part, *match.group(group, group + 1)) for group in (4, 6))
    if begin_min == end_min:
        raise ValueError(f'{part!r} begins when it ends; write "00:00-24:00" for a whole day')
    if begin_min == _DAY_MIN:
        raise ValueError(f'{part!r} begins at 24:00; write "00:00" of the next day')
    first, last = (0, 6) if match[1] else (_DAYS.index(match[2]), _DAYS.index(match[3] or match[2]))
    weekdays = frozenset((first + day) % 7 for day in range((last - first) % 7 + 1))
    return Period(weekdays, begin_min, end_min if end_min > begin_min else end_min + _DAY_MIN)


def _minutes(part: str, hour: str, minute: str) -> int:
    at_min = int(hour) * 60 + int(minute)
    if at_min > _DAY_MIN or int(minute) > 59:
        raise ValueError(f"{part!r}: there is no time {hour}:{minute}")
    return at_min
