"""Files that a power cut leaves whole."""

from __future__ import annotations

import os
from pathlib import Path

from guardianberry.filenames import PART_PREFIX


def write_atomically(path: Path, content: bytes) -> None:
    """Afterwards `path` holds `content`, after a power cut too. Where this raises OSError, `path` is as before.

    The name of the temporary file is the same at every try, so that a killed one is overwritten by the next.
    """
    part = path.with_name(PART_PREFIX + path.name)
    try:
        part.write_bytes(content)
        fsync_path(part)
        part.replace(path)
        fsync_path(path.parent)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def fsync_path(path: Path) -> None:
    """Return once the file's content, or the folder's list of names, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
