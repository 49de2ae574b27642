"""What the tests of aws/ have in common: AWS as moto plays it, the owner's commands, a camera that uploads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3.session
import pytest
from botocore.config import Config

from tests.aws_cli import AwsCli
from tests.s3_server import S3Server

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "aws" / "guardianberry.yaml"
README = (ROOT / "aws" / "README.md").read_text()
REGION = "eu-central-1"
ACCOUNT = "123456789012"  # moto's
VIDEOS, IMAGES = f"guardianberry-videos-{ACCOUNT}", f"guardianberry-images-{ACCOUNT}"
README_PARAMETERS = {
    "VideosBucketName": VIDEOS,
    "ImagesBucketName": IMAGES,
    "DeviceNames": "front-door,garage",
    "AlertEmail": "you@example.com",
}
SESSION = boto3.session.Session()  # loads botocore's models once
SECRET = "A-secret-that-must-not-be-logged"


class Moto(S3Server):
    """moto, with more of AWS than S3."""

    def service(self, name: str, **keys: str) -> Any:
        keys = keys or {"aws_access_key_id": "AKIAADMINISTRATOR", "aws_secret_access_key": "administrator"}
        config = Config(retries={"total_max_attempts": 1}, proxies={})
        return SESSION.client(name, region_name=REGION, endpoint_url=self.url, config=config, **keys)


@pytest.fixture(scope="module")
def moto_process() -> Iterator[Moto]:
    with Moto() as moto:
        yield moto


@pytest.fixture
def moto(moto_process: Moto) -> Iterator[Moto]:
    yield moto_process
    moto_process.reset()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of the daemon's user on the camera."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def cli(moto: Moto, home: Path, tmp_path: Path) -> Iterator[AwsCli]:
    with AwsCli(tmp_path / "owner", endpoint_url=moto.url, home=home, region=REGION) as cli:
        yield cli


def readme_commands(heading: str) -> str:
    """The ```sh blocks under this heading, up to the next one of any level."""
    section = re.split(r"^#+ ", README.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^( *)```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    assert blocks
    return "\n".join(re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks)


def run_commands(commands: str, cli: AwsCli, **variables: str) -> str:
    """What bash printed; `variables` are the rest of its environment."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={"PATH": cli.path, **variables},
        cwd=cli.cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def attach_what_moto_left_out(moto: Moto) -> None:
    """moto's CloudFormation ignores ManagedPolicyArns, so the policy is attached here to the users and the role.

    Without its conditional denials: moto takes each for one without conditions. Those see the tests of the policies.
    """
    iam, policy = moto.service("iam"), stack_output(moto, "UploadPolicy")
    document = iam.get_policy_version(PolicyArn=policy, VersionId="v1")["PolicyVersion"]["Document"]
    document["Statement"] = [one for one in document["Statement"] if "Condition" not in one]
    iam.create_policy_version(PolicyArn=policy, PolicyDocument=json.dumps(document), SetAsDefault=True)
    for user in iam.list_users()["Users"]:
        iam.attach_user_policy(UserName=user["UserName"], PolicyArn=policy)
    for role in iam.list_roles()["Roles"]:
        if "CertificateRole" in role["RoleName"]:
            iam.attach_role_policy(RoleName=role["RoleName"], PolicyArn=policy)


def stack_output(moto: Moto, name: str) -> str:
    [stack] = moto.service("cloudformation").describe_stacks()["Stacks"]
    [value] = [one["OutputValue"] for one in stack["Outputs"] if one["OutputKey"] == name]
    return value


# What the daemon does with the files, without a camera: uploads until the file "stop" appears.
_UPLOAD = """
import logging, sys, time
from pathlib import Path
from guardianberry.upload.uploader import Uploader
folder, videos_bucket, images_bucket, serial = Path(sys.argv[1]), *sys.argv[2:]
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
uploader = Uploader(
    images_folder=folder / "images", videos_folder=folder / "videos", images_bucket=images_bucket,
    videos_bucket=videos_bucket, server_side_encryption="AES256", rpi_serial_no=serial,
    video_metadata={"model": "yolov5n.pt", "frame_rate": "10", "confidence_threshold": "0.255"},
)
uploader.start()
while not (folder / "stop").exists():
    uploader.sweep_soon()
    time.sleep(0.1)
uploader.stop(5)
"""


class Camera:
    """The daemon's folders, and its uploader as a process with this home and nothing of our environment."""

    def __init__(self, folder: Path, home: Path, moto: Moto) -> None:
        self.folder, self.home = folder, home
        self.images, self.videos = folder / "images", folder / "videos"
        self.images.mkdir(parents=True)
        self.videos.mkdir()
        self._moto = moto
        self._log_file = folder / "log"
        self._count = 0

    def new_image(self) -> None:
        self._count += 1
        (self.images / f"{1_700_000_000 + self._count}-87-640-480.jpg").write_bytes(jpeg(f"image {self._count}"))

    def new_video(self) -> None:
        self._count += 1
        name = f"{1_700_000_000 + self._count}-20-1-87-130-640-480.mp4"
        (self.videos / name).write_bytes(mp4(f"video {self._count}"))

    @property
    def waiting(self) -> list[str]:
        return sorted(os.listdir(self.images) + os.listdir(self.videos))

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """In the end the uploader is asked to stop, and must."""
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        environment["AWS_ENDPOINT_URL_S3"] = self._moto.url
        command = [sys.executable, "-c", _UPLOAD, str(self.folder), VIDEOS, IMAGES, "10000000deadbeef"]
        (self.folder / "stop").unlink(missing_ok=True)
        with self._log_file.open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield
            (self.folder / "stop").touch()
            assert process.wait(30) == 0, self.log
        finally:
            process.kill()
            process.wait()

    def wait_until_empty(self) -> None:
        wait_for(lambda: not self.waiting, lambda: self.log)


def wait_for(condition: Callable[[], bool], explain: Callable[[], str], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, explain()
        time.sleep(0.05)


def jpeg(text: str) -> bytes:
    return b"\xff\xd8\xff" + text.encode() + b"\xff\xd9"


def mp4(text: str) -> bytes:
    boxes = ((b"ftyp", b"isom"), (b"moov", b"\0" * 8), (b"mdat", text.encode()))
    return b"".join((8 + len(content)).to_bytes(4) + name + content for name, content in boxes)


@pytest.fixture
def deployed(moto: Moto, cli: AwsCli) -> Moto:
    """The README's ten minutes; from then on keys are checked."""
    run_commands(readme_commands("Ten minutes"), cli)
    attach_what_moto_left_out(moto)
    return moto


def camera_keys(home: Path) -> dict[str, str]:
    text = (home / ".aws" / "credentials").read_text()
    return {name: text.split(f"{name} = ")[1].split()[0] for name in ("aws_access_key_id", "aws_secret_access_key")}
