"""Finishes the clips that a kill, a power cut or a failing disk left open, and removes temporary files."""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path

from guardianberry.filenames import OPEN_PREFIX, PART_PREFIX, HeldName, VideoName, parse_open
from guardianberry.recording.mp4 import READ_ERRORS, close_killed_file, finish_file

log = logging.getLogger(__name__)

_RETRY_S = 60.0  # each try copies the clip
_DISK_FAULTS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOSPC, errno.EDQUOT,
    errno.ESTALE, errno.ENOTCONN,
}  # fmt: skip


class Recovery:
    """The open clips in `folder` that nobody is writing. All but `add` is for the folder's thread.

    `is_recording` tells whether the clip of that event id is being written by this process. `finished` is called with
    the path of each finished clip.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_duration_s: float,
        frame_rate_fps: float,
        is_recording: Callable[[int], bool],
        finished: Callable[[Path], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._max_duration_s = max_duration_s
        self._frame_rate_fps = frame_rate_fps
        self._is_recording = is_recording
        self._finished = finished
        self._monotonic = monotonic
        self._open: list[Path] = []
        self._retry_at_s = 0.0

    def look(self) -> None:
        """Find the open clips in the folder, and remove its temporary files. Raises OSError for the folder."""
        remove_parts(self._folder, is_in_use=lambda name: self._is_own(name.removeprefix(PART_PREFIX)))
        self._open = sorted(
            path for path in self._folder.iterdir() if _is_open_clip(path) and not self._is_own(path.name)
        )
        self._retry_at_s = 0.0

    def add(self, path: Path) -> None:
        """Finish this clip of the current run, too."""
        self._open.append(path)

    def finish(self) -> None:
        """Finish the clips. Raises OSError where the disk fails; they are tried again a minute later.

        The duration comes from the packets, all else from the file's name. A file that holds no frame is left as it is,
        with a line in the log.
        """
        if not self._open or self._monotonic() < self._retry_at_s:
            return
        faults = []
        for path in list(self._open):
            try:
                self._finish(path)
            except OSError as error:
                faults.append(error)
            else:
                self._open.remove(path)
        if faults:
            self._retry_at_s = self._monotonic() + _RETRY_S
            raise faults[0]

    def _finish(self, path: Path) -> None:
        where = f"{self._folder.name}/{path.name}"
        name, final_name = _parse_open_name(path.name)
        if name is None:
            log.warning("clip: %s is no clip of this program; it stays where it is", where)
            return
        try:
            duration_s = close_killed_file(path, frame_rate_fps=self._frame_rate_fps)
            path = finish_file(path, name, duration_s, self._max_duration_s, final_name)
        except READ_ERRORS as error:
            if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
                raise
            what = (
                "is gone" if isinstance(error, FileNotFoundError) else f"cannot be finished ({error}); it stays there"
            )
            log.warning("clip: %s %s", where, what)
            return
        log.info("clip: finished %s (%.1f s), which an earlier run left open", path.name, duration_s)
        self._finished(path)

    def _is_own(self, file_name: str) -> bool:
        name, _ = _parse_open_name(file_name)
        return name is not None and self._is_recording(name.recording_start_time)


def remove_parts(folder: Path, *, is_in_use: Callable[[str], bool] = lambda name: False) -> None:
    """Remove temporary files that a crash left. Nothing else is lost by that. Raises OSError for the folder."""
    for path in folder.iterdir():
        if not path.name.startswith(PART_PREFIX) or is_in_use(path.name):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # a folder of that name, or another user's file
            log.warning("%s/%s cannot be removed (%s)", folder.name, path.name, error.strerror)


def _is_open_clip(path: Path) -> bool:
    """Links are not followed."""
    return path.name.startswith(OPEN_PREFIX) and path.is_file() and not path.is_symlink()


def _parse_open_name(file_name: str) -> tuple[VideoName | None, Callable[[VideoName], str]]:
    """The fields of an open clip's name, and the function that makes its final name: a plain or a held one."""
    parsed = parse_open(file_name)
    if isinstance(parsed, HeldName) and isinstance(parsed.name, VideoName):
        held = parsed
        return held.name, lambda name: dataclasses.replace(held, name=name).encode()  # type: ignore[return-value]
    return (parsed if isinstance(parsed, VideoName) else None), VideoName.encode
