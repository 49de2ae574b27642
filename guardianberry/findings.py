"""What the doctor says about one thing: fine, could be better, or in the way of the daemon."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "FAIL"
_LINE_WIDTH = 100
_INDENT = " " * 19


class Finding(NamedTuple):
    """One line of the doctor's page. `advice` is what to do about it, for every level but OK."""

    level: str
    subject: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        lines = textwrap.wrap(
            f"{self.level:<6}{self.subject:<13}{self.text}",
            _LINE_WIDTH,
            subsequent_indent=_INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if self.advice:
            advice = textwrap.wrap(
                f"-> {self.advice}",
                _LINE_WIDTH,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT + "   ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines += advice
        return "\n".join(lines)


def ok(subject: str, text: str) -> Finding:
    return Finding(OK, subject, text)


def warn(subject: str, text: str, advice: str) -> Finding:
    return Finding(WARN, subject, text, advice)


def fail(subject: str, text: str, advice: str) -> Finding:
    return Finding(FAIL, subject, text, advice)
