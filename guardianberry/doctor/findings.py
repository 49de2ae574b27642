"""What the doctor says about one thing: fine, could be better, or in the way of the daemon."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "FAIL"
_LINE_WIDTH = 100
_INDENT = " " * 19


class Finding(NamedTuple):
    """One line of the doctor's page. `advice` is what to do about it, for every level but OK; lines after its first are
    commands to copy."""

    level: str
    subject: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        lines = _wrap(f"{self.level:<6}{self.subject:<13}{self.text}", _INDENT)
        for number, part in enumerate(self.advice.split("\n") if self.advice else []):
            # What follows a line break is to be copied, so it stays in one piece.
            lines += [_INDENT + "   " + part] if number else _wrap(f"{_INDENT}-> {part}", _INDENT + "   ")
        return "\n".join(lines)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _LINE_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def ok(subject: str, text: str) -> Finding:
    return Finding(OK, subject, text)


def warn(subject: str, text: str, advice: str) -> Finding:
    return Finding(WARN, subject, text, advice)


def fail(subject: str, text: str, advice: str) -> Finding:
    return Finding(FAIL, subject, text, advice)
