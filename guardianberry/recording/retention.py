"""Free space: the oldest clips go when the disk runs short, and a reserve lets alert images be saved on a full one."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from guardianberry.disk import create
from guardianberry.filenames import VideoName, parse, parse_held
from guardianberry.logs import OncePerCause

log = logging.getLogger(__name__)

_RESERVE_BYTES = 1_000_000  # a dozen alert images
_RESERVE_NAME = ".reserve"
_USELESS_PAUSE_S = 600.0
_MIN_TELLING_BYTES = 100_000  # a smaller clip says nothing: meanwhile other programs write more than it brings


def space_to_keep_bytes(folder: Path, min_free_bytes: int) -> int:
    """`min_free_bytes`, but at most a tenth of the disk under `folder`. Raises OSError."""
    return min(min_free_bytes, shutil.disk_usage(folder).total // 10)


@dataclass
class Retention:
    """Deletes the oldest finished clips in `folder` while its disk is short of space, each with a warning.

    A deleted clip had not been uploaded, or it would be gone already. So nothing is deleted where that cannot bring
    enough space, because other files fill the disk, nor what `is_uploading` now. Images are never deleted.
    """

    folder: Path
    min_free_bytes: int
    is_uploading: Callable[[Path], bool]
    monotonic: Callable[[], float] = time.monotonic
    _told: OncePerCause = field(default_factory=OncePerCause)
    _useless_until_s: float = 0.0

    def make_room(self) -> None:
        """Raises OSError where the folder cannot be read."""
        missing_bytes = self._missing_bytes()
        if missing_bytes <= 0:
            self._told.forget()
        if missing_bytes <= 0 or self.monotonic() < self._useless_until_s:
            return
        clips = self._oldest_first()
        if sum(disk_bytes(path) for path in clips if not self.is_uploading(path)) < missing_bytes:
            self._tell("all its clips take less: free some space")
            return
        for path in clips:
            deleted_bytes = disk_bytes(path)
            if self.is_uploading(path) or not deleted_bytes or not _delete(path):
                continue
            before_bytes, missing_bytes = missing_bytes, self._missing_bytes()
            if missing_bytes <= 0:
                return
            if missing_bytes >= before_bytes and deleted_bytes >= _MIN_TELLING_BYTES:
                self._tell("deleting a clip did not help")
                self._useless_until_s = self.monotonic() + _USELESS_PAUSE_S
                return

    def _missing_bytes(self) -> int:
        return space_to_keep_bytes(self.folder, self.min_free_bytes) - shutil.disk_usage(self.folder).free

    def _tell(self, reason: str) -> None:
        if self._told.is_new("space"):
            log.warning("disk: too little space under %s/, and nothing more is deleted: %s", self.folder.name, reason)

    def _oldest_first(self) -> list[Path]:
        """Finished clips. The held ones, from before the clock was set, are the newest."""
        found = []
        for path in self.folder.iterdir():
            held = parse_held(path.name)
            name = held.name if held else parse(path.name)
            if isinstance(name, VideoName):
                found.append((held is not None, held.monotonic_ms if held else name.recording_start_time, path))
        return [path for _, _, path in sorted(found)]


def _delete(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:  # uploaded meanwhile, or on a disk that takes no writes
        return False
    log.warning("disk: %s is LOST: deleted before it was uploaded, because the disk is nearly full", path.name)
    return True


def disk_bytes(path: Path) -> int:
    """What its deletion would bring: nothing where the file has another name, too."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 if status.st_nlink == 1 else 0


class Reserve:
    """A file on the disk of `images`, which is deleted when that disk is full, so that an alert image can be saved.

    It lies in `folder`, or in `images` where that is another disk.
    """

    def __init__(self, folder: Path, images: Path, *, min_free_bytes: int) -> None:
        self._folder, self._images, self._min_free_bytes = folder, images, min_free_bytes

    def fill(self) -> None:
        """Make the file where it is missing and the disk has space. Raises OSError."""
        path = self._path()
        if path.exists() and disk_bytes(path) >= _RESERVE_BYTES:
            return
        needed_bytes = space_to_keep_bytes(self._images, self._min_free_bytes) + _RESERVE_BYTES
        if shutil.disk_usage(self._images).free < needed_bytes:
            return
        try:
            with open(create(path), "wb") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def give_up(self) -> bool:
        """Call on ENOSPC alone. Returns whether there was a reserve."""
        try:
            self._path().unlink()
        except OSError:
            return False
        log.warning("disk: full to the last byte; the reserve for alert images is used now")
        return True

    def _path(self) -> Path:
        same_disk = os.stat(self._folder).st_dev == os.stat(self._images).st_dev
        return (self._folder if same_disk else self._images) / _RESERVE_NAME
