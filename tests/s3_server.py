"""A moto S3 server in a process of its own, reached over HTTP as the real one would be."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import boto3
from botocore.config import Config

ACCESS_KEY = "AKIAONLYFORTHETESTS1"
SECRET_KEY = "a-secret-that-opens-nothing"


_SESSION_LOCK = threading.Lock()


@functools.cache
def _session() -> boto3.session.Session:
    """One for all servers: each reads botocore's descriptions of AWS anew, which is 0.1 s of computing."""
    return boto3.session.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY)


@dataclasses.dataclass(frozen=True)
class StoredObject:
    key: str
    size: int
    metadata: dict[str, str]
    content_type: str
    server_side_encryption: str | None
    body: bytes


def environment(url: str) -> dict[str, str]:
    """What makes a program that uses boto3 talk to the server at `url`, whatever the machine's own settings are."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class S3Server:
    """Starts at once; use it as a context manager, or call `stop`. `certificate`: (file, key file) for TLS.

    A plain server that is stopped is emptied and kept for the next one: moto needs seconds of computing to start.
    """

    _kept: ClassVar[list[tuple[int, subprocess.Popen[bytes]]]] = []  # (port, process)

    def __init__(
        self, *, certificate: tuple[Path, Path] | None = None, extra_environment: dict[str, str] | None = None
    ):
        self._scheme = "https" if certificate else "http"
        self._options = ["-s", "-c", str(certificate[0]), "-k", str(certificate[1])] if certificate else []
        self._verify: Any = str(certificate[0]) if certificate else None
        self._environment = {**os.environ, **(extra_environment or {})}
        self._is_plain = not certificate and not extra_environment
        self._client: Any = None
        self.port = 0
        if self._is_plain and self._kept:
            self.port, self._process = self._kept.pop()
            return
        for _ in range(5):  # another program may take the port between our look and the server's start
            self.port = free_port()
            self._process = self._launch()
            if self._answers(timeout_s=60):
                return
            end(self._process)
        raise RuntimeError("the moto server does not start")

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return environment(self.url)

    def create_bucket(self, *names: str) -> None:
        for name in names:
            self.client().create_bucket(Bucket=name)

    def objects(self, bucket: str, *, with_body: bool = True, everything: bool = False) -> list[StoredObject]:
        """The images or clips in the bucket, oldest first. `everything`: also what has a prefix, such as live/."""
        client = self.client()
        found: list[tuple[Any, StoredObject]] = []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                if "/" in entry["Key"] and not everything:
                    continue
                answer = (client.get_object if with_body else client.head_object)(Bucket=bucket, Key=entry["Key"])
                stored = StoredObject(
                    key=entry["Key"],
                    size=entry["Size"],
                    metadata=answer["Metadata"],
                    content_type=answer["ContentType"],
                    server_side_encryption=answer.get("ServerSideEncryption"),
                    body=answer["Body"].read() if with_body else b"",
                )
                found.append((entry["LastModified"], stored))
        return [stored for _, stored in sorted(found, key=lambda pair: pair[0])]

    def keys(self, bucket: str) -> set[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {entry["Key"] for page in pages for entry in page.get("Contents", [])}

    def client(self) -> Any:
        with _SESSION_LOCK:
            if self._client is None:
                self._client = _session().client(
                    "s3", endpoint_url=self.url, region_name="us-east-1", verify=self._verify, config=Config(proxies={})
                )
            return self._client

    def check_keys(self, *, on: bool) -> None:
        """From now on each request needs a key that is known and allowed to do it; without this moto asks nothing."""
        self._post("reset-auth", b"0" if on else b"inf")

    def reset(self) -> None:
        """As it was when it started."""
        self.check_keys(on=False)
        self._post("reset", b"")

    def stop(self) -> None:
        """Nothing that was stored is left."""
        if self._is_plain and self._process.poll() is None:
            with contextlib.suppress(OSError):
                self.reset()
                self._kept.append((self.port, self._process))
                return
        end(self._process)

    def __enter__(self) -> S3Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _post(self, path: str, body: bytes) -> None:
        # Flask would take the body of urllib's default content type for a form.
        request = urllib.request.Request(
            f"{self.url}/moto-api/{path}", body, {"Content-Type": "text/plain"}, method="POST"
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port), *self._options]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self._environment, start_new_session=True
        )

    def _answers(self, *, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            time.sleep(0.05)
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@atexit.register
def _end_kept() -> None:
    for _, process in S3Server._kept:
        end(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
