"""Writes index.html: one file with its style, its script and the events, which asks no other place for anything."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from viewer.archive import write_whole
from viewer.events import Event, Gap

_HERE = Path(__file__).resolve().parent


def write_page(folder: Path, events: Sequence[Event], gaps: Sequence[Gap], *, now_s: int, pre_roll_s: float) -> Path:
    """The path of the page. `pre_roll_s`: how far into a clip its detection is."""
    style, script = _text("page.css"), _text("page.js")
    data = {
        "written": now_s,
        "pre_roll_s": pre_roll_s,
        "events": [dataclasses.asdict(event) for event in events],
        "gaps": [dataclasses.asdict(gap) for gap in gaps],
    }
    page = _text("page.html")
    # The browser runs and applies what has these hashes, and nothing that data could smuggle in.
    for mark, text in {
        "STYLE-HASH": _csp_hash(style),
        "SCRIPT-HASH": _csp_hash(script),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _json_for_html(data),
    }.items():
        page = page.replace(f"<!--{mark}-->" if "HASH" not in mark else mark, text, 1)
    path = folder / "index.html"
    write_whole(path, [page.encode()])
    return path


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")  # with "\n" alone, as the browser will hash it


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_for_html(data: Any) -> str:
    """ASCII without the characters that could end the element that it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
