"""Clips: the camera's own packets copied into MP4, readable at every instant, finished by rename.

Nothing is decoded or encoded. A clip that is being written is called `.open-{name}`. The name is kept up to date, so
that after a kill it tells what is known of the event (`recovery.py` then finishes the file).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guardianberry.disk import fsync_path
from guardianberry.filenames import OPEN_PREFIX, PART_PREFIX, VideoName
from guardianberry.recording.mp4 import WRITE_ERRORS, Mp4Writer, cut_to_whole_fragments, finish_file
from guardianberry.recording.recorder import EventFacts, Stop

if TYPE_CHECKING:
    from guardianberry.camera.h264 import AccessUnit
    from guardianberry.camera.ring import Tap
    from guardianberry.upload.live import LiveClip

log = logging.getLogger(__name__)

_SYNC_INTERVAL_S = 0.5  # a power cut takes the video since the last fsync, and must take less than a second
_SECOND_FRAME_S = 0.5  # the time to wait for the frame that makes the first one readable
_MAX_WAIT_S = 5.0  # for the folder, and for the alert image


@dataclass(eq=False)
class ClipWriter:
    """Records one event in a thread of its own, from now on: the caller never waits for the disk.

    The file is made once the folder `is_ready`. It is called `.part-...`, and a kill takes it, until a frame of it is
    readable and `alert_is_safe`, so that no kill leaves a clip without its image. The functions are called from the
    thread.
    """

    tap: Tap
    folder: Path
    _: KW_ONLY
    name: VideoName  # as it is known now
    final_name: Callable[[VideoName], str]  # of the finished file
    max_duration_s: float
    frame_rate_fps: float
    is_ready: threading.Event
    alert_is_safe: threading.Event
    begun: Callable[[bool], None]  # True: a kill cannot take the clip; False: it is over. The first call counts
    finished: Callable[[Path], None]
    left: Callable[[Path], None]  # an open clip that cannot be finished now
    failed: Callable[[OSError], None]  # the disk takes no clip
    # With a descriptor of the file, once a kill cannot take it. The result is told before the file is closed.
    begin_live: Callable[[int], LiveClip] | None = None
    monotonic: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.event_id = self.name.recording_start_time
        self.name = dataclasses.replace(self.name, duration=0)
        self._live: LiveClip | None = None
        self._full_at_s = self.monotonic() + self.max_duration_s
        self._facts: EventFacts | None = None
        self._stop: Stop | None = None
        self._end_reason: str | None = None
        self._synced_s = 0.0
        self._thread = threading.Thread(target=self._run, name="clip", daemon=True)
        self._thread.start()

    @property
    def end_reason(self) -> str | None:
        """Why the clip takes no more video; None while it does. Touches no disk, and holds where the disk hangs."""
        if self._end_reason:
            return self._end_reason
        if self.tap.ended:
            return "no more video from the camera"
        return "the clip has its full length" if self.monotonic() >= self._full_at_s else None

    def update(self, facts: EventFacts) -> None:
        """Keep what is known of the event for the file's name."""
        self._facts = facts

    def finish(self, stop: Stop) -> None:
        """Ask for the end of the clip; returns at once."""
        self._facts = stop.facts
        self._stop = stop
        self.tap.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._wait_for(self.is_ready)
            # By its descriptor the folder stays the same one, whatever is mounted over it meanwhile.
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._record(Path(f"/proc/self/fd/{descriptor}"))
            finally:
                os.close(descriptor)
        except WRITE_ERRORS as error:
            self._end_reason = f"there is no clip ({_reason(error)})"
            if isinstance(error, OSError) and error.errno:
                self.failed(error)
        except Exception:
            log.exception("clip: of event %d is left for the next start to finish", self.event_id)
            self._end_reason = "an error of the program"
        finally:
            self._end_live()
            self.tap.close()
            self._wait_for(self.alert_is_safe)
            self.begun(False)

    def _record(self, folder: Path) -> None:
        first = self.tap.get(0)
        if first is None or not first.is_key:
            raise OSError("the camera has not delivered a key frame yet")
        size = {"width": first.width or self.name.width, "height": first.height or self.name.height}
        self.name = dataclasses.replace(self.name, **size)
        self._path = folder / (PART_PREFIX + OPEN_PREFIX + self.final_name(self.name))
        self._path.unlink(missing_ok=True)  # FFmpeg would write through a link, and wait for the reader of a pipe
        self._mp4 = Mp4Writer(self._path, **size, frame_rate_fps=self.frame_rate_fps)
        try:
            self._write_until_stopped(first)
        except WRITE_ERRORS as error:
            if not self._mp4.is_readable:
                with contextlib.suppress(*WRITE_ERRORS):
                    self._mp4.close()
                self._path.unlink(missing_ok=True)
                raise
            self._end_reason = f"the disk refuses ({_reason(error)})"
            text = "clip: cannot write %s (%s); the %.1f s so far are kept"
            log.warning(text, self._path.name, _reason(error), self._mp4.duration_s)
        self.tap.close()
        self._finish()

    def _write_until_stopped(self, first: AccessUnit) -> None:
        takes_more = self._write_available(first)
        if takes_more and not self._mp4.is_readable:  # the camera has just started
            takes_more = self._write_available(self.tap.get(_SECOND_FRAME_S))
        self._wait_for(self.alert_is_safe)
        while takes_more:
            self._sync_and_rename()
            unit = self.tap.get(0.1)
            if unit is None and (self._stop or self.tap.ended):
                return
            takes_more = self._write_available(unit)

    def _wait_for(self, event: threading.Event) -> None:
        """Wait for a few seconds at most, and not when the clip must end."""
        give_up_s = time.monotonic() + _MAX_WAIT_S
        while not event.wait(0.1) and self._stop is None and time.monotonic() < give_up_s:
            pass

    def _write_available(self, unit: AccessUnit | None) -> bool:
        """Write `unit` and all units after it that have arrived. False: the clip takes no more."""
        while unit is not None:
            if self._stop is not None and unit.arrival_s > self._stop.time_s:
                return False
            if self._mp4.duration_with_s(unit) > self.max_duration_s:
                self._end_reason = "the clip has its full length"
                return False
            self._mp4.write(unit)
            unit = self.tap.get(0)
        return True

    def _sync_and_rename(self) -> None:
        self._follow_facts()
        if self._mp4.is_readable:
            path = self._path.with_name(OPEN_PREFIX + self.final_name(self.name))
            if path != self._path:
                self._path = self._path.rename(path)
            self.begun(True)
            self._go_live()
        if self._mp4.duration_s - self._synced_s >= _SYNC_INTERVAL_S:
            fsync_path(self._path)
            fsync_path(self._path.parent)
            self._synced_s = self._mp4.duration_s

    def _go_live(self) -> None:
        """Once. Where there is no descriptor left, the clip goes on without."""
        begin, self.begin_live = self.begin_live, None
        if begin is None:
            return
        try:
            self._live = begin(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            log.warning("clip: %s is not uploaded while it is recorded (%s)", self._path.name, _reason(error))

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.end()

    def _finish(self) -> None:
        self._end_live()
        duration_s = self._mp4.duration_s
        try:
            try:
                self._mp4.close()
            except WRITE_ERRORS as error:  # a full disk: what was written is playable
                log.warning("clip: cannot close %s (%s)", self._path.name, _reason(error))
                duration_s = cut_to_whole_fragments(self._path, frame_rate_fps=self.frame_rate_fps)
            self._follow_facts()
            path = finish_file(self._path, self.name, duration_s, self.max_duration_s, self.final_name)
        except WRITE_ERRORS as error:
            log.warning("clip: %s cannot be finished (%s); it is tried again", self._path.name, _reason(error))
            self.left(self.folder / self._path.name)
            return
        self.begun(True)
        try:
            self.finished(_bring_back(path, self.folder))
        except OSError as error:
            text = "clip: %s is finished, but not in reach (%s): it is uploaded when %s/ is on its first disk again"
            log.warning(text, path.name, _reason(error), self.folder.name)

    def _follow_facts(self) -> None:
        if self._facts is not None:
            self.name = dataclasses.replace(self.name, **dataclasses.asdict(self._facts))


def _reason(error: Exception) -> str:
    """Without the path, which names the folder by its descriptor."""
    return getattr(error, "strerror", None) or str(error)


def _bring_back(path: Path, folder: Path) -> Path:
    """Copy a finished clip into `folder`, if another disk has been mounted there since. Raises OSError."""
    target = folder / path.name
    if path.parent.samefile(folder):
        return target
    part = target.with_name(PART_PREFIX + path.name)
    shutil.copyfile(path, part)
    fsync_path(part)
    part.rename(target)
    fsync_path(folder)
    path.unlink()
    log.warning("clip: %s was copied to the disk that has been mounted over %s/ meanwhile", path.name, folder.name)
    return target
