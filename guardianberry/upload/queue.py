"""The files that wait for their upload: which ones are fit for it, in which order, and under which key.

`images/` and `videos/` are the queue. Nothing here deletes, renames or follows a link, and a name or a content that
is not an event's is left where it is.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import stat
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guardianberry.filenames import ImageName, VideoName, parse
from guardianberry.mp4_boxes import read_boxes

_BLOCK_BYTES = 16 * 1024  # what is sent in one go: 0.4 s of a 300 kbit/s uplink
_HASH_BLOCK_BYTES = 1024 * 1024
_MAX_OBJECT_BYTES = 5 * 1024**3  # S3 takes no more in one PutObject
_KEY_NAMESPACE = uuid.UUID("4f0ed20b-7f0a-4a8e-9b6c-51d9ab1d5b8a")  # random; a change of it would change every key

# Device and inode: the same for the same file whatever its name, different for any other file that exists now.
Identity = tuple[int, int]


class UnfitError(Exception):
    """The file is not to be uploaded, for a reason that a person can read."""


@dataclass(frozen=True)
class MediaType:
    """Images or videos: where they wait and where they go."""

    word: str
    folder: Path
    bucket: str
    name_type: type[ImageName] | type[VideoName]
    suffix: str
    content_type: str


def image_media_type(folder: Path, bucket: str) -> MediaType:
    return MediaType("image", folder, bucket, ImageName, ".jpg", "image/jpeg")


def video_media_type(folder: Path, bucket: str) -> MediaType:
    return MediaType("video", folder, bucket, VideoName, ".mp4", "video/mp4")


@dataclass(frozen=True)
class QueuedFile:
    """A file whose name is an event's."""

    kind: MediaType
    file_name: str
    name: ImageName | VideoName

    @property
    def path(self) -> Path:
        return self.kind.folder / self.file_name


def list_queued(kind: MediaType) -> tuple[list[QueuedFile], list[str]]:
    """The event files of the folder, oldest event first, and the names that are no event's. Raises OSError.

    Names that begin with a dot belong to somebody who is still busy with them and are in neither list.
    """
    waiting, odd = [], []
    for file_name in os.listdir(kind.folder):
        if file_name.startswith("."):
            continue
        name = parse(file_name)
        if isinstance(name, kind.name_type):
            waiting.append(QueuedFile(kind, file_name, name))
        else:
            odd.append(file_name)
    waiting.sort(key=lambda file: (file.name.recording_start_time, file.file_name))
    return waiting, odd


class Body:
    """What boto3 reads of an open file: never more than a block at a time, and `before_block` may hold each one up.

    The length is fixed when it is made. A file that turns out shorter, or cannot be read, ends the upload with an
    OSError that is kept in `error`, because botocore wraps it as if the network had failed.
    """

    def __init__(self, descriptor: int, size_bytes: int, before_block: Callable[[], None]) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._position = 0
        self._before_block = before_block

    def read(self, size: int = -1) -> bytes:
        left_bytes = self._size_bytes - self._position
        wanted_bytes = min(left_bytes, _BLOCK_BYTES if size < 0 else size, _BLOCK_BYTES)
        if wanted_bytes <= 0:
            return b""
        self._before_block()
        try:
            block = os.pread(self._descriptor, wanted_bytes, self._position)
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


class OpenFile:
    """A waiting file, opened and found fit. Use it as a context manager."""

    def __init__(self, waiting: QueuedFile) -> None:
        """Raises FileNotFoundError when it is gone meanwhile, UnfitError when it is not to be uploaded."""
        self.waiting = waiting
        self._descriptor = _open(waiting.path)
        try:
            self._stat = os.fstat(self._descriptor)
            self.size_bytes = self._stat.st_size
            self._check()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def identity(self) -> Identity:
        return self._stat.st_dev, self._stat.st_ino

    def body(self, before_block: Callable[[], None]) -> Body:
        return Body(self._descriptor, self.size_bytes, before_block)

    def key_and_crc32(self, serial: str) -> tuple[str, str]:
        """The object's key, and the content's CRC-32 as S3 wants it.

        The key is a UUID made of the content, the time of its last change, the serial number and the kind: the same at
        every try, after a restart and under another name, different for every event (a looped film can give two events
        the same picture, but not at the same nanosecond), and nothing can be read off it.
        """
        content, crc32, offset = hashlib.sha256(), 0, 0
        while block := os.pread(self._descriptor, _HASH_BLOCK_BYTES, offset):
            content.update(block)
            crc32 = zlib.crc32(block, crc32)
            offset += len(block)
        kind = self.waiting.kind
        seed = f"{serial}/{kind.word}/{self._stat.st_mtime_ns}/{content.hexdigest()}"
        return f"{uuid.uuid5(_KEY_NAMESPACE, seed)}{kind.suffix}", base64.b64encode(crc32.to_bytes(4)).decode()

    def delete(self) -> bool:
        """Remove the file from the disk, unless it was changed or replaced since it was opened: then False."""
        try:
            now = os.stat(self.waiting.path, follow_symlinks=False)
            if _version(now) != _version(self._stat):
                return False
            os.unlink(self.waiting.path)
        except FileNotFoundError:  # renamed or removed by somebody else
            return False
        return True

    def _check(self) -> None:
        if not stat.S_ISREG(self._stat.st_mode):
            raise UnfitError("it is not an ordinary file")
        if self.size_bytes == 0:
            raise UnfitError("it is empty")
        if self.size_bytes > _MAX_OBJECT_BYTES:
            raise UnfitError("it is larger than the 5 GiB that S3 takes at once")
        is_image = self.waiting.kind.name_type is ImageName
        try:
            if is_image and not _is_whole_jpeg(self._descriptor, self.size_bytes):
                raise UnfitError("it is not a complete JPEG")
            if not is_image and not _is_playable_mp4(self._descriptor, self.size_bytes):
                raise UnfitError("it is not a complete MP4")
        except OSError as error:
            raise UnfitError(f"it cannot be read: {error.strerror}") from error


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open(path: Path) -> int:
    """No link is followed, and a named pipe holds nobody up."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.is_symlink():
            raise UnfitError("it is a link") from error
        raise UnfitError(f"it cannot be opened: {error.strerror}") from error


def _is_whole_jpeg(descriptor: int, size_bytes: int) -> bool:
    return os.pread(descriptor, 3, 0) == b"\xff\xd8\xff" and os.pread(descriptor, 2, size_bytes - 2) == b"\xff\xd9"


def _is_playable_mp4(descriptor: int, size_bytes: int) -> bool:
    """`ftyp` first, a whole `moov`, and media. Only a fragmented file may end in the middle of a box."""
    names: list[bytes] = []
    try:
        for box in read_boxes(descriptor, size_bytes):
            if box.end_bytes > size_bytes:
                return names[:1] == [b"ftyp"] and {b"moov", b"mdat", b"moof"} <= set(names)
            names.append(box.name)
    except ValueError:
        return False
    return names[:1] == [b"ftyp"] and {b"moov", b"mdat"} <= set(names)


def metadata(waiting: QueuedFile, common: dict[str, str]) -> dict[str, str]:
    """The object's metadata: `common`, and what the file's name says."""
    fields = {field: str(value) for field, value in dataclasses.asdict(waiting.name).items()}
    if isinstance(waiting.name, VideoName):
        fields["duration_s"] = fields["duration"]  # the name that the deployed backend reads
    return {**common, **fields}


def header_value(text: str) -> str:
    """`text` as it may stand in an HTTP header and fits S3's 2 KB for all metadata: printable ASCII, 200 characters."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:200].strip()
