"""Clips: the camera's own packets copied into MP4, readable at every instant, finished by rename.

Nothing is decoded or encoded. A clip that is being written is called `.open-{name}`. The name is kept up to date, so
that after a kill it tells what is known of the event. `recover_clips` finishes at the next start the clips that a kill
or a power cut left open.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from guardianberry.filenames import (
    OPEN_PREFIX,
    PART_PREFIX,
    HeldName,
    VideoName,
    free_path,
    parse_open,
)
from guardianberry.files import fsync_path
from guardianberry.recording.mp4 import (
    READ_ERRORS,
    WRITE_ERRORS,
    Mp4Writer,
    close_killed_file,
    cut_to_whole_fragments,
)
from guardianberry.recording.recorder import EventFacts, Stop

if TYPE_CHECKING:
    from guardianberry.camera.h264 import AccessUnit
    from guardianberry.camera.stream import Tap

log = logging.getLogger(__name__)

_SYNC_INTERVAL_S = 0.5  # a power cut takes the video since the last fsync, and must take less than a second
_SECOND_FRAME_S = 0.5  # the time to wait for the frame that makes the first one readable


class ClipWriter:
    """Records one event in a thread of its own, so that the loop does not wait for the disk.

    The constructor opens the file and writes the pre-roll in the caller's thread. It raises one of WRITE_ERRORS where
    it cannot; once it returns, a kill cannot take the clip. The file is called `.part-...` until a frame is readable.
    `final_name` makes the name of the finished file. `finished` is called with its path in the writer's thread.
    """

    def __init__(
        self,
        tap: Tap,
        folder: Path,
        *,
        name: VideoName,
        final_name: Callable[[VideoName], str],
        max_duration_s: float,
        frame_rate_fps: float,
        finished: Callable[[Path], None],
    ) -> None:
        first = tap.get(0)
        if first is None or not first.is_key:
            raise OSError("the camera has not delivered a key frame yet")
        self._tap = tap
        self._folder = folder
        self._name = dataclasses.replace(
            name, duration=0, width=first.width or name.width, height=first.height or name.height
        )
        self._final_name = final_name
        self._max_duration_s = max_duration_s
        self._frame_rate_fps = frame_rate_fps
        self._finished = finished
        self._facts: EventFacts | None = None
        self._stop: Stop | None = None
        self._end_reason: str | None = None
        self._path = folder / (PART_PREFIX + OPEN_PREFIX + final_name(self._name))
        self._mp4 = Mp4Writer(
            self._path, width=self._name.width, height=self._name.height, frame_rate_fps=frame_rate_fps
        )
        self._synced_s = 0.0
        self._write_pre_roll(first)
        self._thread = threading.Thread(target=self._run, name="clip", daemon=True)
        self._thread.start()

    @property
    def end_reason(self) -> str | None:
        """Why the clip takes no more video; None while it does."""
        return self._end_reason or ("no more video from the camera" if self._tap.ended else None)

    def update(self, facts: EventFacts) -> None:
        """Keep what is known of the event for the file's name."""
        self._facts = facts

    def finish(self, stop: Stop) -> None:
        """Ask for the end of the clip; returns at once."""
        self._facts = stop.facts
        self._stop = stop
        self._tap.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._write_until_stopped()
        except WRITE_ERRORS as error:
            self._end_reason = f"the disk refuses ({error})"
            log.warning(
                "clip: cannot write %s (%s); the %.1f s so far are kept", self._path.name, error, self._mp4.duration_s
            )
        except Exception:
            log.exception("clip: %s is left for the next start to finish", self._path.name)
            return
        finally:
            self._tap.close()
        self._finish()

    def _write_until_stopped(self) -> None:
        while True:
            unit = self._tap.get(0.1)
            if unit is None and (self._stop or self._tap.ended):
                return
            if unit is not None and not self._write_available(unit):
                return
            self._sync_and_rename()

    def _write_pre_roll(self, first: AccessUnit) -> None:
        try:
            if self._write_available(first) and not self._mp4.is_readable:  # the camera has just started
                self._write_available(self._tap.get(_SECOND_FRAME_S))
        except WRITE_ERRORS:
            if not self._mp4.is_readable:
                self._path.unlink(missing_ok=True)
            raise
        finally:
            if self._mp4.is_readable:
                self._rename()

    def _write_available(self, unit: AccessUnit | None) -> bool:
        """Write `unit` and all units after it that have arrived. False: the clip takes no more."""
        while unit is not None:
            if self._stop is not None and unit.arrival_s > self._stop.time_s:
                return False
            if self._mp4.duration_with_s(unit) > self._max_duration_s:
                self._end_reason = "the clip has its full length"
                return False
            self._mp4.write(unit)
            unit = self._tap.get(0)
        return True

    def _sync_and_rename(self) -> None:
        if self._facts is not None:
            self._name = _with_facts(self._name, self._facts)
        if self._mp4.is_readable:
            self._rename()
        if self._mp4.duration_s - self._synced_s >= _SYNC_INTERVAL_S:
            fsync_path(self._path)
            fsync_path(self._folder)
            self._synced_s = self._mp4.duration_s

    def _rename(self) -> None:
        path = self._folder / (OPEN_PREFIX + self._final_name(self._name))
        if path != self._path:
            self._path = self._path.rename(path)

    def _finish(self) -> None:
        is_closed = False
        try:
            self._mp4.close()
            is_closed = True
        except WRITE_ERRORS as error:  # a full disk: what was written is playable
            log.warning("clip: cannot close %s (%s)", self._path.name, error)
        try:
            duration_s = self._mp4.duration_s
            if not is_closed:
                duration_s = cut_to_whole_fragments(self._path, frame_rate_fps=self._frame_rate_fps)
            if self._facts is not None:
                self._name = _with_facts(self._name, self._facts)
            path = _finish_file(self._path, self._name, duration_s, self._max_duration_s, self._final_name)
        except WRITE_ERRORS as error:
            log.warning("clip: %s is left for the next start to finish (%s)", self._path.name, error)
            return
        self._finished(path)


