"""aws/: the template, the commands in its README, and what the keys that come of them can and cannot do.

The commands are run by bash against a moto server (a process of its own), the uploads are guardianberry.uploader's.
"""

from __future__ import annotations

import fnmatch
import importlib.resources
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import detect_and_upload
from tests.aws_cli import AwsCli, expand_for_each
from tests.daemon import SCENE, Daemon
from tests.s3_server import S3Server, free_port

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


# ---- Helpers ---------------------------------------------------------------------------------------------------------


class Moto(S3Server):
    """moto, with more of AWS than S3, and with its check of keys and permissions on request."""

    def check_keys(self, *, on: bool) -> None:
        """From now on each request needs a key that is known and allowed to do it; without this moto asks nothing."""
        self._post("reset-auth", b"0" if on else b"inf")

    def reset(self) -> None:
        self.check_keys(on=False)
        self._post("reset", b"")

    def service(self, name: str, **keys: str) -> Any:
        keys = keys or {"aws_access_key_id": "AKIAADMINISTRATOR", "aws_secret_access_key": "administrator"}
        config = Config(retries={"total_max_attempts": 1}, proxies={})
        return SESSION.client(name, region_name=REGION, endpoint_url=self.url, config=config, **keys)

    def _post(self, path: str, body: bytes) -> None:
        # Flask would take the body of urllib's default content type for a form.
        request = urllib.request.Request(
            f"{self.url}/moto-api/{path}", body, {"Content-Type": "text/plain"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30):
            pass


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
    """moto's CloudFormation ignores ManagedPolicyArns, so the policy is attached here to the users and the role."""
    iam, [stack] = moto.service("iam"), moto.service("cloudformation").describe_stacks()["Stacks"]
    [policy] = [one["OutputValue"] for one in stack["Outputs"] if one["OutputKey"] == "UploadPolicy"]
    for user in iam.list_users()["Users"]:
        iam.attach_user_policy(UserName=user["UserName"], PolicyArn=policy)
    for role in iam.list_roles()["Roles"]:
        iam.attach_role_policy(RoleName=role["RoleName"], PolicyArn=policy)


# What the daemon does with the files, without a camera: uploads until the file "stop" appears.
_UPLOAD = """
import logging, sys, time
from pathlib import Path
from guardianberry.uploader import Uploader
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


# ---- Policies, evaluated as the IAM user guide says ("Policy evaluation logic") --------------------------------------


def is_allowed(statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> bool:
    """An explicit deny wins, and what nobody allows is denied. Knows the operators that our policies use, no others."""
    effects = {one["Effect"] for one in statements if _applies(one, action, resource, context)}
    return effects == {"Allow"}


def _applies(statement: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    assert set(statement) <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
    assert statement.get("Principal", "*") == "*"
    return (
        any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in _list(statement["Action"]))
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in _list(statement["Resource"]))
        and all(
            _holds(operator, context.get(key), wanted)
            for operator, pairs in statement.get("Condition", {}).items()
            for key, wanted in pairs.items()
        )
    )


def _holds(operator: str, value: str | None, wanted: str) -> bool:
    if operator == "Null":
        return (value is None) == (wanted == "true")
    if value is None:
        return False
    return {"Bool": lambda: value == wanted, "NumericLessThan": lambda: float(value) < float(wanted)}[operator]()


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def resolve(node: Any, values: dict[str, str], conditions: dict[str, bool]) -> Any:
    """A part of the template with its parameters and references filled in; `values` has "Videos.Arn" and the like."""
    if isinstance(node, list):
        return [resolve(item, values, conditions) for item in node]
    if not isinstance(node, dict):
        return node
    if "Ref" in node:
        return values[node["Ref"]]
    if "Fn::GetAtt" in node:
        return values[".".join(_list(node["Fn::GetAtt"]))]
    if "Fn::Sub" in node:
        return re.sub(r"\$\{(.+?)\}", lambda match: values[match[1]], node["Fn::Sub"])
    if "Fn::If" in node:
        name, yes, no = node["Fn::If"]
        return resolve(yes if conditions[name] else no, values, conditions)
    return {key: resolve(value, values, conditions) for key, value in node.items()}


def template_resources(**more: str) -> dict[str, Any]:
    """The template's resources with the README's parameters; `more` are the values of further references."""
    values = {
        **README_PARAMETERS,
        "ExpireAfterDays": "90",
        "Videos": VIDEOS,
        "Images": IMAGES,
        "Videos.Arn": f"arn:aws:s3:::{VIDEOS}",
        "Images.Arn": f"arn:aws:s3:::{IMAGES}",
        "AlertTopic": "topic",
        "UploadOnly": "upload-only",
        "CertificateRole.Arn": "role",
        "CertificateRoleAlias.RoleAliasArn": "alias",
        "AWS::Partition": "aws",
        "AWS::AccountId": ACCOUNT,
        "AWS::StackName": "guardianberry",
        **more,
    }
    body = expand_for_each(TEMPLATE, README_PARAMETERS)
    return resolve(body["Resources"], values, {"Expire": True, "SendEmail": True, "UseCertificates": True})


def camera_statements() -> list[dict[str, Any]]:
    """All that is said about a camera's request: its user's policy and both bucket policies."""
    resources = template_resources()
    users = [one["Properties"] for one in resources.values() if one["Type"] == "AWS::IAM::User"]
    assert [user["UserName"] for user in users] == ["guardianberry-front-door", "guardianberry-garage"]
    assert all(user["ManagedPolicyArns"] == ["upload-only"] and "Policies" not in user for user in users)
    assert resources["CertificateRole"]["Properties"]["ManagedPolicyArns"] == ["upload-only"]
    assert "Policies" not in resources["CertificateRole"]["Properties"]
    documents = [
        resources[name]["Properties"]["PolicyDocument"] for name in ("UploadOnly", "VideosPolicy", "ImagesPolicy")
    ]
    return [statement for document in documents for statement in document["Statement"]]


# As the daemon sends them.
UPLOAD = {"aws:SecureTransport": "true", "s3:TlsVersion": "1.3", "s3:if-none-match": "*"}


# ---- The template ----------------------------------------------------------------------------------------------------


def test_cfn_lint_finds_nothing() -> None:
    command = [
        sys.executable,
        "-c",
        "from cfnlint.runner import main; main()",
        "--regions",
        REGION,
        "us-east-1",
        "--template",
        str(TEMPLATE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_default_names_are_the_daemons() -> None:
    parameters = expand_for_each(TEMPLATE, {})["Parameters"]
    assert parameters["VideosBucketName"]["Default"] == detect_and_upload.VIDEOS_BUCKET
    assert parameters["ImagesBucketName"]["Default"] == detect_and_upload.IMAGES_BUCKET


@pytest.mark.parametrize("name", ["Videos", "Images"])
def test_the_buckets_are_private_encrypted_unversioned_and_outlive_the_stack(name: str) -> None:
    bucket = template_resources()[name]
    properties = bucket["Properties"]
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(properties["PublicAccessBlockConfiguration"]) == 4
    assert properties["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    [rule] = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    assert "VersioningConfiguration" not in properties
    assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_of_all_the_actions_that_aws_has_a_camera_is_allowed_one() -> None:
    """By the list of actions that cfn-lint comes with."""
    catalogue = json.loads((importlib.resources.files("cfnlint") / "data/AdditionalSpecs/Policies.json").read_text())
    actions = [f"{service}:{action}" for service, known in catalogue.items() for action in known["Actions"]]
    assert len(actions) > 10_000
    assert {"s3:putobject", "s3:getobject", "s3:deleteobject", "iam:createaccesskey"} <= {
        one.lower() for one in actions
    }
    statements = camera_statements()
    resources = (f"arn:aws:s3:::{VIDEOS}/key.mp4", f"arn:aws:s3:::{IMAGES}/key.jpg", f"arn:aws:s3:::{VIDEOS}", "*")
    allowed = {
        (action.lower(), one) for action in actions for one in resources if is_allowed(statements, action, one, UPLOAD)
    }
    assert allowed == {("s3:putobject", resources[0]), ("s3:putobject", resources[1])}


@pytest.mark.parametrize("bucket", [VIDEOS, IMAGES])
@pytest.mark.parametrize(
    ("context", "allowed"),
    [
        pytest.param({}, True, id="as the daemon sends it"),
        pytest.param({"s3:TlsVersion": "1.2"}, True, id="TLS 1.2"),
        pytest.param({"s3:TlsVersion": "1.1"}, False, id="TLS 1.1"),
        pytest.param({"aws:SecureTransport": "false", "s3:TlsVersion": None}, False, id="plain http"),
        pytest.param({"s3:if-none-match": None}, False, id="could overwrite, or is a part of a multipart upload"),
    ],
)
def test_the_bucket_policies_conditions(bucket: str, context: dict[str, str | None], *, allowed: bool) -> None:
    sent = {key: value for key, value in {**UPLOAD, **context}.items() if value is not None}
    assert is_allowed(camera_statements(), "s3:PutObject", f"arn:aws:s3:::{bucket}/key", sent) is allowed


def test_only_the_images_bucket_of_this_account_publishes_alerts() -> None:
    resources = template_resources(AlertTopic="topic")
    [statement] = resources["AlertTopicPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Action"], statement["Resource"]) == ("Allow", "sns:Publish", "topic")
    assert statement["Principal"] == {"Service": "s3.amazonaws.com"}
    assert statement["Condition"] == {
        "ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{IMAGES}"},
        "StringEquals": {"aws:SourceAccount": ACCOUNT},
    }
    # S3 refuses a notification to a topic that does not take it yet.
    assert resources["Images"]["DependsOn"] == "AlertTopicPolicy"
    assert "NotificationConfiguration" not in resources["Videos"]["Properties"]


def test_no_secret_lies_in_the_stack() -> None:
    assert "AWS::IAM::AccessKey" not in {one["Type"] for one in template_resources().values()}


@pytest.mark.parametrize("bucket", ["another-bucket", f"{VIDEOS}-2", "guardianberry"])
def test_a_camera_cannot_upload_elsewhere(bucket: str) -> None:
    assert not is_allowed(camera_statements(), "s3:PutObject", f"arn:aws:s3:::{bucket}/key", UPLOAD)


def test_names_with_dots_go_into_the_path_where_the_certificate_fits() -> None:
    """README, "Names with dots"."""
    session = boto3.session.Session(region_name=REGION, aws_access_key_id="a", aws_secret_access_key="b")
    s3 = session.client("s3")
    urls = {
        bucket: s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "key"}).split("?")[0]
        for bucket in ("guardianberry.videos", "guardianberry-videos")
    }
    assert urls["guardianberry.videos"] == f"https://s3.{REGION}.amazonaws.com/guardianberry.videos/key"
    assert re.fullmatch(
        r"https://guardianberry-videos\.s3[.a-z0-9-]*\.amazonaws\.com/key", urls["guardianberry-videos"]
    )


# ---- The README's commands, and the keys that come of them -----------------------------------------------------------


@pytest.fixture
def deployed(moto: Moto, cli: AwsCli) -> Moto:
    """The README's ten minutes; from then on keys are checked."""
    run_commands(readme_commands("Ten minutes"), cli)
    attach_what_moto_left_out(moto)
    return moto


def camera_keys(home: Path) -> dict[str, str]:
    text = (home / ".aws" / "credentials").read_text()
    return {name: text.split(f"{name} = ")[1].split()[0] for name in ("aws_access_key_id", "aws_secret_access_key")}


def test_ten_minutes_later_the_camera_uploads(deployed: Moto, home: Path, tmp_path: Path) -> None:
    deployed.check_keys(on=True)
    camera = Camera(tmp_path / "camera", home, deployed)
    camera.new_image()
    camera.new_video()
    with camera.uploading():
        camera.wait_until_empty()
    deployed.check_keys(on=False)
    [image] = deployed.objects(IMAGES)
    assert image.key.endswith(".jpg")
    assert image.body == jpeg("image 1")
    assert image.metadata["rpi_serial_no"] == "10000000deadbeef"
    [video] = deployed.objects(VIDEOS)
    assert video.key.endswith(".mp4")
    assert video.body == mp4("video 2")
    assert camera_keys(home)["aws_secret_access_key"] not in camera.log


@pytest.mark.slow
def test_the_daemon_uploads_with_that_key(deployed: Moto, home: Path, tmp_path: Path, models: Path) -> None:
    deployed.check_keys(on=True)
    environment = {"HOME": str(home), "AWS_ENDPOINT_URL_S3": deployed.url}
    stand_in = {"STAND_IN_VIDEO": str(SCENE), "STAND_IN_AT_END": "hold"}
    short = {"CLOCK_WAIT_S": 0, "MAX_RECORDING_DURATION_S": 4, "PRE_ROLL_S": 1}
    buckets = {"IMAGES_BUCKET": IMAGES, "VIDEOS_BUCKET": VIDEOS}
    with Daemon(tmp_path / "daemon", models, env=environment | stand_in, **short, **buckets) as daemon:
        daemon.wait_for_log("video .*: uploaded", timeout_s=90)
        assert daemon.terminate()[0] == 0
    deployed.check_keys(on=False)
    assert deployed.keys(IMAGES)
    assert deployed.keys(VIDEOS)
    assert not [secret for secret in camera_keys(home).values() if secret in daemon.log]


def test_the_key_lies_where_only_the_daemons_user_can_read_it(deployed: Moto, home: Path) -> None:
    assert stat.S_IMODE((home / ".aws").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / ".aws" / "credentials").stat().st_mode) == 0o600
    assert (home / ".aws" / "config").read_text() == f"[default]\nregion = {REGION}\n"


