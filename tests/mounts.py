"""Small and read-only disks, for real; only root can make them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """`mount ARGUMENTS FOLDER`, taken off again at the end; skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", *arguments, str(folder)], check=False).returncode != 0:
        pytest.skip("cannot mount a disk here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def small_disk(folder: Path, size: str) -> contextlib.AbstractContextManager[Path]:
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "none")


def read_only(folder: Path) -> contextlib.AbstractContextManager[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return mounted(folder, "--bind", "-o", "ro", str(folder))
