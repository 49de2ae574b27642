"""The page that --check writes: one finding a line, with advice where something has to be done, and a verdict."""

import os
import textwrap
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, TextIO

from guardianberry.logs import without_control

OK, WARN, FAIL = "ok", "warn", "FAIL"
_LINE_WIDTH = 100
_INDENT = " " * 19
_NO_UPLOAD = """
Nothing was uploaded. --check --upload puts a small text file into each bucket; whoever gets the alerts
may get one for it."""


class Finding(NamedTuple):
    """One line of the page. `advice`: what to do, at the levels WARN and FAIL; its lines after the first are commands
    to copy."""

    level: str
    subject: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        lines = _wrap(f"{self.level:<6}{self.subject:<13}{self.text}", _INDENT)
        advice, *commands = self.advice.split("\n")
        if advice:
            lines += _wrap(f"{_INDENT}-> {advice}", _INDENT + "   ")
        return "\n".join([*lines, *(f"{_INDENT}   {command}" for command in commands)])


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _LINE_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


ok, warn, fail = (partial(Finding, level) for level in (OK, WARN, FAIL))


class Page:
    """Writes each finding at once, and counts the levels."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._levels: Counter[str] = Counter()

    @property
    def failed(self) -> bool:
        return self._levels[FAIL] > 0

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._levels[finding.level] += 1
            self._write(without_control(str(finding)))  # a program that was asked may print anything

    def end(self, *, upload: bool) -> int:
        """Write the verdict; the exit code."""
        warnings = f", {self._levels[WARN]} warning{'s' * (self._levels[WARN] != 1)}" if self._levels[WARN] else ""
        result = f"would NOT work: {self._levels[FAIL]} FAIL" if self.failed else "works here"
        self._write(f"\nGuardianBerry {result}{warnings}.{'' if upload else _NO_UPLOAD}")
        return int(self.failed)

    def _write(self, text: str) -> None:
        """Raises SystemExit where nobody reads on, as in `--check | head -3`."""
        try:
            print(text, file=self._out, flush=True)
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())  # for the rest, which Python writes at exit
            raise SystemExit(1) from error
