"""Finishes the clips that a kill, a power cut or a failing disk left open, and removes temporary files."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from guardianberry import disk
from guardianberry.filenames import DAMAGED_PREFIX, OPEN_PREFIX, PART_PREFIX, HeldName, VideoName, parse_open
from guardianberry.logs import FirstOnes, OncePerCause
from guardianberry.recording.finish_child import Outcome, finish_in_child
from guardianberry.recording.mp4 import finish_file
from guardianberry.recording.retention import disk_bytes

log = logging.getLogger(__name__)

_RETRY_S = 60.0  # each try copies the clip


@dataclass
class Recovery:
    """The open clips in `folder` that nobody is writing. All but `add` is for the folder's thread.

    `is_recording` tells whether the clip of that event id is being written by this process. `finished` is called with
    the path of each finished clip.
    """

    folder: Path
    max_duration_s: float
    frame_rate_fps: float
    is_recording: Callable[[int], bool]
    finished: Callable[[Path], None]
    monotonic: Callable[[], float] = time.monotonic
    _open: dict[Path, float] = field(default_factory=dict)  # to be finished, from that time on
    _told: OncePerCause = field(default_factory=OncePerCause)
    _odd_files: FirstOnes = field(default_factory=lambda: FirstOnes(log))

    def look(self) -> None:
        """Find the open clips in the folder, and remove its temporary files. Raises OSError for the folder."""
        remove_parts(self.folder, is_in_use=lambda name: self._is_own(name.removeprefix(PART_PREFIX)))
        found = [path for path in self.folder.iterdir() if _is_open_clip(path) and not self._is_own(path.name)]
        self._open = {}
        for path in sorted(found, key=disk_bytes):  # so that one that takes long delays only those that do, too
            if _parse_open_name(path.name)[0] is not None:
                self._open[path] = 0.0
            else:
                text = "clip: %s/%s is no clip of this program; it stays where it is"
                self._odd_files.warning(text, self.folder.name, path.name)

    def add(self, path: Path) -> None:
        """Finish this clip of the current run, too."""
        self._open[path] = 0.0

    def finish(self) -> None:
        """Finish the clips, for some ten seconds; call it again for the others.

        The duration comes from the packets, all else from the file's name. A file that holds no frame is left as it is,
        with a line in the log; one that harmed the process that read it gets a name that says so, and is not tried
        again. Raises OSError where the disk fails; these clips are tried again a minute later.
        """
        now_s, faults = self.monotonic(), []
        if not (batch := [path for path, from_s in list(self._open.items()) if from_s <= now_s]):
            return
        try:
            outcomes = finish_in_child(batch, frame_rate_fps=self.frame_rate_fps)
        except OSError as error:
            if self._told.is_new("child"):
                log.warning("clip: %d open clip(s) wait, and are tried again each minute (%s)", len(batch), error)
            for path in batch:
                self._put_off(path)
            return
        for outcome in outcomes:
            path = Path(outcome.path)
            self._put_off(path)
            if outcome.errno == errno.EAGAIN:
                if self._told.is_new(path):
                    log.warning("clip: %s waits, and is tried again each minute (%s)", path.name, outcome.problem)
                continue
            try:
                self._take(path, outcome)
                del self._open[path]
            except OSError as error:
                faults.append(error)
        if faults:
            raise faults[0]

    def _put_off(self, path: Path) -> None:
        del self._open[path]  # so that it comes after the others
        self._open[path] = self.monotonic() + _RETRY_S

    def _take(self, path: Path, outcome: Outcome) -> None:
        where = f"{self.folder.name}/{path.name}"
        if outcome.errno in disk.FAULTS:
            raise OSError(outcome.errno, outcome.problem)
        if outcome.is_harmful:
            self._set_aside(path, outcome.problem)
        elif outcome.errno == errno.ENOENT:
            log.warning("clip: %s is gone", where)
        elif outcome.problem:
            self._odd_files.warning("clip: %s cannot be finished (%s); it stays there", where, outcome.problem)
        else:
            name, final_name = _parse_open_name(path.name)
            assert name is not None  # see `look`
            path = finish_file(path, name, outcome.duration_s, self.max_duration_s, final_name)
            log.info("clip: finished %s (%.1f s), which an earlier run left open", path.name, outcome.duration_s)
            self.finished(path)

    def _set_aside(self, path: Path, problem: str) -> None:
        name = path.name.removeprefix(OPEN_PREFIX)
        targets = (path.with_name(f"{DAMAGED_PREFIX}{f'{n}-' if n else ''}{name}") for n in itertools.count())
        target = path.rename(next(target for target in targets if not os.path.lexists(target)))
        log.warning(
            "clip: %s/%s is damaged (%s). It is now called %s and is not tried again: look at it on another computer, "
            "or delete it",
            self.folder.name,
            path.name,
            problem,
            target.name,
        )

    def _is_own(self, file_name: str) -> bool:
        name, _ = _parse_open_name(file_name)
        return name is not None and self.is_recording(name.recording_start_time)


def remove_parts(folder: Path, *, is_in_use: Callable[[str], bool] = lambda name: False) -> None:
    """Remove temporary files that a crash left. Nothing else is lost by that. Raises OSError for the folder."""
    odd_files = FirstOnes(log)
    for path in folder.iterdir():
        if not path.name.startswith(PART_PREFIX) or is_in_use(path.name):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # a folder of that name, or another user's file
            odd_files.warning("%s/%s cannot be removed (%s)", folder.name, path.name, error.strerror)


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