def test_each_camera_has_a_user_of_its_own(deployed: Moto) -> None:
    users = {user["UserName"]: user["Path"] for user in deployed.service("iam").list_users()["Users"]}
    assert users == {f"guardianberry-{name}": "/guardianberry/" for name in ("front-door", "garage")}


# What moto 5.2.5 checks. It lets DeleteObjects, CopyObject within a bucket and parts of multipart uploads pass, and all
# conditions; for those see the tests of the policies above.
REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "get": ("s3", "get_object", {"Bucket": IMAGES, "Key": "there.jpg"}),
    "get, not there": ("s3", "get_object", {"Bucket": IMAGES, "Key": "not-there.jpg"}),
    "head": ("s3", "head_object", {"Bucket": IMAGES, "Key": "there.jpg"}),
    "delete": ("s3", "delete_object", {"Bucket": IMAGES, "Key": "there.jpg"}),
    "list": ("s3", "list_objects_v2", {"Bucket": IMAGES}),
    "list, old": ("s3", "list_objects", {"Bucket": VIDEOS}),
    "list versions": ("s3", "list_object_versions", {"Bucket": VIDEOS}),
    "head bucket": ("s3", "head_bucket", {"Bucket": VIDEOS}),
    "list buckets": ("s3", "list_buckets", {}),
    "another bucket": ("s3", "put_object", {"Bucket": "another-bucket", "Key": "key", "Body": b"x"}),
    "make it public": ("s3", "put_object_acl", {"Bucket": IMAGES, "Key": "there.jpg", "ACL": "public-read"}),
    "tag": ("s3", "put_object_tagging", {"Bucket": IMAGES, "Key": "there.jpg", "Tagging": {"TagSet": []}}),
    "policy": ("s3", "put_bucket_policy", {"Bucket": IMAGES, "Policy": "{}"}),
    "read policy": ("s3", "get_bucket_policy", {"Bucket": IMAGES}),
    "delete policy": ("s3", "delete_bucket_policy", {"Bucket": IMAGES}),
    "delete bucket": ("s3", "delete_bucket", {"Bucket": IMAGES}),
    "more keys": ("iam", "create_access_key", {"UserName": "guardianberry-front-door"}),
    "users": ("iam", "list_users", {}),
    "stack": ("cloudformation", "describe_stacks", {}),
    "topics": ("sns", "list_topics", {}),
}


