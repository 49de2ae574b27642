"""For bench/ceph.py: a gateway with its users and policies, and an uploader on it of which everything is noted."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3.session
import pytest
from botocore.config import Config

from bench.report import ROOT
from guardianberry.upload import transport
from guardianberry.upload.uploader import Uploader
from tests.s3_server import ACCESS_KEY, SECRET_KEY
from tests.upload_rig import Rig, jpeg, mp4, wait_until

CLIP_BYTES, QUOTA_BYTES, WAIT_S = 3_000_000, 1_048_576, 120.0
OWNER, CAMERA, OTHER = "owner", "camera", "camera2"
KEYS = {OWNER: ("OWNERSKEY", "owners-secret"), CAMERA: (ACCESS_KEY, SECRET_KEY), OTHER: ("OTHERSKEY", "others-secret")}


class Gateway(NamedTuple):
    http: str
    https: str
    ca: str
    admin_command: list[str]

    def admin(self, *words: str) -> str:
        return subprocess.run([*self.admin_command, *words], check=True, capture_output=True, text=True).stdout

    def client(self, user: str) -> Any:
        """Over TLS, and without checksums of its own: 16.2 answers those of boto3 with MissingContentLength."""
        access_key, secret_key = KEYS[user]
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
        )
        session = boto3.session.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key)
        return session.client("s3", endpoint_url=self.https, region_name="us-east-1", verify=self.ca, config=config)


def statement(effect: str, user: str, actions: list[str], bucket: str, **more: Any) -> dict[str, Any]:
    return {
        "Effect": effect,
        "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]},
        "Action": [f"s3:{action}" for action in actions],
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
        **more,
    }


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def put_alone(bucket: str) -> dict[str, Any]:
    return statement("Allow", CAMERA, ["PutObject"], bucket)


def readable(bucket: str) -> dict[str, Any]:
    """The camera's user owns what it has put, so that the bucket's owner may not read it without this."""
    return statement("Allow", OWNER, ["GetObject"], bucket)


def aws_statements(bucket: str, *names: str) -> list[dict[str, Any]]:
    """Those of aws/bucket_policy.json with these names."""
    text = (ROOT / "aws" / "bucket_policy.json").read_text(encoding="utf-8").replace("YOUR-BUCKET", bucket)
    return [each for each in json.loads(text)["Statement"] if each["Sid"] in names]


class Lines(logging.Handler):
    """What the daemon logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Play:
    """Two buckets, an uploader with files for them, what the server answered it, and what it logged."""

    def __init__(self, gateway: Gateway, folder: Path, patch: pytest.MonkeyPatch, url: str) -> None:
        self.gateway, self.patch = gateway, patch
        self.rig = Rig(folder, patch, url=url, name=str(time.monotonic_ns()))
        self.buckets = (self.rig.images_bucket, self.rig.videos_bucket)
        self.answers: list[str] = []
        self.log = Lines()
        self.uploaders: list[Uploader] = []
        self.expected = self.broken_sends = 0
        self.encryption: str | None = None  # asked for where it is the subject
        patch.setenv("AWS_CA_BUNDLE", gateway.ca)
        reduced, send = transport._reduced, transport._Connection.send
        patch.setattr(transport, "_reduced", lambda answer, content: self._note(reduced(answer, content)))
        patch.setattr(transport._Connection, "send", lambda connection, data: self._send(send, connection, data))

    def _note(self, answer: Any) -> Any:
        code = re.search(rb"<Code>(\w+)", answer.content)
        encrypted = " with the header" if "x-amz-server-side-encryption" in answer.headers else ""
        self.answers.append(f"{answer.status_code}{' ' + code[1].decode() if code else ''}{encrypted}")
        return answer

    def _send(self, send: Callable[..., None], connection: Any, data: Any) -> None:
        try:
            send(connection, data)
        except BrokenPipeError:
            self.broken_sends += 1
            raise

    def make_buckets(self, *, allowed: bool = True) -> None:
        for bucket in self.buckets:
            self.gateway.client(OWNER).create_bucket(Bucket=bucket)
        if allowed:
            self.allow()

    def allow(self) -> None:
        for bucket in self.buckets:
            self.gateway.client(OWNER).put_bucket_policy(
                Bucket=bucket, Policy=policy(put_alone(bucket), readable(bucket))
            )

    def add(self, image: bytes | None = None, clip: bytes | None = None) -> None:
        self.rig.add_image(1_700_000_000, jpeg(60_000) if image is None else image)
        self.rig.add_video(1_700_000_000, mp4(CLIP_BYTES) if clip is None else clip)
        self.expected += 2

    def start(self) -> Uploader:
        uploader = self.rig.start(server_side_encryption=self.encryption)
        self.uploaders.append(uploader)
        return uploader

    def stop(self) -> None:
        """Waits, so that nothing of this fault is logged in the next one."""
        for uploader in self.uploaders:
            uploader.stop(10)

    def deliver(self) -> None:
        self.start()
        self.rig.wait_until_empty(timeout_s=WAIT_S)

    def fail_then(self, cure: Callable[[], object]) -> None:
        uploader = self.start()
        self.until_failed(uploader)
        cure()
        self.rig.wait_until_empty(timeout_s=WAIT_S)

    def until_failed(self, uploader: Uploader) -> None:
        wait_until(lambda: uploader.counters().failed_tries >= 4, "it does not fail", timeout_s=WAIT_S)

    def said(self) -> str:
        text = ", ".join(f"{answer} ({count})" for answer, count in Counter(self.answers).items())
        return text + (f"; hung up within the body ({self.broken_sends})" if self.broken_sends else "")

    def did(self) -> str:
        """The daemon's lines, but those of single uploads, and what became of the files."""
        done = [line for line in self.log.lines if re.match(r"(image|video) \S+: ", line)]
        told: dict[str, str] = {}  # what is said of images and of videos counts once
        for line in self.log.lines:
            if line not in done:
                told.setdefault(re.sub(r"images|videos|\d+", "", line.split("(")[0]), line)
        already = sum("was in the bucket already" in line for line in done)
        outcome = f"{len(done) - already} of {self.expected} stored"
        outcome += f", {already} in the bucket already" if already else ""
        return "; ".join([*(f'"{line}"' for line in told.values()), outcome])


@contextmanager
def play(gateway: Gateway, url: str) -> Iterator[Play]:
    logger = logging.getLogger("guardianberry")
    with tempfile.TemporaryDirectory(prefix="bench-ceph-") as folder, pytest.MonkeyPatch.context() as patch:
        played = Play(gateway, Path(folder) / "daemon", patch, url)
        logger.addHandler(played.log)
        try:
            yield played
        finally:
            played.stop()
            logger.removeHandler(played.log)
