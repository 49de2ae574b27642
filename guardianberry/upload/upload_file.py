"""One file on its way to S3: whether it is fit for an upload, its key, its metadata, and its bytes in small blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
import uuid
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from guardianberry.filenames import BestName, VideoName
from guardianberry.mp4_boxes import read_boxes
from guardianberry.upload.queue import QueuedFile

_BLOCK_BYTES = 16 * 1024  # sent at once: 0.4 s on an uplink of 300 kbit/s
_HASH_BLOCK_BYTES = 1024 * 1024
_MAX_IMAGE_BYTES = 20_000_000
# What a clip may weigh: 20 Mbit/s and some more, for two minutes at most. A file of 5 GiB that is mostly a hole takes
# no room on the disk and would be sent for days.
_MAX_CLIP_BYTES_PER_S, _MAX_CLIP_S, _MAX_CLIP_OVERHEAD_BYTES = 2_500_000, 120, 25_000_000
CONTENT_TYPE = {".jpg": "image/jpeg", ".mp4": "video/mp4", ".part": "application/octet-stream"}
_KEY_NAMESPACE = uuid.UUID("4f0ed20b-7f0a-4a8e-9b6c-51d9ab1d5b8a")  # random; a change of it would change every key
_EVENT_NAMESPACE = uuid.UUID("b0c6e8a7-3d1f-4f53-8e39-6a0d5c7f2e11")  # random, as the next one
_CAMERA_NAMESPACE = uuid.UUID("2f9d41c8-70b5-4a6e-93f2-1e8b6c0a5d74")  # also in viewer/objects.py

ReadAt = Callable[[int, int], bytes]  # (size, offset) as os.pread takes them; may raise OSError


def slices(content: bytes) -> ReadAt:
    return lambda size, offset: content[offset : offset + size]


class UnfitError(Exception):
    """The file must not be uploaded. The text says why, for a person."""


class Body:
    """What boto3 reads of a source: one small block at a time. `before_block` is called first and may wait.

    Length and checksum are fixed at the start. If a file becomes shorter or cannot be read, the upload ends with an
    OSError, which is kept in `error`, because botocore reports it as an error of the network.
    """

    def __init__(
        self, read_at: ReadAt, size_bytes: int, *, crc32: int, before_block: Callable[[], None] = lambda: None
    ) -> None:
        self.error: OSError | None = None
        self.crc32 = crc32
        self._read_at = read_at
        self._size_bytes = size_bytes
        self._position = 0
        self._before_block = before_block

    @classmethod
    def of(cls, content: bytes, before_block: Callable[[], None] = lambda: None) -> Body:
        return cls(slices(content), len(content), crc32=zlib.crc32(content), before_block=before_block)

    def read(self, size: int = -1) -> bytes:
        left_bytes = self._size_bytes - self._position
        wanted_bytes = min(left_bytes, _BLOCK_BYTES if size < 0 else size, _BLOCK_BYTES)
        if wanted_bytes <= 0:
            return b""
        self._before_block()
        try:
            block = self._read_at(wanted_bytes, self._position)
            if not block:
                raise OSError("it became shorter during the upload")
        except OSError as error:
            self.error = error
            raise
        self._position += len(block)
        return block

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position


class Source:
    """The content of one event file, in memory or on the disk."""

    def __init__(self, queued: QueuedFile, size_bytes: int, read_at: ReadAt) -> None:
        self.queued, self.size_bytes, self._read_at = queued, size_bytes, read_at

    def key_and_body(self, serial: str, before_block: Callable[[], None] = lambda: None) -> tuple[str, Body]:
        """The object's key, and its content for boto3. Raises OSError.

        The key is a UUID made of the content, the event's start, the serial number and the media type. It is the same
        at every try, after a restart, and for the file and the copy of it in memory. Two events never share one: a
        looped film can give them the same picture, but never the same start. Nothing can be read off the key.
        """
        content, crc32, offset = hashlib.sha256(), 0, 0
        while block := self._read_at(min(_HASH_BLOCK_BYTES, self.size_bytes - offset), offset):  # it may grow for ever
            content.update(block)
            crc32 = zlib.crc32(block, crc32)
            offset += len(block)
        start = self.queued.name.recording_start_time
        if isinstance(self.queued.name, BestName):
            stem = f"best/{event_uuid(serial, start)}"  # one an event
        else:
            seed = f"{serial}/{self.queued.media_type.word}/{start}/{content.hexdigest()}"
            stem = str(uuid.uuid5(_KEY_NAMESPACE, seed))
        body = Body(self._read_at, self.size_bytes, crc32=crc32, before_block=before_block)
        return stem + self.queued.path.suffix, body

    def delete(self) -> bool:
        """S3 has the content, so it can go here. False where it was changed meanwhile and is kept. Raises OSError."""
        raise NotImplementedError


class OpenFile(Source):
    """A queued file, opened and found fit. Use it as a context manager."""

    def __init__(self, queued: QueuedFile) -> None:
        """Raises FileNotFoundError when the file is gone, UnfitError when it must not be uploaded."""
        self._descriptor = _open(queued.path)
        try:
            self._stat = os.fstat(self._descriptor)
            super().__init__(queued, self._stat.st_size, self._read)
            self._check()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError):
            self.queued.media_type.disk.call(os.close, self._descriptor)

    def _read(self, size: int, offset: int) -> bytes:
        return self.queued.media_type.disk.call(os.pread, self._descriptor, size, offset)

    def delete(self) -> bool:
        return self.queued.media_type.disk.call(self._delete)

    def _delete(self) -> bool:
        try:
            if _version(os.stat(self.queued.path, follow_symlinks=False)) != _version(self._stat):
                return False
            os.unlink(self.queued.path)
        except FileNotFoundError:  # renamed or removed by another program
            return False
        return True

    def _check(self) -> None:
        if not stat.S_ISREG(self._stat.st_mode):
            raise UnfitError("it is not an ordinary file")
        if self.size_bytes == 0:
            raise UnfitError("it is empty")
        name, limit_bytes, format_, is_whole = self.queued.name, _MAX_IMAGE_BYTES, "JPEG", _is_whole_jpeg
        if isinstance(name, VideoName):
            limit_bytes = _MAX_CLIP_OVERHEAD_BYTES + _MAX_CLIP_BYTES_PER_S * min(name.duration, _MAX_CLIP_S)
            format_, is_whole = "MP4", _is_playable_mp4
        if self.size_bytes > limit_bytes:
            raise UnfitError(f"{self.size_bytes / 1e6:.0f} MB are more than its name can stand for")
        if not is_whole(self._descriptor, self.size_bytes):  # an OSError is told by the sweep as "it cannot be read"
            raise UnfitError(f"it is not a complete {format_}")


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open(path: Path) -> int:
    """Follows no link, and does not wait for the other end of a named pipe."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else f"it cannot be opened: {error.strerror}"
        raise UnfitError(reason) from error