def test_the_key_can_do_nothing_else(deployed: Moto, home: Path) -> None:
    admin = deployed.service("s3")
    admin.create_bucket(Bucket="another-bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    admin.put_object(Bucket=IMAGES, Key="there.jpg", Body=b"evidence")
    deployed.check_keys(on=True)
    keys = camera_keys(home)
    answers = {
        name: status_of(deployed.service(service, **keys), call, asked)
        for name, (service, call, asked) in REFUSED.items()
    }
    assert answers == dict.fromkeys(REFUSED, 403)
    put = {"Bucket": IMAGES, "Body": b"forged", "IfNoneMatch": "*"}
    assert status_of(deployed.service("s3", **keys), "put_object", {**put, "Key": "there.jpg"}) == 412
    assert status_of(deployed.service("s3", **keys), "put_object", {**put, "Key": "new.jpg"}) == 200
    keys["aws_secret_access_key"] = "wrong"
    assert status_of(deployed.service("s3", **keys), "put_object", {**put, "Key": "newer.jpg"}) == 403
    deployed.check_keys(on=False)
    assert {one.key: one.body for one in deployed.objects(IMAGES)} == {"there.jpg": b"evidence", "new.jpg": b"forged"}


def status_of(client: Any, call: str, asked: dict[str, Any]) -> int:
    try:
        return getattr(client, call)(**asked)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


def test_by_hand_comes_to_the_same_as_the_template(moto: Moto, cli: AwsCli) -> None:
    run_commands(readme_commands("By hand"), cli)
    s3, iam, sns = (moto.service(service) for service in ("s3", "iam", "sns"))
    [topic] = sns.list_topics()["Topics"]
    wanted = template_resources(AlertTopic=topic["TopicArn"])
    for name, bucket in (("Videos", VIDEOS), ("Images", IMAGES)):
        properties = wanted[name]["Properties"]
        assert properties["BucketName"] == bucket
        block = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        assert block == properties["PublicAccessBlockConfiguration"]
        ownership = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]
        assert ownership == properties["OwnershipControls"]
        [rule] = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
        assert lifecycle(s3, bucket) == properties["LifecycleConfiguration"]["Rules"]
        policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
        assert policy == wanted[f"{name}Policy"]["Properties"]["PolicyDocument"]

    [policy] = iam.list_policies(Scope="Local")["Policies"]
    document = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])["PolicyVersion"]
    assert document["Document"] == wanted["UploadOnly"]["Properties"]["PolicyDocument"]
    for camera in ("guardianberry-front-door", "guardianberry-garage"):
        attached = iam.list_attached_user_policies(UserName=camera)["AttachedPolicies"]
        assert [one["PolicyArn"] for one in attached] == [policy["Arn"]]
        assert iam.get_user(UserName=camera)["User"]["Path"] == "/guardianberry/"

    attributes = sns.get_topic_attributes(TopicArn=topic["TopicArn"])["Attributes"]
    assert json.loads(attributes["Policy"]) == wanted["AlertTopicPolicy"]["Properties"]["PolicyDocument"]
    assert attributes["DisplayName"] == wanted["AlertTopic"]["Properties"]["DisplayName"]
    [subscription] = sns.list_subscriptions()["Subscriptions"]
    email = wanted["AlertByEmail"]["Properties"]
    assert (subscription["Protocol"], subscription["Endpoint"]) == (email["Protocol"], email["Endpoint"])
    [notice] = s3.get_bucket_notification_configuration(Bucket=IMAGES)["TopicConfigurations"]
    [event] = wanted["Images"]["Properties"]["NotificationConfiguration"]["TopicConfigurations"]
    assert (notice["Events"], notice["TopicArn"]) == ([event["Event"]], event["Topic"])


