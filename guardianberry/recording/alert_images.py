"""Alert images: offered to the uploader from memory at once, then written into images/ by that folder's thread.

S3 and the disk work side by side, so that neither a slow disk nor a slow network delays an alert or loses it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from guardianberry.disk import write_atomically
from guardianberry.filenames import ImageName, with_event_id
from guardianberry.recording.clock import Clock
from guardianberry.recording.folder_thread import FolderThread
from guardianberry.recording.recovery import remove_parts
from guardianberry.recording.retention import Reserve

if TYPE_CHECKING:
    from guardianberry.upload.uploader import Uploader

log = logging.getLogger(__name__)

_MAX_UNSAVED_BYTES = 20_000_000  # as in the uploader, which keeps the same images: five hours of an alert a minute


@dataclass(eq=False)
class Alert:
    """An alert image in memory. `time_s` is the arrival of its frame on the monotonic clock."""

    name: ImageName
    jpeg: bytes
    time_s: float
    is_held: bool  # the clock is not set yet: the event id in `name` will change
    is_stored: bool = False  # in S3
    is_safe: threading.Event = field(default_factory=threading.Event)  # from a kill: in S3 or in images/


class AlertImages:
    """Keeps each image in memory until S3 or the disk has it: the newest 20 MB of them."""

    def __init__(self, path: Path, *, clock: Clock, uploader: Uploader, reserve: Reserve) -> None:
        self._clock, self._uploader, self._reserve = clock, uploader, reserve
        self._lock = threading.Lock()  # guards `_unsaved`
        self._unsaved: list[Alert] = []
        self.folder = FolderThread(
            path,
            (self._save, self._release_held, reserve.fill),
            on_disk=lambda: remove_parts(path),
            consequence="alert images are uploaded from memory, and kept there for S3,",
        )

    def add(self, alert: Alert) -> None:
        """Upload and save the image. For the loop: touches no disk."""
        with self._lock:
            self._unsaved.append(alert)
            while sum(len(unsaved.jpeg) for unsaved in self._unsaved) > _MAX_UNSAVED_BYTES:
                lost = self._unsaved.pop(0)
                if lost.is_held:  # else the uploader has it, and warns where it drops it
                    log.warning("alert image %s is LOST: the disk takes no images", lost.name.encode())
        if not alert.is_held:
            self._offer(alert)
        self.folder.wake()

    def close(self, timeout_s: float) -> None:
        """Save what is not saved yet, for at most `timeout_s`."""
        self.folder.close(timeout_s)
        for alert in self._unsaved:
            log.warning("alert image %s is not on the disk, and LOST if S3 does not get it now", alert.name.encode())

    def _offer(self, alert: Alert) -> None:
        self._uploader.offer_alert(
            alert.name.encode(), alert.jpeg, frame_arrival_s=alert.time_s, stored=lambda: self._set_stored(alert)
        )

    def _set_stored(self, alert: Alert) -> None:
        alert.is_stored = True
        self._set_safe(alert)

    def _set_safe(self, alert: Alert) -> None:
        with self._lock:
            if alert in self._unsaved:
                self._unsaved.remove(alert)
        alert.is_safe.set()

    # In the folder's thread

    def _save(self) -> None:
        """Raises OSError where the disk takes an image not; the images then stay in memory.

        One whose name is taken does not hold up the others.
        """
        taken: FileExistsError | None = None
        for alert in list(self._unsaved):
            try:
                self._save_one(alert)
            except FileExistsError as error:
                taken = error
        if taken is not None:
            raise taken

    def _save_one(self, alert: Alert) -> None:
        file_name = self._clock.hold(alert.name, alert.time_s) if alert.is_held else alert.name.encode()
        path = self.folder.path / file_name
        if os.path.lexists(path) and not _holds(path, alert.jpeg):
            raise FileExistsError(errno.EEXIST, f"{file_name} is another event's image")
        try:
            write_atomically(path, alert.jpeg)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._reserve.give_up():
                raise
            write_atomically(path, alert.jpeg)
        self._set_safe(alert)
        if not alert.is_held and not alert.is_stored:
            self._uploader.alert_saved(file_name)  # which deletes the file once S3 has the image
        if alert.is_stored:  # before it was saved; the uploader knows nothing of the file
            path.unlink(missing_ok=True)

    def _release_held(self) -> None:
        """Once the clock is set, upload the images that were held."""
        if not self._clock.is_set():
            return
        for alert in [alert for alert in list(self._unsaved) if alert.is_held]:
            alert.name = with_event_id(alert.name, self._clock.event_id_of_held(round(alert.time_s * 1000)))
            alert.is_held = False
            self._offer(alert)
        if self._clock.release_held(self.folder.path):
            self._uploader.sweep_soon()


def _holds(path: Path, content: bytes) -> bool:
    """Reads no pipe, follows no link, and takes no more memory than `content` does."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == len(content) and path.read_bytes() == content
