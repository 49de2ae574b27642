"""The live lane: uploads a clip while it is recorded, so that a thief who takes the camera comes too late.

The file is append-only until it is closed. Its bytes go up as parts, `live/<event>/<nnnn>.part`, each one the next byte
range. One part is under way at a time and the next one takes what is new, so that a slow uplink makes parts larger and
never a queue. Where parts fall behind all the same, pictures go up between them, `live/<event>/<nnnn>.jpg`.

A part that fails is tried again as it is, under the same key, so that one whose reply was lost is there once. Nothing
is tried after the clip is closed: the whole clip follows from the queue. The lane pauses while an alert is uploaded.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from guardianberry.logs import OncePerCause
from guardianberry.upload.errors import Interrupted, UploadError

log = logging.getLogger(__name__)

PART_EVERY_S = 1.5  # some 15 requests an event; what S3 holds ends this and the time of an upload before now
LATE_S = 4.0  # a part that is sent now, at the rate of the last one, would end that late: a picture goes first
PICTURE_EVERY_S = 2.5  # from when it is taken: with the part that it waits for and its own upload, below 6 s
PART_LIMIT_S = 1.5  # of the uplink, for one part: the next picture must not wait longer
_VIDEO, _PICTURE = ".part", ".jpg"
_MIN_PART_BYTES = 16 * 1024
_FIRST_PART_BYTES = 64 * 1024  # of each event: it shows the rate, and where that has fallen it is soon over
_MAX_PART_BYTES = 1_000_000  # in memory
_PAUSE_S = 0.1  # while an alert is uploaded


class _Part(NamedTuple):
    """One object of the live lane, and the only place that knows how bytes become one."""

    number: int
    suffix: str
    content: bytes


@dataclass
class LiveClip:
    """A clip that is being recorded. The recording thread calls `end` before it closes the file.

    `picture` returns a JPEG of the newest view of a person, None where there is no new one.
    """

    event_id: int
    descriptor: int  # of its own, and closed by the lane
    picture: Callable[[], bytes | None]
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while bytes are read

    def end(self) -> None:
        """The file is about to be closed, which rewrites its head: no byte of it is read any more."""
        with self.lock:
            self.ended = True

    def read(self, offset: int, size_bytes: int) -> bytes:
        """At most `size_bytes` of what is new; nothing once the clip has ended. Raises OSError."""
        with self.lock:
            return b"" if self.ended else os.pread(self.descriptor, size_bytes, offset)

    def new_bytes(self, offset: int) -> int:
        with self.lock:
            return 0 if self.ended else os.fstat(self.descriptor).st_size - offset


class LiveLane:
    """Call `begin` with each clip once a frame of it is readable. A newer clip takes the lane. For any thread.

    `put` uploads one object, (event id, number, suffix, content), in the lane's thread. One try. Raises UploadError,
    Interrupted.
    """

    def __init__(self, put: Callable[[int, int, str, bytes], None], *, may_upload: Callable[[], bool]) -> None:
        self._put, self._may_upload = put, may_upload
        self._rate_bytes_per_s = _FIRST_PART_BYTES / PART_LIMIT_S  # until an upload has shown another one
        self._failures = OncePerCause()
        self._stopped = threading.Event()
        self._clips: queue.SimpleQueue[LiveClip | None] = queue.SimpleQueue()  # None: no more
        self.thread = threading.Thread(target=self._run, name="live", daemon=True)

    def begin(self, event_id: int, descriptor: int, picture: Callable[[], bytes | None]) -> LiveClip:
        """Upload this clip from now on, until it ends. The lane closes the descriptor."""
        clip = LiveClip(event_id, descriptor, picture)
        self._clips.put(clip)
        return clip

    def stop(self) -> None:
        """No further part."""
        self._stopped.set()
        self._clips.put(None)

    def _run(self) -> None:
        while clip := self._clips.get():
            try:
                self._upload(clip)
            except Interrupted:
                return
            except Exception:
                log.exception("live: event %d is not uploaded further while it is recorded", clip.event_id)
            finally:
                os.close(clip.descriptor)

    def _upload(self, clip: LiveClip) -> None:
        offset, numbers = 0, {_VIDEO: 0, _PICTURE: 0}
        part: _Part | None = None
        picture_s = -float("inf")
        while not clip.ended and self._clips.empty() and not self._stopped.is_set():
            if not self._may_upload():
                self._stopped.wait(_PAUSE_S)
                continue
            begun_s, is_stored = time.monotonic(), False
            if part is None and (part := self._picture_if_late(clip, numbers[_PICTURE], offset, begun_s - picture_s)):
                picture_s = begun_s
            part = part or self._next(clip, numbers[_VIDEO], offset)
            if part is not None and (is_stored := self._send(clip, part)):
                numbers[part.suffix] += 1
                offset += len(part.content) if part.suffix == _VIDEO else 0
                part = None
            is_behind = is_stored and clip.new_bytes(offset) > self._rate_bytes_per_s * PART_EVERY_S
            is_first = is_stored and numbers[_VIDEO] == 1  # a small one: the pre-roll follows at once
            left_s = begun_s + PART_EVERY_S - time.monotonic()
            self._stopped.wait(0.0 if is_behind or is_first else max(_PAUSE_S, left_s))

    def _picture_if_late(self, clip: LiveClip, number: int, offset: int, since_picture_s: float) -> _Part | None:
        """A picture, where the video would come too late."""
        late_s = clip.new_bytes(offset) / self._rate_bytes_per_s
        if late_s <= LATE_S or since_picture_s < PICTURE_EVERY_S or (jpeg := clip.picture()) is None:
            return None
        return _Part(number, _PICTURE, jpeg)

    def _next(self, clip: LiveClip, number: int, offset: int) -> _Part | None:
        """All that is new, but no more than the uplink takes within a moment."""
        limit_bytes = min(_MAX_PART_BYTES, max(_MIN_PART_BYTES, int(self._rate_bytes_per_s * PART_LIMIT_S)))
        content = clip.read(offset, limit_bytes if number else min(limit_bytes, _FIRST_PART_BYTES))
        return _Part(number, _VIDEO, content) if content else None

    def _send(self, clip: LiveClip, part: _Part) -> bool:
        """Whether S3 has it."""
        begun_s = time.monotonic()
        try:
            self._put(clip.event_id, *part)
        except UploadError as error:
            if self._failures.is_new(str(error)):
                log.warning("live: a part of event %d is not uploaded (%s); the clip is, later", clip.event_id, error)
            return False
        took_s = max(0.01, time.monotonic() - begun_s)
        if len(part.content) >= _MIN_PART_BYTES:
            self._rate_bytes_per_s = len(part.content) / took_s
        size_kb = len(part.content) // 1000
        log.debug("live: %04d%s of event %d, %d kB in %.2f s", *part[:2], clip.event_id, size_kb, took_s)
        return True