def lifecycle(s3: Any, bucket: str) -> list[dict[str, Any]]:
    """A bucket's rules in the words of CloudFormation."""
    rules = []
    for rule in s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]:
        words = {"Id": rule["ID"], "Status": rule["Status"]}
        if "Expiration" in rule:
            words["ExpirationInDays"] = str(rule["Expiration"]["Days"])
        if "AbortIncompleteMultipartUpload" in rule:
            words["AbortIncompleteMultipartUpload"] = rule["AbortIncompleteMultipartUpload"]
        rules.append(words)
    return rules


def test_one_alert_for_each_image_and_none_for_videos(moto: Moto, cli: AwsCli, home: Path, tmp_path: Path) -> None:
    run_commands(readme_commands("By hand"), cli)
    for bucket in (VIDEOS, IMAGES):  # moto takes every deny for one without conditions
        moto.service("s3").delete_bucket_policy(Bucket=bucket)
    sqs, sns = moto.service("sqs"), moto.service("sns")
    queue = sqs.create_queue(QueueName="alerts")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    [topic] = sns.list_topics()["Topics"]
    sns.subscribe(TopicArn=topic["TopicArn"], Protocol="sqs", Endpoint=arn)
    write_credentials(home, **{"aws_access_key_id": "AKIAANYTHING", "aws_secret_access_key": SECRET})
    camera = Camera(tmp_path / "camera", home, moto)
    for _ in range(3):
        camera.new_image()
        camera.new_video()
    with camera.uploading():
        camera.wait_until_empty()
    messages = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    events = [json.loads(json.loads(message["Body"])["Message"]) for message in messages]
    alerts = [event["Records"][0]["s3"] for event in events if "Records" in event]
    assert sorted(alert["object"]["key"] for alert in alerts) == sorted(moto.keys(IMAGES))
    assert {alert["bucket"]["name"] for alert in alerts} == {IMAGES}
    assert len(moto.keys(VIDEOS)) == 3