def recover_clips(folder: Path, *, max_duration_s: float, frame_rate_fps: float) -> list[Path]:
    """Finish every clip that a kill or a power cut left open in `folder`; returns the finished ones.

    The duration is that of its packets, everything else is in its name. A file without a readable frame is left as it
    is, with a line in the log. Call before a new clip is recorded into `folder`. Raises OSError for the folder.
    """
    finished = []
    for path in sorted(path for path in folder.iterdir() if _is_open_clip(path)):
        name, final_name = _parse_open_name(path.name)
        if name is None:
            log.warning("clip: %s/%s is no clip of this program; it stays where it is", folder.name, path.name)
            continue
        try:
            duration_s = close_killed_file(path, frame_rate_fps=frame_rate_fps)
            path = _finish_file(path, name, duration_s, max_duration_s, final_name)
        except READ_ERRORS as error:
            log.warning("clip: %s/%s cannot be finished (%s); it stays where it is", folder.name, path.name, error)
            continue
        log.info("clip: finished %s (%.1f s), which an earlier run left open", path.name, duration_s)
        finished.append(path)
    return finished


def _is_open_clip(path: Path) -> bool:
    """Links are not followed."""
    return path.name.startswith(OPEN_PREFIX) and path.is_file() and not path.is_symlink()


def remove_parts(folder: Path) -> None:
    """Remove temporary files that a crash left. Nothing else is lost by that. Raises OSError for the folder."""
    for path in folder.glob(PART_PREFIX + "*"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # a folder of that name, or another user's file
            log.warning("%s/%s cannot be removed (%s)", folder.name, path.name, error.strerror)


def _with_facts(name: VideoName, facts: EventFacts) -> VideoName:
    return dataclasses.replace(name, **dataclasses.asdict(facts))


def _parse_open_name(file_name: str) -> tuple[VideoName | None, Callable[[VideoName], str]]:
    """The fields of an open clip's name, and the function that makes its final name: a plain or a held one."""
    parsed = parse_open(file_name)
    if isinstance(parsed, HeldName) and isinstance(parsed.name, VideoName):
        held = parsed
        return held.name, lambda name: dataclasses.replace(held, name=name).encode()  # type: ignore[return-value]
    return (parsed if isinstance(parsed, VideoName) else None), VideoName.encode


def _finish_file(
    path: Path, name: VideoName, duration_s: float, max_duration_s: float, final_name: Callable[[VideoName], str]
) -> Path:
    """Give a closed clip its final name, once its data are on the disk."""
    fsync_path(path)
    name = dataclasses.replace(name, duration=min(round(duration_s), int(max_duration_s)))
    target = path.with_name(final_name(name))
    if target.exists():
        target = free_path(path.parent, name)
    path.rename(target)
    fsync_path(target.parent)
    return target
