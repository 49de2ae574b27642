"""The queue: `images/` and `videos/` on the disk, in the order of upload, and what is known of files that failed.

Nothing here deletes, renames or follows a link. A file whose name is not an event's is left where it is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from guardianberry.disk import DiskThread
from guardianberry.filenames import BestName, EventName, ImageName, VideoName, parse
from guardianberry.logs import OncePerCause

log = logging.getLogger(__name__)

MAX_PAUSE_S = 3600.0
_MAX_IMAGE_PAUSE_S = 300.0


@dataclass(frozen=True)
class MediaType:
    """Images or videos: their folder and their bucket."""

    word: str
    folder: Path
    bucket: str
    name_type: type[ImageName] | type[VideoName] | type[BestName]
    suffix: str
    content_type: str
    disk: DiskThread  # for whatever touches the folder: the sweep must go on where one of the two disks hangs


def image_media_type(folder: Path, bucket: str) -> MediaType:
    return MediaType("image", folder, bucket, ImageName, ".jpg", "image/jpeg", DiskThread())


def video_media_type(folder: Path, bucket: str) -> MediaType:
    return MediaType("video", folder, bucket, VideoName, ".mp4", "video/mp4", DiskThread())


def best_media_type(videos: MediaType) -> MediaType:
    """Best pictures of events. They lie beside the videos and go into their bucket, because no alert hangs on them."""
    return replace(videos, word="best picture", name_type=BestName, suffix=".jpg", content_type="image/jpeg")


@dataclass(frozen=True)
class QueuedFile:
    """A file whose name is an event's."""

    media_type: MediaType
    file_name: str
    name: EventName

    @property
    def path(self) -> Path:
        return self.media_type.folder / self.file_name


class Pending(NamedTuple):
    """The number of queued files."""

    images: int
    videos: int


def list_queued(media_type: MediaType) -> tuple[list[QueuedFile], list[str]]:
    """The event files of the folder, oldest event first, and the names that are no event's. Raises OSError.

    Names that begin with a dot belong to files that are being written; they are in neither list.
    """
    queued, odd = [], []
    for file_name in os.listdir(media_type.folder):
        if file_name.startswith("."):
            continue
        name = parse(file_name)
        if isinstance(name, media_type.name_type):
            queued.append(QueuedFile(media_type, file_name, name))
        elif media_type.name_type is ImageName or (
            media_type.name_type is VideoName and not isinstance(name, BestName)
        ):
            odd.append(file_name)  # told once for each folder, and a best picture among the videos is not odd
    queued.sort(key=lambda file: (file.name.recording_start_time, file.file_name))
    return queued, odd


@dataclass
class _Failures:
    """Of one file. While nothing at all goes through, failures say nothing about the file, so they are told apart."""

    since_success: int = 0  # since the last success of any file,
    successes: int = 0  # of which there had been so many then
    before: int = 0  # successes of others that came between two failures of this file
    lasting: int = 0  # failures that do not pass by themselves


