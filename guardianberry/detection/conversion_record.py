"""What is known of conversions: the sums of converted graphs, and the conversions that failed on this computer.

Graphs are in models/.cache/, the record in models/.conversions.json (mode 0600). A graph whose files do not have the
sum in the record is converted again, so files that somebody put into .cache/ are never loaded.
"""

import importlib.metadata
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from guardianberry.detection.openvino_model import CONVERTER_VERSION, file_sha256
from guardianberry.disk import write_atomically
from guardianberry.machine import read_text

log = logging.getLogger(__name__)

RECORD_NAME = ".conversions.json"
_CGROUP = Path("/sys/fs/cgroup")


class Conversions:
    """The record of one models folder. For any thread. Raises OSError."""

    def __init__(self, models_folder: Path) -> None:
        self._cache = models_folder / ".cache"
        self._record = models_folder / RECORD_NAME
        self._lock = threading.Lock()

    def graph_path(self, source: Path, sha256: str) -> Path:
        """Where the graph of this source is kept: a name of its own for each content and converter version."""
        self._cache.mkdir(mode=0o700, exist_ok=True)
        return self._cache / f"{source.stem}-{sha256[:8]}-v{CONVERTER_VERSION}.xml"

    def has(self, xml: Path) -> bool:
        """Whether the graph is there, with the content that was recorded after its conversion."""
        entry = self._read().get(xml.name, {})
        if not xml.is_file() or "sha256" not in entry:
            return False
        with_bin = xml.with_suffix(".bin")
        if with_bin.is_file() and file_sha256(xml, with_bin) == entry["sha256"]:
            return True
        log.warning("The cached graph %s is damaged or was changed, and is converted again", xml.name)
        return False

    def add(self, xml: Path) -> None:
        """Record a graph that a conversion of ours has just made."""
        self._write(xml, {"sha256": file_sha256(xml, xml.with_suffix(".bin"))})

    def failure(self, xml: Path) -> str:
        """Why the conversion failed here before; empty if it did not, or if packages or memory have changed since."""
        entry = self._read().get(xml.name, {})
        return str(entry.get("failure", "")) if entry.get("conditions") == _conditions() else ""

    def add_failure(self, xml: Path, cause: str) -> None:
        """Remember that a conversion is useless under the present conditions."""
        self._write(xml, {"failure": f"{cause}, on {time.strftime('%Y-%m-%d')}", "conditions": _conditions()})

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self._record.read_text(encoding="utf-8"))
            return entries if all(isinstance(entry, dict) for entry in entries.values()) else {}
        except (FileNotFoundError, ValueError, AttributeError):
            return {}  # a damaged record: everything is converted again

    def _write(self, xml: Path, entry: dict[str, Any]) -> None:
        with self._lock:
            write_atomically(self._record, json.dumps({**self._read(), xml.name: entry}, indent=1).encode())
            self._record.chmod(0o600)


def _conditions() -> dict[str, str]:
    """What a conversion depends on besides the weights: versions, and the memory of this computer."""
    conditions = {}
    for package in ("torch", "openvino", "numpy"):
        try:
            conditions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            conditions[package] = "missing"
    for line in read_text(Path("/proc/meminfo")).splitlines():
        if line.startswith(("MemTotal:", "SwapTotal:")):
            name, amount, *_ = line.split()
            conditions[name] = amount
    group = read_text(Path("/proc/self/cgroup")).strip().rpartition(":")[2].lstrip("/")
    for name in ("memory.max", "memory.swap.max"):
        conditions[name] = read_text(_CGROUP / group / name).strip()
    return conditions
