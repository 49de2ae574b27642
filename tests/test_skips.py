"""What tests/run says at its end about checks that were skipped, and which files it begins with."""

from __future__ import annotations

import re

import pytest

from tests.conftest import LONGEST, how_to_get, missing
from tests.daemon import OFFICIAL_WEIGHTS, ROOT

REASONS = re.findall(
    r'(?:reason=|pytest\.skip\()\s*f?"([^"]{9,})"',
    "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py") if path.name != "test_skips.py"),
)


@pytest.mark.parametrize("reason", sorted({*REASONS, "could not import 'torch': No module named 'torch'"}))
def test_each_reason_to_skip_comes_with_how_to_get_what_is_missing(reason: str) -> None:
    assert how_to_get(reason.replace("{OFFICIAL_WEIGHTS}", str(OFFICIAL_WEIGHTS)))


def test_equal_reasons_are_one_line() -> None:
    reason = "needs libfaketime (Debian's package faketime)"
    assert missing([f"Skipped: {reason}", reason]) == [f"2 skipped: {reason} -> sudo apt install faketime"]


def test_the_files_that_come_first_are_there() -> None:
    assert all((ROOT / "tests" / f"{name}.py").exists() for name in LONGEST)
    assert len(set(LONGEST)) == len(LONGEST)
