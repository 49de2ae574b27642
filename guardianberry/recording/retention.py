"""Room on the disk: what goes when it runs short, and a reserve that the alert image may always have."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from guardianberry.filenames import HeldName, ImageName, VideoName, parse, parse_held

log = logging.getLogger(__name__)

_RESERVE_BYTES = 1_000_000  # a dozen alert images
_RESERVE_NAME = ".reserve"


class Disk:
    """Keeps `min_free_bytes` free by deleting the oldest finished clips and, where that is not enough, images.

    What is deleted had not been uploaded, or it would be gone already: each is a loss, and named in a warning. A file
    that this process has known for less than `spared_s` is spared: it may be on its way to S3, and where another
    program fills the disk, deleting it would help nobody. Open clips and files of other names are never touched.

    The reserve is a file in `folder` that is given up when the disk is full to the last byte, so that alerts go on.
    """

    def __init__(
        self,
        *,
        folder: Path,
        images_folder: Path,
        videos_folder: Path,
        min_free_bytes: int,
        spared_s: float = 600.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reserve = folder / _RESERVE_NAME
        self._images_folder = images_folder
        self._videos_folder = videos_folder
        self._min_free_bytes = min_free_bytes
        self._spared_s = spared_s
        self._monotonic = monotonic
        self._known_since_s: dict[Path, float] = {}

    def free_bytes(self) -> int:
        """Of the fuller one, where the two folders lie on different disks."""
        return min(shutil.disk_usage(folder).free for folder in (self._images_folder, self._videos_folder))

    def make_room(self) -> int:
        """Delete what must go, oldest first; how many files. Two system calls while there is room."""
        if not self._is_short():
            self._fill_reserve()
            return 0
        lost = 0
        for path in self._in_order_of_worth():
            if not self._is_short():
                break
            with contextlib.suppress(OSError):  # uploaded meanwhile, or on a disk that takes no writes
                path.unlink()
                lost += 1
                log.warning(
                    "disk: %s is LOST: deleted before it was uploaded, because less than %d MB were free",
                    path.name,
                    self._min_free_bytes // 1_000_000,
                )
        return lost

    def give_up_reserve(self) -> bool:
        """Make room for an alert image on a disk that is full to the last byte; whether there was any left to give."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        log.warning("disk: full to the last byte; the reserve for alert images is used now")
        return True

    def _is_short(self) -> bool:
        return self.free_bytes() < self._min_free_bytes

    def _in_order_of_worth(self) -> list[Path]:
        """What may go, the least worth first."""
        found: list[Path] = []
        for folder, kind in ((self._videos_folder, VideoName), (self._images_folder, ImageName)):
            dated = [(start, path) for path in folder.iterdir() if (start := _start_of(path.name, kind)) is not None]
            found += [path for _, path in sorted(dated)]
        now_s = self._monotonic()
        self._known_since_s = {path: self._known_since_s.get(path, now_s) for path in found}
        return [path for path in found if now_s - self._known_since_s[path] >= self._spared_s]

    def _fill_reserve(self) -> None:
        if self._reserve.exists():
            return
        with contextlib.suppress(OSError), self._reserve.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)


def _start_of(file_name: str, kind: type[VideoName | ImageName]) -> tuple[bool, int] | None:
    """A sort key, for finished files of that kind only: dated events first, held ones are the newest."""
    held: HeldName | None = parse_held(file_name)
    name = held.name if held else parse(file_name)
    if not isinstance(name, kind):
        return None
    return (True, held.monotonic_ms) if held else (False, name.recording_start_time)
