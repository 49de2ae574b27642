"""The constants at the top of detect_and_upload.py, which is read and never run."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from typing import Any


def constants(script: Path) -> dict[str, Any]:
    """Those that are plain values. Raises OSError and SyntaxError."""
    found = {}
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found