def write_credentials(home: Path, **keys: str) -> None:
    (home / ".aws").mkdir(exist_ok=True)
    lines = "".join(f"{name} = {value}\n" for name, value in keys.items())
    (home / ".aws" / "credentials").write_text(f"[default]\n{lines}")


def test_a_revoked_key_is_refused_and_a_new_one_taken_without_a_restart(
    deployed: Moto, cli: AwsCli, home: Path, tmp_path: Path
) -> None:
    deployed.check_keys(on=True)
    camera = Camera(tmp_path / "camera", home, deployed)
    camera.new_image()
    with camera.uploading():
        camera.wait_until_empty()
        deployed.check_keys(on=False)
        run_commands(readme_commands("Where the key lies"), cli)
        iam, user = deployed.service("iam"), "guardianberry-front-door"
        [old] = iam.list_access_keys(UserName=user)["AccessKeyMetadata"]
        assert old["Status"] == "Inactive"
        iam.delete_access_key(UserName=user, AccessKeyId=old["AccessKeyId"])  # moto lets inactive keys pass
        deployed.check_keys(on=True)
        camera.new_image()
        wait_for(lambda: "S3 does not know these AWS credentials" in camera.log, lambda: camera.log)
        assert len(camera.waiting) == 1
        deployed.check_keys(on=False)
        make_key = readme_commands("Ten minutes").partition("aws iam create-access-key")
        run_commands("".join(make_key[1:]), cli)
        deployed.check_keys(on=True)
        camera.wait_until_empty()
    deployed.check_keys(on=False)
    assert len(deployed.keys(IMAGES)) == 2


