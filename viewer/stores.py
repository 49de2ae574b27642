"""Where objects come from: two S3 buckets, or the folder that the demo's stand-in for S3 makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from viewer.objects import IMAGES, VIDEOS

_CHUNK_BYTES = 64 * 1024
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 30
_ATTEMPTS = 4
CONNECTIONS = 8
_ADVICE = {
    "AccessDenied": "this key may not read it; the viewer wants ListBucket and GetObject (viewer/README.md)",
    "NoSuchBucket": "there is no such bucket; are the names at the top of detect_and_upload.py yours?",
    "InvalidAccessKeyId": "S3 does not know this key; is --profile the right one?",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "RequestTimeTooSkewed": "this computer's clock is wrong",
    "ExpiredToken": "the credentials have expired; log in anew",
}


class StoreError(Exception):
    """The store cannot be read; the text says what to do."""


class ObjectError(Exception):
    """One object cannot be had now: deleted since, cut off on its way, or put so that this key may not read it.

    The others can: who has the camera's key must not be able to keep the owner from them by one odd object.
    """


class Entry(NamedTuple):
    """One line of a listing. `modified` is Unix seconds by the store's clock."""

    bucket: str  # IMAGES or VIDEOS
    key: str
    size: int
    modified: int


class Store(Protocol):
    """Safe to use from several threads. Raises StoreError, and ObjectError for one object."""

    def entries(self, bucket: str) -> Iterator[Entry]: ...
    def metadata(self, entry: Entry) -> dict[str, str]: ...
    def read(self, entry: Entry) -> Iterator[bytes]: ...


class S3Store:
    """Both buckets, through boto3 and whatever configuration it finds on this computer."""

    def __init__(self, *, images_bucket: str, videos_bucket: str, profile: str | None) -> None:
        import boto3.session
        import botocore.exceptions
        from botocore.config import Config

        self._names = {IMAGES: images_bucket, VIDEOS: videos_bucket}
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=CONNECTIONS,
        )
        try:
            self._s3: Any = boto3.session.Session(profile_name=profile).client("s3", config=config)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise StoreError(str(error)) from error

    def entries(self, bucket: str) -> Iterator[Entry]:
        with _told(self._names[bucket]):
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._names[bucket]):
                for entry in page.get("Contents", []):
                    yield Entry(bucket, entry["Key"], entry["Size"], int(entry["LastModified"].timestamp()))

    def metadata(self, entry: Entry) -> dict[str, str]:
        with _told(self._names[entry.bucket]):
            answer = self._s3.head_object(Bucket=self._names[entry.bucket], Key=entry.key)
            return dict(answer["Metadata"])

    def read(self, entry: Entry) -> Iterator[bytes]:
        with _told(self._names[entry.bucket]):
            answer = self._s3.get_object(Bucket=self._names[entry.bucket], Key=entry.key)
            yield from answer["Body"].iter_chunks(_CHUNK_BYTES)


class _told:  # noqa: N801 (used like a function)
    """boto3's errors, as ours."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import botocore.exceptions

        if isinstance(error, botocore.exceptions.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "")
            code = {"403": "AccessDenied"}.get(code, code)  # answers to HeadObject have no text
            text = f"{self._bucket}: {_ADVICE.get(code, f'S3 says HTTP {status} {code}')}"
            raise (StoreError if error.operation_name == "ListObjectsV2" else ObjectError)(text) from error
        cut_off = (botocore.exceptions.ResponseStreamingError, botocore.exceptions.IncompleteReadError)
        if isinstance(error, (*cut_off, botocore.exceptions.FlexibleChecksumError)):
            raise ObjectError(str(error)) from error
        if isinstance(error, botocore.exceptions.BotoCoreError):
            raise StoreError(f"{self._bucket}: {error}") from error


class FolderStore:
    """FOLDER/BUCKET/KEY and, beside it, KEY.metadata.json, as demo/s3_stand_in.py keeps them."""

    def __init__(self, folder: Path, *, images_bucket: str, videos_bucket: str) -> None:
        self._folders = {IMAGES: folder / images_bucket, VIDEOS: folder / videos_bucket}

    def entries(self, bucket: str) -> Iterator[Entry]:
        folder = self._folders[bucket]
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.endswith(".metadata.json"):
                status = path.stat()
                yield Entry(bucket, path.relative_to(folder).as_posix(), status.st_size, int(status.st_mtime))

    def metadata(self, entry: Entry) -> dict[str, str]:
        path = self._folders[entry.bucket] / f"{entry.key}.metadata.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))["metadata"])
        except (OSError, ValueError, KeyError) as error:
            raise ObjectError(str(error)) from error

    def read(self, entry: Entry) -> Iterator[bytes]:
        with (self._folders[entry.bucket] / entry.key).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
