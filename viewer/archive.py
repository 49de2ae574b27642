"""The local folder: what is known of each object, and the files, whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viewer.objects import Facts, Name, Role, content_problem

_FOLDERS = ("images", "clips", "best", "parts", "joined")
_INDEX = "index.json"
_VERSION = 1
_TEMPORARY = ".incoming-"
_LEFTOVER_S = 24 * 3600
_HEAD_BYTES = 256 * 1024  # a JPEG's size stands behind its EXIF block of at most 64 KiB
_LEAST_FREE_BYTES = 1_000_000_000


class ArchiveError(Exception):
    """The folder cannot be used; the text says what to do."""


class ContentError(Exception):
    """A body that is not what its name says."""


@dataclass
class Item:
    """One object: as listed by S3, what its metadata says (None: not asked), and why its body was refused."""

    size: int
    modified: int
    facts: Facts | None = None
    refused: str = ""


@dataclass
class Heartbeats:
    """Of one camera: the newest that was ever seen, and silences as pairs of Unix seconds."""

    last: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Put a file there in one step: an earlier one, or a link, is replaced only by a whole one. Raises ArchiveError."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(chunks)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written ({error})") from error


class Archive:
    """Raises ArchiveError where the folder cannot be made, read or written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: dict[Name, Item] = {}
        self.heartbeats: dict[str, Heartbeats] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _FOLDERS:
                (folder / name).mkdir(mode=0o700, exist_ok=True)
                if (folder / name).is_symlink():
                    raise ArchiveError(f"{folder / name} is a link; remove it, or choose another --folder")
            self._remove_leftovers()
            self._load_index()
        except OSError as error:
            raise ArchiveError(f"{folder} cannot be used ({error}); choose another --folder") from error

    def path(self, name: Name) -> Path:
        return self.folder / name.file

    def has(self, name: Name) -> bool:
        """Whether the whole file is there; a link is no file of ours."""
        path, item = self.path(name), self.items.get(name)
        try:
            return item is not None and not path.is_symlink() and path.stat().st_size == item.size
        except OSError:
            return False

    def store(self, name: Name, chunks: Iterable[bytes]) -> None:
        """Keep the body. Raises ContentError where it is not what the name says, ArchiveError for the disk."""
        size_bytes = self.items[name].size
        if shutil.disk_usage(self.folder).free < size_bytes + _LEAST_FREE_BYTES:
            raise ArchiveError(f"less than {_LEAST_FREE_BYTES // 10**9} GB is free; make room or choose fewer --days")
        head, length = b"", 0

        def checked() -> Iterable[bytes]:
            nonlocal head, length
            for chunk in chunks:
                length += len(chunk)
                if length > size_bytes:
                    raise ContentError("it is longer than S3 says")
                head += chunk[: max(0, _HEAD_BYTES - len(head))]
                yield chunk
            if length != size_bytes:
                raise ContentError("it is shorter than S3 says")
            if problem := content_problem(name.role, head, length):
                raise ContentError(problem)

        write_whole(self.path(name), checked())

    def save_index(self) -> None:
        items = {}
        for name, item in self.items.items():
            items[f"{name.role} {name.uuid} {name.number}"] = dataclasses.asdict(item)
        beats = {camera: dataclasses.asdict(beats) for camera, beats in self.heartbeats.items()}
        text = json.dumps({"version": _VERSION, "items": items, "heartbeats": beats})
        write_whole(self.folder / _INDEX, [text.encode()])

    def _load_index(self) -> None:
        """An index that cannot be read is as good as none: everything is asked again, and no file is fetched twice."""
        try:
            stored: Any = json.loads((self.folder / _INDEX).read_bytes())
            if stored["version"] != _VERSION:
                return
            for text, item in stored["items"].items():
                role, uuid, number = text.split(" ")
                facts = Facts(**item.pop("facts")) if item["facts"] else item.pop("facts")
                self.items[Name(Role(role), uuid, int(number))] = Item(facts=facts, **item)
            for camera, beats in stored["heartbeats"].items():
                self.heartbeats[camera] = Heartbeats(beats["last"], [(a, b) for a, b in beats["gaps"]])
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self.items, self.heartbeats = {}, {}

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(f"*/{_TEMPORARY}*"):
            if time.time() - path.lstat().st_mtime > _LEFTOVER_S:
                path.unlink(missing_ok=True)