def _is_whole_jpeg(descriptor: int, size_bytes: int) -> bool:
    return os.pread(descriptor, 3, 0) == b"\xff\xd8\xff" and os.pread(descriptor, 2, size_bytes - 2) == b"\xff\xd9"


def _is_playable_mp4(descriptor: int, size_bytes: int) -> bool:
    """`ftyp` first, a whole `moov`, and media. Only a fragmented file may end in the middle of a box."""
    seen: set[bytes] = set()
    try:
        for box in read_boxes(descriptor, size_bytes):
            if not seen and box.name != b"ftyp":
                return False
            if box.end_bytes > size_bytes:
                return {b"moov", b"mdat", b"moof"} <= seen
            seen.add(box.name)
    except ValueError:
        return False
    return {b"moov", b"mdat"} <= seen


def event_uuid(serial: str, recording_start_time: int) -> uuid.UUID:
    """Names the event to those who see the bucket: the same in all its objects. Nothing can be read off it."""
    return uuid.uuid5(_EVENT_NAMESPACE, f"{serial}/{recording_start_time}")


def camera_uuid(serial: str) -> uuid.UUID:
    """Names the camera in the keys of its heartbeats. It stays the same when the camera gets another name."""
    return uuid.uuid5(_CAMERA_NAMESPACE, serial)


def local_time(unix_s: int) -> str:
    """ISO 8601 with the offset of this machine's time zone at that moment; "" beyond the year 9999."""
    try:
        return datetime.fromtimestamp(unix_s, UTC).astimezone().isoformat()
    except (OverflowError, ValueError, OSError):
        return ""


def metadata(queued: QueuedFile, common: dict[str, str]) -> dict[str, str]:
    """The object's metadata: `common`, the fields of the file's name, and what follows from them."""
    fields = {field: str(value) for field, value in dataclasses.asdict(queued.name).items()}
    if isinstance(queued.name, VideoName):
        fields["duration_s"] = fields["duration"]  # the name that the deployed backend reads
    start = queued.name.recording_start_time
    fields["event"] = str(event_uuid(common["rpi_serial_no"], start))
    if text := local_time(start):
        fields["local_time"] = text
    return {**common, **fields}


def header_value(text: str) -> str:
    """`text` as it may stand in an HTTP header and fits S3's 2 KB for all metadata: printable ASCII, 200 characters."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:200].strip()