# ---- credential_process ----------------------------------------------------------------------------------------------


def write_process(home: Path, body: str) -> Path:
    """A credential_process made of this shell script, in ~/.aws/config as in the README."""
    script = home / "get-keys"
    script.write_text(f"#!/bin/sh\ncd {home}\necho run >> runs\n{body}\n")
    script.chmod(0o700)
    (home / ".aws").mkdir(exist_ok=True)
    (home / ".aws" / "config").write_text(f"[default]\nregion = {REGION}\ncredential_process = {script}\n")
    return script


def answer(key: dict[str, str], lasts_s: float) -> str:
    expiration = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + lasts_s))
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    return json.dumps({"Version": 1, **{name: key[name] for name in names if name in key}, "Expiration": expiration})


def new_key(moto: Moto, user: str = "guardianberry-front-door") -> dict[str, str]:
    moto.check_keys(on=False)
    key = moto.service("iam").create_access_key(UserName=user)["AccessKey"]
    moto.check_keys(on=True)
    return key


def test_expiring_credentials_are_renewed(deployed: Moto, home: Path, tmp_path: Path) -> None:
    (home / ".aws" / "credentials").unlink()
    write_process(home, "cat answer")
    first = new_key(deployed)
    (home / "answer").write_text(answer(first, lasts_s=120))
    camera = Camera(tmp_path / "camera", home, deployed)
    camera.new_image()
    with camera.uploading():
        camera.wait_until_empty()
        runs = len((home / "runs").read_text().split())
        deployed.check_keys(on=False)
        deployed.service("iam").delete_access_key(UserName="guardianberry-front-door", AccessKeyId=first["AccessKeyId"])
        (home / "answer").write_text(answer(new_key(deployed, "guardianberry-garage"), lasts_s=120))
        camera.new_image()
        camera.wait_until_empty()
    assert runs >= 1
    assert len((home / "runs").read_text().split()) > runs
    # The renewal came before the expired key was tried: no upload failed.
    assert "WARNING" not in camera.log
    deployed.check_keys(on=False)
    assert len(deployed.keys(IMAGES)) == 2


def test_credentials_that_last_long_are_not_asked_for_again(deployed: Moto, home: Path, tmp_path: Path) -> None:
    (home / ".aws" / "credentials").unlink()
    write_process(home, "cat answer")
    (home / "answer").write_text(answer(new_key(deployed), lasts_s=3600))
    camera = Camera(tmp_path / "camera", home, deployed)
    with camera.uploading():
        for _ in range(5):
            camera.new_image()
            camera.wait_until_empty()
    assert (home / "runs").read_text() == "run\n"


@pytest.fixture
def buckets(moto: Moto) -> Moto:
    """Both buckets, open to whatever key."""
    moto.create_bucket(VIDEOS, IMAGES)
    return moto


BROKEN_PROCESSES = {
    "fails": f"echo 'no network' >&2; echo {SECRET} >&2; exit 1",
    "says nothing": "true",
    "writes no JSON": f"echo {SECRET}",
    "writes half of it": 'echo \'{"Version": 1, "AccessKeyId": "AKIA"}\'',
    "gives keys of yesterday": "cat yesterday",
    "is gone": "",
}


