"""Finishes the clips that a kill, a power cut or a failing disk left open, and removes temporary files."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from guardianberry.filenames import DAMAGED_PREFIX, OPEN_PREFIX, PART_PREFIX, HeldName, VideoName, parse_open
from guardianberry.logs import OncePerCause
from guardianberry.recording.finish import Outcome, finish_in_child
from guardianberry.recording.mp4 import finish_file

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
        self._open: list[Path] = []  # to be finished now
        self._later: list[Path] = []  # after a disk fault, from `_retry_at_s` on
        self._retry_at_s = 0.0
        self._told = OncePerCause()

    def look(self) -> None:
        """Find the open clips in the folder, and remove its temporary files. Raises OSError for the folder."""
        remove_parts(self._folder, is_in_use=lambda name: self._is_own(name.removeprefix(PART_PREFIX)))
        found = [path for path in self._folder.iterdir() if _is_open_clip(path) and not self._is_own(path.name)]
        # The smallest first, so that a file that takes long delays only those that take long themselves.
        self._open = [path for path in sorted(found, key=_size_bytes) if self._is_ours(path)]
        self._later.clear()

    def add(self, path: Path) -> None:
        """Finish this clip of the current run, too."""
        self._open.append(path)

    def finish(self) -> None:
        """Finish the clips, for some ten seconds; call it again for the others.

        The duration comes from the packets, all else from the file's name. A file that holds no frame is left as it is,
        with a line in the log; one that harmed the process that read it gets a name that says so, and is not tried
        again. Raises OSError where the disk fails; these clips are tried again a minute later.
        """
        if self._later and self._monotonic() >= self._retry_at_s:
            self._open.extend(self._later)
            self._later.clear()
        if not (batch := list(self._open)):
            return
        try:
            outcomes = finish_in_child(batch, frame_rate_fps=self._frame_rate_fps)
        except OSError as error:
            if self._told.is_new("child"):
                log.warning("clip: %d open clip(s) wait, and are tried again each minute (%s)", len(batch), error)
            for path in batch:
                self._put_off(path)
            return
        faults = []
        for outcome in outcomes:
            path = Path(outcome.path)
            if outcome.errno == errno.EAGAIN:
                if self._told.is_new(path):
                    log.warning("clip: %s waits, and is tried again each minute (%s)", path.name, outcome.problem)
                self._put_off(path)
                continue
            try:
                self._take(path, outcome)
            except OSError as error:
                faults.append(error)
                self._put_off(path)
            else:
                self._open.remove(path)
        if faults:
            raise faults[0]

    def _put_off(self, path: Path) -> None:
        self._open.remove(path)
        self._later.append(path)
        self._retry_at_s = self._monotonic() + _RETRY_S

    def _take(self, path: Path, outcome: Outcome) -> None:
        where = f"{self._folder.name}/{path.name}"
        if outcome.errno in _DISK_FAULTS:
            raise OSError(outcome.errno, outcome.problem)
        if outcome.is_harmful:
            self._set_aside(path, outcome.problem)
        elif outcome.errno == errno.ENOENT:
            log.warning("clip: %s is gone", where)
        elif outcome.problem:
            log.warning("clip: %s cannot be finished (%s); it stays there", where, outcome.problem)
        else:
            name, final_name = _parse_open_name(path.name)
            assert name is not None  # see _is_ours
            path = finish_file(path, name, outcome.duration_s, self._max_duration_s, final_name)
            log.info("clip: finished %s (%.1f s), which an earlier run left open", path.name, outcome.duration_s)
            self._finished(path)

    def _set_aside(self, path: Path, problem: str) -> None:
        name = path.name.removeprefix(OPEN_PREFIX)
        targets = (path.with_name(f"{DAMAGED_PREFIX}{f'{n}-' if n else ''}{name}") for n in itertools.count())
        target = path.rename(next(target for target in targets if not os.path.lexists(target)))
        log.warning(
            "clip: %s/%s is damaged (%s). It is now called %s and is not tried again: look at it on another computer, "
            "or delete it",
            self._folder.name,
            path.name,
            problem,
            target.name,
        )

    def _is_ours(self, path: Path) -> bool:
        name, _ = _parse_open_name(path.name)
        if name is None:
            log.warning("clip: %s/%s is no clip of this program; it stays where it is", self._folder.name, path.name)
        return name is not None

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


def _size_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _parse_open_name(file_name: str) -> tuple[VideoName | None, Callable[[VideoName], str]]:
    """The fields of an open clip's name, and the function that makes its final name: a plain or a held one."""
    parsed = parse_open(file_name)
    if isinstance(parsed, HeldName) and isinstance(parsed.name, VideoName):
        held = parsed
        return held.name, lambda name: dataclasses.replace(held, name=name).encode()  # type: ignore[return-value]
    return (parsed if isinstance(parsed, VideoName) else None), VideoName.encode
