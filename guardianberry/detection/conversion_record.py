"""What is known of conversions: the sums of converted graphs, and the conversions that failed on this computer.

Graphs are in models/.cache/, the record in models/.conversions.json (mode 0600). A graph whose files do not have the
sum in the record is converted again, so files that somebody put into .cache/ are never loaded. Where this user may not
read or write there, both are in a private temporary folder, and each start converts.
"""

import atexit
import errno
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from guardianberry.detection.openvino_model import CONVERTER_VERSION, file_sha256
from guardianberry.disk import what_to_do, write_atomically
from guardianberry.machine import read_text

log = logging.getLogger(__name__)

RECORD_NAME = ".conversions.json"
_CGROUP = Path("/sys/fs/cgroup")
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Conversions:
    """The record of one models folder. For any thread. Raises OSError."""

    def __init__(self, models_folder: Path) -> None:
        self._models_folder = models_folder
        self._lock = threading.Lock()
        self._use(models_folder)

    def _use(self, folder: Path) -> None:
        self._folder, self._cache, self._record = folder, folder / ".cache", folder / RECORD_NAME

    def keep_elsewhere(self, error: OSError) -> None:
        """From now on use a private temporary folder. Raises `error` where another folder would not help."""
        with self._lock:
            if error.errno not in _CLOSED:
                raise error
            if self._folder != self._models_folder:
                return  # the other thread has done it
            private = tempfile.mkdtemp(prefix="guardianberry-")
            atexit.register(shutil.rmtree, private, ignore_errors=True)
            advice = what_to_do(error, self._models_folder)
            log.warning("No graph can be kept in %s/, so that each start converts. %s", self._models_folder, advice)
            self._use(Path(private))

    def check_writable(self) -> None:
        """Raises OSError where a new graph could not be kept."""
        for folder in (self._folder, self._cache):
            if not os.access(folder, os.W_OK | os.X_OK):
                number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
                raise OSError(number, os.strerror(number), str(folder))

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