def break_process(home: Path, how: str) -> None:
    keys = {"AccessKeyId": "AKIAANYTHING", "SecretAccessKey": "anything"}
    (home / "yesterday").write_text(answer(keys, lasts_s=-86400))
    script = write_process(home, BROKEN_PROCESSES[how])
    if how == "is gone":
        script.unlink()


def mend_process(home: Path) -> None:
    """The keys it gives are due for renewal before each upload, so that what breaks next is noticed at once."""
    keys = {"AccessKeyId": "AKIAANYTHING", "SecretAccessKey": "anything"}
    write_process(home, f"echo '{answer(keys, lasts_s=300)}'")


def assert_one_complaint(log: str) -> None:
    complaints = [line for line in log.splitlines() if not line.startswith(("INFO ", "DEBUG "))]
    assert len(complaints) == 1, log
    assert complaints[0].startswith("WARNING ")
    assert "the AWS credentials cannot be read or made" in complaints[0]
    assert SECRET not in log


def complains(camera: Camera, since: int = 0) -> Callable[[], bool]:
    return lambda: any(level in camera.log[since:] for level in ("WARNING", "ERROR"))


@pytest.mark.parametrize("how", ["fails", "writes no JSON", "gives keys of yesterday"])
def test_a_process_that_never_worked_gives_one_line(buckets: Moto, home: Path, tmp_path: Path, how: str) -> None:
    break_process(home, how)
    camera = Camera(tmp_path / "camera", home, buckets)
    camera.new_image()
    with camera.uploading():
        wait_for(complains(camera), lambda: camera.log)
        time.sleep(1)  # time for a second try, which must not say it again
        assert_one_complaint(camera.log)
        assert len(camera.waiting) == 1
        mend_process(home)
        camera.wait_until_empty()
    assert len(buckets.keys(IMAGES)) == 1


@pytest.mark.slow
def test_a_process_that_fails_later_gives_one_line_each_time_and_nothing_is_lost(
    buckets: Moto, home: Path, tmp_path: Path
) -> None:
    camera = Camera(tmp_path / "camera", home, buckets)
    mend_process(home)
    with camera.uploading():
        for how in BROKEN_PROCESSES:
            camera.new_image()
            camera.wait_until_empty()
            since = len(camera.log)
            break_process(home, how)
            camera.new_image()
            camera.new_video()
            wait_for(complains(camera, since), lambda how=how: f"{how}: {camera.log}")
            time.sleep(1)
            assert_one_complaint(camera.log[since:])
            assert len(camera.waiting) == 2
            mend_process(home)
            camera.wait_until_empty()
    assert len(buckets.keys(IMAGES)) == 2 * len(BROKEN_PROCESSES)
    assert len(buckets.keys(VIDEOS)) == len(BROKEN_PROCESSES)


# ---- Certificates ----------------------------------------------------------------------------------------------------

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


class CredentialsEndpoint:
    """AWS IoT's credential provider: signs certificates, and for one of them gives keys over TLS."""

    def __init__(self, folder: Path, keys: Callable[[], dict[str, Any]]) -> None:
        folder.mkdir()
        self.certificate, self._private_key = folder / "server.pem", folder / "server.key"
        self._folder = folder
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        openssl("req", "-x509", *CURVE, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out",
                self.certificate, "-keyout", self._private_key)  # fmt: skip
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                subject = self.connection.getpeercert()["subject"]  # type: ignore[attr-defined]
                endpoint.asked.append((subject[0][0][1], self.path))
                body = {"credentials": keys()} if endpoint.status == 200 else {"message": "Access Denied"}
                self.send_response(endpoint.status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self._private_key)
        context.load_verify_locations(self.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def sign(self, request: Path, certificate: Path) -> None:
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._private_key, "-CAserial",
                self._folder / "serial", "-CAcreateserial", "-out", certificate)  # fmt: skip

    def __enter__(self) -> CredentialsEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def role_keys(moto: Moto) -> dict[str, str]:
    """New keys for the stack's role, in the words of AWS IoT."""
    iam, sts = moto.service("iam"), moto.service("sts")
    [role] = [role["Arn"] for role in iam.list_roles()["Roles"] if "CertificateRole" in role["RoleName"]]
    made = sts.assume_role(RoleArn=role, RoleSessionName="front-door")["Credentials"]
    expiration = made["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ")
    names = {"accessKeyId": "AccessKeyId", "secretAccessKey": "SecretAccessKey", "sessionToken": "SessionToken"}
    return {**{word: made[name] for word, name in names.items()}, "expiration": expiration}