class Queue:
    """Both folders as one queue. What it remembers of failures lasts until the process ends; the files are on the disk.

    `files` and `unreadable` are for the sweep's thread alone, the rest for any thread.
    """

    def __init__(self, images: MediaType, videos: MediaType, clock: Callable[[], float]) -> None:
        self._images, self._videos, self._clock = images, videos, clock
        self._bests = best_media_type(videos)
        self._once = OncePerCause()
        self._odd: dict[str, set[str]] = {"image": set(), "video": set(), "best picture": set()}
        self.unreadable: set[str] = set()  # media types whose folder could not be read the last time
        self._recovered = threading.Event()
        self._lock = threading.Lock()  # guards what follows
        self._successes = 0
        self._failures: dict[Path, _Failures] = {}
        self._paused_until_s: dict[Path, float] = {}

    def pending(self) -> Pending:
        return Pending(len(_list(self._images)), len(_list(self._videos)))

    def oldest_start(self) -> int | None:
        """`recording_start_time` of the oldest queued file."""
        firsts = [queued[0] for queued in (_list(self._images), _list(self._videos)) if queued]
        return min((queued.name.recording_start_time for queued in firsts), default=None)

    def files(self, closed: set[MediaType], wake: threading.Event) -> Iterator[QueuedFile]:
        """Each queued file once: the newest image, other images, best pictures, videos; none of a `closed` media type.

        Files that failed less often go first, then older ones. When `wake` is set in between, the folders are read
        again, so that a new image is the next one. Then, and when S3 has recovered, it is set again at the end: a new
        file may have the name of one that was offered before, and pauses of files have ended.
        """
        offered: set[Path] = set()
        new, woken = True, False
        while new:
            wake.clear()
            new = False
            order = self._in_order()
            while order and not new:
                queued = order.pop(0)
                if queued.path in offered or queued.media_type in closed:
                    continue
                offered.add(queued.path)
                yield queued
                new = wake.is_set()
                if self._recovered.is_set():  # what failed meanwhile goes in its usual order again
                    self._recovered.clear()
                    media_types = (self._images, self._bests, self._videos)
                    order.sort(key=lambda file: (media_types.index(file.media_type), *self._rank(file)))
                    woken = True
                woken = woken or new
        if woken:
            wake.set()

    def failed(self, queued: QueuedFile, *, passes: bool) -> None:
        """Let the other files of its media type go first the next time, so that a few bad ones do not block them.

        If the failure does not pass by itself, the file is not tried for 1, 4, 16 s and so on: an hour at most, an
        image five minutes.
        """
        with self._lock:
            failures = self._failures.setdefault(queued.path, _Failures(successes=self._successes))
            if failures.successes < self._successes:
                failures.successes, failures.since_success = self._successes, 0
                failures.before += 1
            failures.since_success += 1
            if not passes:
                longest_s = MAX_PAUSE_S if isinstance(queued.name, VideoName) else _MAX_IMAGE_PAUSE_S
                self._paused_until_s[queued.path] = self._clock() + min(longest_s, 4.0 ** min(failures.lasting, 10))
                failures.lasting += 1

    def set_aside(self, queued: QueuedFile, reason: str) -> None:
        """Do not try it again for an hour."""
        with self._lock:
            self._paused_until_s[queued.path] = self._clock() + MAX_PAUSE_S
        self.report(queued, reason)

    def succeeded(self, queued: QueuedFile, *, recovered: bool) -> None:
        """`recovered`: nothing had gone through before. Then S3 was at fault and not the files: none waits longer."""
        with self._lock:
            self._successes += 1
            self._failures.pop(queued.path, None)
            if recovered:
                self._paused_until_s.clear()
                self._recovered.set()

    @property
    def has_failures(self) -> bool:
        """Whether a queued file has failed at its last try."""
        with self._lock:
            return bool(self._failures)

    def next_try_in_s(self) -> float:
        """Until a file may be tried again whose pause ends next; an hour at most."""
        with self._lock:
            return max(0.0, min([*self._paused_until_s.values(), self._clock() + MAX_PAUSE_S]) - self._clock())

    def report(self, queued: QueuedFile, reason: str) -> None:
        """Log once that the file stays on the disk, and why."""
        if self._once.is_new((queued.path, reason)):
            log.warning("%s %s is left where it is: %s", queued.media_type.word, ascii(queued.file_name), reason)

    def _in_order(self) -> list[QueuedFile]:
        images, bests, videos = (self._read(each) for each in (self._images, self._bests, self._videos))
        now_s = self._clock()
        with self._lock:
            there = {queued.path for queued in images + bests + videos}
            self._failures = {path: count for path, count in self._failures.items() if path in there}
            self._paused_until_s = {
                path: at for path, at in self._paused_until_s.items() if at > now_s and path in there
            }
            newest, images = images[-1:], images[:-1]
            for files in (images, bests, videos):
                files.sort(key=self._rank)
            return [queued for queued in newest + images + bests + videos if queued.path not in self._paused_until_s]

    def _rank(self, queued: QueuedFile) -> tuple[int, int, int, str]:
        """Among files of its media type; the lowest goes first."""
        failures = self._failures.get(queued.path, _Failures())
        since_success = failures.since_success if failures.successes == self._successes else 0
        return failures.before, since_success, queued.name.recording_start_time, queued.file_name

    def _read(self, media_type: MediaType) -> list[QueuedFile]:
        word = media_type.word
        try:
            queued, odd = media_type.disk.call(list_queued, media_type)
        except OSError as error:
            if word not in self.unreadable:
                log.warning("the folder of the %ss cannot be read: %s; it is tried again", word, error.strerror)
            self.unreadable.add(word)
            return []
        self.unreadable.discard(word)
        new, self._odd[word] = sorted(set(odd) - self._odd[word]), set(odd)
        if new:
            examples = ", ".join(ascii(name) for name in new[:3]) + (", ..." if len(new) > 3 else "")
            text = "left in the folder of the %ss, because their names are not an event's: %d files, %s"
            log.warning(text, word, len(new), examples)
        return queued


def _list(media_type: MediaType) -> list[QueuedFile]:
    try:
        return media_type.disk.call(list_queued, media_type)[0]
    except OSError:
        return []
