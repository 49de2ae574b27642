"""The queue: `images/` and `videos/` on the disk, in the order of upload, and what is known of files that failed.

Nothing here deletes, renames or follows a link. A file whose name is not an event's is left where it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from guardianberry.disk import DiskThread
from guardianberry.filenames import BestName, EventName, VideoName, parse
from guardianberry.logs import FirstOnes, OncePerCause

log = logging.getLogger(__name__)

MAX_PAUSE_S = 3600.0
_MAX_IMAGE_PAUSE_S = 300.0


@dataclass(frozen=True)
class MediaType:
    """Images, videos or best pictures: their folder and their bucket."""

    word: str
    folder: Path
    bucket: str
    name_type: type[EventName]
    # For whatever touches the folder: the sweep must go on where one of the two disks hangs.
    disk: DiskThread = field(default_factory=DiskThread)


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
    """What is queued. Best pictures do not count."""

    images: int
    videos: int
    oldest_start: int | None = None  # `recording_start_time` of the oldest file


def list_queued(media_types: Sequence[MediaType]) -> tuple[list[QueuedFile], list[str]]:
    """The event files of these types in their folder, oldest event first; names that are no event's. Raises OSError.

    Names that begin with a dot belong to files that are being written; they are in neither list.
    """
    by_name = {each.name_type: each for each in media_types}
    queued, odd = [], []
    for file_name in os.listdir(media_types[0].folder):
        if file_name.startswith("."):
            continue
        if (name := parse(file_name)) and (media_type := by_name.get(type(name))):
            queued.append(QueuedFile(media_type, file_name, name))
        else:
            odd.append(file_name)
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
        # Best pictures of events lie beside the videos and go into their bucket, because no alert hangs on them.
        bests = replace(videos, word="best picture", name_type=BestName)
        self._media_types = (images, bests, videos)  # in the order of upload
        self._folders = (self._media_types[:1], self._media_types[1:])
        self._clock = clock
        self._once, self._odd_files = OncePerCause(), FirstOnes(log)
        self._odd: dict[Path, set[str]] = {}
        self.unreadable: set[Path] = set()  # folders that could not be read the last time
        self._recovered = threading.Event()
        self._lock = threading.Lock()  # guards what follows
        self._successes = 0
        self._failures: dict[Path, _Failures] = {}
        self._paused_until_s: dict[Path, float] = {}

    def pending(self) -> Pending:
        starts: dict[str, list[int]] = {"image": [], "best picture": [], "video": []}
        for media_types in self._folders:
            with contextlib.suppress(OSError):
                for queued in media_types[0].disk.call(list_queued, media_types)[0]:
                    starts[queued.media_type.word].append(queued.name.recording_start_time)
        images, videos = starts["image"], starts["video"]
        return Pending(len(images), len(videos), min(images + videos, default=None))

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
                    order.sort(key=self._rank)
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
            word, file_name = queued.media_type.word, ascii(queued.file_name)
            self._odd_files.warning("%s %s is left where it is: %s", word, file_name, reason)

    def _in_order(self) -> list[QueuedFile]:
        there = [queued for media_types in self._folders for queued in self._read(media_types)]
        now_s, paths = self._clock(), {queued.path for queued in there}
        with self._lock:
            self._failures = {path: count for path, count in self._failures.items() if path in paths}
            self._paused_until_s = {
                path: at for path, at in self._paused_until_s.items() if at > now_s and path in paths
            }
            newest = [queued for queued in there if queued.media_type is self._media_types[0]][-1:]
            order = newest + sorted((queued for queued in there if queued not in newest), key=self._rank)
            return [queued for queued in order if queued.path not in self._paused_until_s]

    def _rank(self, queued: QueuedFile) -> tuple[int, int, int, int, str]:
        """The lowest goes first."""
        failures = self._failures.get(queued.path, _Failures())
        since_success = failures.since_success if failures.successes == self._successes else 0
        place = self._media_types.index(queued.media_type)
        return place, failures.before, since_success, queued.name.recording_start_time, queued.file_name

    def _read(self, media_types: Sequence[MediaType]) -> list[QueuedFile]:
        folder, words = media_types[0].folder, f"{media_types[-1].word}s"
        try:
            queued, odd = media_types[0].disk.call(list_queued, media_types)
        except OSError as error:
            if folder not in self.unreadable:
                log.warning("the folder of the %s cannot be read: %s; it is tried again", words, error.strerror)
            self.unreadable.add(folder)
            return []
        self.unreadable.discard(folder)
        new, self._odd[folder] = sorted(set(odd) - self._odd.get(folder, set())), set(odd)
        if new:
            examples = ", ".join(ascii(name) for name in new[:3]) + (", ..." if len(new) > 3 else "")
            text = "left in the folder of the %s, because their names are not an event's: %d files, %s"
            log.warning(text, words, len(new), examples)
        return queued