@needs_openssl
def test_a_certificate_gives_keys_that_upload(moto: Moto, cli: AwsCli, home: Path, tmp_path: Path) -> None:
    deploy = readme_commands("Ten minutes").partition("aws iam create-access-key")[0]
    run_commands(deploy.replace("AlertEmail=", "Certificates=yes AlertEmail="), cli)
    attach_what_moto_left_out(moto)
    run_commands(readme_commands("Certificates"), cli)
    assert stat.S_IMODE((home / ".aws").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / ".aws" / "camera.key").stat().st_mode) == 0o600
    assert sorted(os.listdir(home / ".aws")) == ["camera.key", "camera.pem", "config"]

    keys = role_keys(moto)
    with CredentialsEndpoint(tmp_path / "iot", lambda: keys) as endpoint:
        # moto's certificate is for some other private key, so this endpoint signs the camera's request anew.
        endpoint.sign(cli.cwd / "front-door.csr", home / ".aws" / "camera.pem")
        config = (home / ".aws" / "config").read_text()
        config, changed = re.subn(
            r"\S+\.credentials\.iot\.\S+", f"--ca {endpoint.certificate} {endpoint.address}", config
        )
        assert changed == 1
        config = config.replace("/home/pi/guardianberry", str(ROOT)).replace("/home/pi", str(home))
        (home / ".aws" / "config").write_text(config.replace("/usr/bin/python3", sys.executable))
        moto.check_keys(on=True)
        camera = Camera(tmp_path / "camera", home, moto)
        camera.new_image()
        camera.new_video()
        with camera.uploading():
            camera.wait_until_empty()
    assert endpoint.asked == [("front-door", "/role-aliases/guardianberry-upload/credentials")]
    moto.check_keys(on=False)
    assert (len(moto.keys(IMAGES)), len(moto.keys(VIDEOS))) == (1, 1)


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[tuple[CredentialsEndpoint, list[str]]]:
    """An endpoint, and the command that gets keys from it."""
    keys = {
        "accessKeyId": "ASIA",
        "secretAccessKey": SECRET,
        "sessionToken": "token",
        "expiration": "2030-01-01T00:00:00Z",
    }
    key, request, certificate = (tmp_path / name for name in ("camera.key", "camera.csr", "camera.pem"))
    openssl("req", "-new", *CURVE, "-keyout", key, "-subj", "/CN=front-door", "-out", request)
    with CredentialsEndpoint(tmp_path / "iot", lambda: keys) as endpoint:
        endpoint.sign(request, certificate)
        command = [sys.executable, str(ROOT / "aws" / "iot_credentials.py"), "--ca", str(endpoint.certificate)]
        yield endpoint, [*command, endpoint.address, "a role/alias", str(certificate), str(key)]


def ask(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    return done.returncode, done.stdout, done.stderr


@needs_openssl
def test_iot_credentials_speak_as_boto3_wants_it(certified: tuple[CredentialsEndpoint, list[str]]) -> None:
    endpoint, command = certified
    status, out, error = ask(command)
    assert (status, error) == (0, "")
    assert json.loads(out) == {
        "Version": 1,
        "AccessKeyId": "ASIA",
        "SecretAccessKey": SECRET,
        "SessionToken": "token",
        "Expiration": "2030-01-01T00:00:00Z",
    }
    assert endpoint.asked == [("front-door", "/role-aliases/a%20role%2Falias/credentials")]


@needs_openssl
@pytest.mark.parametrize("broken", ["refused", "untrusted server", "no certificate", "nobody there"])
def test_iot_credentials_that_fail_say_so_in_one_line(
    certified: tuple[CredentialsEndpoint, list[str]], broken: str, tmp_path: Path
) -> None:
    endpoint, command = certified
    if broken == "refused":
        endpoint.status = 403
    elif broken == "untrusted server":
        openssl(
            "req", "-x509", *CURVE, "-subj", "/CN=elsewhere", "-out", tmp_path / "o.pem", "-keyout", tmp_path / "o.key"
        )
        command[3] = str(tmp_path / "o.pem")
    elif broken == "no certificate":
        Path(command[-2]).unlink()
    else:
        command[4] = f"127.0.0.1:{free_port()}"
    status, out, error = ask(command)
    assert (status, out) == (1, "")
    assert error.startswith("no AWS credentials from 127.0.0.1:")
    assert len(error.splitlines()) == 1
    expected = {"refused": "Access Denied", "untrusted server": "CERTIFICATE_VERIFY_FAILED"}
    assert expected.get(broken, "Error") in error
