"""The files on the disk as the sweep sees them: their order, and what is known of those that failed or are unfit."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from guardianberry.upload.lanes import Pending
from guardianberry.upload.queue import MediaType, QueuedFile, list_queued

log = logging.getLogger(__name__)

SET_ASIDE_S = 3600.0


class Backlog:
    """Both folders as one queue. All it remembers is about this run; the queue itself is the disk.

    `queue`, `jump` and `unreadable` are for the sweep's thread alone, the rest for any.
    """

    def __init__(self, images: MediaType, videos: MediaType, clock: Callable[[], float]) -> None:
        self._images, self._videos, self._clock = images, videos, clock
        self._odd: set[tuple[str, str]] = set()
        self._jumps = False
        self.unreadable: set[str] = set()  # kinds whose folder could not be read the last time
        self._lock = threading.Lock()  # guards what follows
        self._set_aside_until_s: dict[Path, float] = {}
        self._reported: set[tuple[Path, str]] = set()

    def pending(self) -> Pending:
        return Pending(_count(self._images), _count(self._videos))

    def queue(self, closed: set[MediaType], wake: threading.Event) -> Iterator[QueuedFile]:
        """Each waiting file once, in order, but none of a kind that is `closed` meanwhile.

        When `wake` is set in between, the folders are looked into again, so that a new image is the next one. It is
        set again at the end, for the sake of a new file with the name of one that was offered before.
        """
        offered: set[Path] = set()
        new, woken = True, False
        while new:
            wake.clear()
            new, order = False, self._in_order()
            kind = order[0].kind if order else None
            while order and not new:
                waiting = order.pop(self._index_of_next(order, kind))
                if waiting.path in offered or waiting.kind in closed:
                    continue
                kind = waiting.kind
                offered.add(waiting.path)
                yield waiting
                new = wake.is_set()
                woken = woken or new
        if woken:
            wake.set()

    def _index_of_next(self, order: list[QueuedFile], kind: MediaType | None) -> int:
        jumps, self._jumps = self._jumps, False
        same_kind = [index for index, waiting in enumerate(order) if waiting.kind is kind] if jumps else []
        return random.choice(same_kind) if same_kind else 0

    def jump(self) -> None:
        """Let `queue` go on with any file of the kind it is at, to see whether it fares better than those before it.

        Any and not the next, because those that never go through may lie together at the head of the queue.
        """
        self._jumps = True

    def set_aside(self, waiting: QueuedFile, reason: str) -> None:
        """Leave it alone for an hour."""
        with self._lock:
            self._set_aside_until_s[waiting.path] = self._clock() + SET_ASIDE_S
        self.report(waiting, reason)

    def report(self, waiting: QueuedFile, reason: str) -> None:
        """Say once that the file stays on the disk, and why."""
        with self._lock:
            known = (waiting.path, reason) in self._reported
            self._reported.add((waiting.path, reason))
        if not known:
            log.warning("%s %s is left where it is: %s", waiting.kind.word, ascii(waiting.file_name), reason)

    def _in_order(self) -> list[QueuedFile]:
        images, videos = self._look_into(self._images), self._look_into(self._videos)
        now_s = self._clock()
        with self._lock:
            self._set_aside_until_s = {path: at for path, at in self._set_aside_until_s.items() if at > now_s}
            order = images[-1:] + images[:-1] + videos
            return [waiting for waiting in order if waiting.path not in self._set_aside_until_s]

    def _look_into(self, kind: MediaType) -> list[QueuedFile]:
        try:
            waiting, odd = list_queued(kind)
        except OSError as error:
            if kind.word not in self.unreadable:
                log.warning("the folder of the %ss cannot be read: %s; it is tried again", kind.word, error.strerror)
            self.unreadable.add(kind.word)
            return []
        self.unreadable.discard(kind.word)
        self._report_odd(kind, sorted({name for name in odd if (kind.word, name) not in self._odd}))
        return waiting

    def _report_odd(self, kind: MediaType, names: list[str]) -> None:
        """One line, however many there are."""
        if not names:
            return
        self._odd.update((kind.word, name) for name in names)
        examples = ", ".join(ascii(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
        text = "left alone in the folder of the %ss, because a %s is never called that: %d files, %s"
        log.warning(text, kind.word, kind.word, len(names), examples)


def _count(kind: MediaType) -> int:
    try:
        return len(list_queued(kind)[0])
    except OSError:
        return 0
