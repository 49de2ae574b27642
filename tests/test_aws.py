"""aws/: the template, the commands in its README, and what the keys that come of them can and cannot do.

The commands are run by bash against a moto server (a process of its own), the uploads are the uploader's.
"""

from __future__ import annotations

import configparser
import json
import re
import stat
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from botocore.exceptions import ClientError

import detect_and_upload
from tests import aws_rig
from tests.aws_cli import AwsCli, expand_for_each
from tests.aws_functions import Stack
from tests.aws_policies import (
    UPLOAD,
    allowed_of_all,
    camera_statements,
    is_allowed,
    statements_of,
    template_resources,
)
from tests.aws_rig import (
    ACCOUNT,
    IMAGES,
    REGION,
    ROOT,
    SECRET,
    SESSION,
    TEMPLATE,
    VIDEOS,
    Camera,
    Moto,
    camera_keys,
    jpeg,
    mp4,
    readme_commands,
    run_commands,
    wait_for,
)
from tests.daemon import SCENE, SMALL_INPUT, Daemon
from tests.s3_server import StoredObject
from tests.test_aws_watch import HEARTBEAT

# Fixtures
moto_process = aws_rig.moto_process
moto = aws_rig.moto
home = aws_rig.home
cli = aws_rig.cli
deployed = aws_rig.deployed


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
    resources = (
        *(
            f"arn:aws:s3:::{VIDEOS}/{key}"
            for key in ("key.mp4", "live/e/0001.part", "best/e.jpg", "alive/c/1700000000")
        ),
        f"arn:aws:s3:::{IMAGES}/key.jpg",
        *(f"arn:aws:s3:::{VIDEOS}", f"arn:aws:s3:::{VIDEOS}/told/c/1700000000-silent", "*"),
    )
    allowed = allowed_of_all(camera_statements(), resources, UPLOAD)
    assert allowed == {("s3:putobject", resource) for resource in resources[:5]}


@pytest.mark.parametrize("bucket", [VIDEOS, IMAGES])
@pytest.mark.parametrize(
    ("context", "allowed"),
    [
        pytest.param({}, True, id="as the daemon sends it"),
        pytest.param({"s3:TlsVersion": "1.2"}, True, id="TLS 1.2"),
        pytest.param({"s3:TlsVersion": "1.1"}, False, id="TLS 1.1"),
        pytest.param({"aws:SecureTransport": "false", "s3:TlsVersion": None}, False, id="plain http"),
        pytest.param({"s3:if-none-match": None}, False, id="could overwrite, or is a part of a multipart upload"),
        pytest.param({"s3:if-none-match": '"an ETag"'}, False, id="could overwrite all but one"),
        pytest.param({"s3:x-amz-storage-class": "STANDARD"}, True, id="storage class said"),
        pytest.param({"s3:x-amz-storage-class": "DEEP_ARCHIVE"}, False, id="nobody could look for hours"),
        pytest.param({"s3:x-amz-copy-source": "theirs/key"}, False, id="a copy"),
    ],
)
@pytest.mark.parametrize("where", ["the camera's policy", "the buckets' policies"])
def test_the_policies_conditions(where: str, bucket: str, context: dict[str, str | None], *, allowed: bool) -> None:
    """Either is enough: by hand there may be no bucket policy, and another key of yours has not the camera's."""
    resources, arn = template_resources(), f"arn:aws:s3:::{bucket}/key"
    if where == "the camera's policy":
        statements = statements_of(resources, "UploadOnly")
    else:
        allow = [{"Effect": "Allow", "Action": "s3:PutObject", "Resource": arn}]
        statements = allow + statements_of(resources, "VideosPolicy", "ImagesPolicy")
    sent = {key: value for key, value in {**UPLOAD, **context}.items() if value is not None}
    assert is_allowed(statements, "s3:PutObject", arn, sent) is allowed


def test_the_policy_for_a_key_made_by_hand_is_the_templates() -> None:
    text = (ROOT / "aws" / "camera_policy.json").read_text()
    text = text.replace("YOUR-VIDEOS-BUCKET", VIDEOS).replace("YOUR-IMAGES-BUCKET", IMAGES)
    assert json.loads(text) == template_resources()["UploadOnly"]["Properties"]["PolicyDocument"]
    assert "aws/camera_policy.json" in (ROOT / "README.md").read_text()


def test_the_viewers_key_looks_and_changes_nothing() -> None:
    buckets = tuple(f"arn:aws:s3:::{bucket}" for bucket in (VIDEOS, IMAGES))
    objects = tuple(f"{bucket}/{key}" for bucket in buckets for key in ("key.mp4", "told/c/1700000000-silent"))
    statements = statements_of(template_resources(), "ViewOnly", "VideosPolicy", "ImagesPolicy")
    allowed = allowed_of_all(statements, (*buckets, *objects, "*"), UPLOAD)
    assert allowed == {("s3:listbucket", one) for one in buckets} | {("s3:getobject", one) for one in objects}


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


def test_no_secret_lies_in_the_stack() -> None:
    assert "AWS::IAM::AccessKey" not in {one["Type"] for one in template_resources().values()}


@pytest.mark.parametrize("bucket", ["another-bucket", f"{VIDEOS}-2", "guardianberry"])
def test_a_camera_cannot_upload_elsewhere(bucket: str) -> None:
    assert not is_allowed(camera_statements(), "s3:PutObject", f"arn:aws:s3:::{bucket}/key", UPLOAD)


def test_names_with_dots_go_into_the_path_where_the_certificate_fits() -> None:
    """README, "Names with dots"."""
    s3 = SESSION.client("s3", region_name=REGION, aws_access_key_id="a", aws_secret_access_key="b")
    urls = {
        bucket: s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "key"}).split("?")[0]
        for bucket in ("guardianberry.videos", "guardianberry-videos")
    }
    assert urls["guardianberry.videos"] == f"https://s3.{REGION}.amazonaws.com/guardianberry.videos/key"
    assert re.fullmatch(
        r"https://guardianberry-videos\.s3[.a-z0-9-]*\.amazonaws\.com/key", urls["guardianberry-videos"]
    )


# ---- The README's commands, and the keys that come of them -----------------------------------------------------------


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
def test_from_the_daemons_camera_to_the_owners_mail(deployed: Moto, home: Path, tmp_path: Path, models: Path) -> None:
    """The picture's mail, and, once the daemon is gone, that of its silence."""
    stack = Stack(deployed)
    deployed.check_keys(on=True)
    environment = {"HOME": str(home), "AWS_ENDPOINT_URL_S3": deployed.url, "TZ": "Australia/Adelaide"}
    stand_in = {"STAND_IN_VIDEO": str(SCENE), "STAND_IN_START_S": "4"}
    short = {"CLOCK_WAIT_S": 0, "MAX_RECORDING_DURATION_S": 4, "PRE_ROLL_S": 1, **SMALL_INPUT}
    owners = {"IMAGES_BUCKET": IMAGES, "VIDEOS_BUCKET": VIDEOS, "CAMERA_NAME": "Front door", "HEARTBEAT_S": 60}
    with Daemon(tmp_path / "daemon", models, env=environment | stand_in, **short, **owners) as daemon:
        daemon.wait_for_log("video .*: uploaded", timeout_s=90)
        assert daemon.terminate()[0] == 0
    deployed.check_keys(on=False)
    images = {one.key: one.metadata for one in deployed.objects(IMAGES)}
    clips = [one.metadata for one in deployed.objects(VIDEOS) if one.key.endswith(".mp4")]
    assert images
    assert clips
    assert {clip["event"] for clip in clips} <= {image["event"] for image in images.values()}
    assert not [secret for secret in camera_keys(home).values() if secret in daemon.log]
    stack.alert()
    mails = stack.people.take()
    assert len(mails) == len(images)
    for mail in mails:
        link = re.findall(r"^http\S+", mail["Message"], re.MULTILINE)[0]
        with urllib.request.urlopen(link, timeout=10) as picture:
            assert picture.read(2) == b"\xff\xd8"
        told = images[link.partition("?")[0].rpartition("/")[2]]
        start = datetime.fromtimestamp(int(told["recording_start_time"]), ZoneInfo("Australia/Adelaide"))
        assert told["local_time"] == start.isoformat()
        assert mail["Subject"] == f"Front door: person, {told['confidence']} %, {start:%H:%M}"
        assert f"Time: {start:%Y-%m-%d %H:%M:%S} UTC{start.isoformat()[-6:]}" in mail["Message"]
        assert re.search(r"^Upload began [0-9.]+ s after the frame$", mail["Message"], re.MULTILINE)
    assert_silence_is_told(stack, heartbeats(deployed), daemon.log)


def heartbeats(moto: Moto) -> list[StoredObject]:
    return [one for one in moto.objects(VIDEOS, everything=True) if one.key.startswith("alive/")]


def assert_silence_is_told(stack: Stack, beats: list[StoredObject], log: str) -> None:
    told = json.loads(beats[-1].body)
    assert set(told) == set(HEARTBEAT)
    assert (told["camera_name"], told["armed"], told["camera_relaunches"]) == ("Front door", True, 0)
    assert re.fullmatch(r"alive/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-9]{10}", beats[-1].key)
    assert beats[-1].key.endswith(f"/{told['time']}")
    assert beats[-1].key.split("/")[1] not in log
    for silent_min, subjects in ((1, []), (14, []), (16, ["Front door: silent since"]), (30, [])):
        stack.call("Watch", {}, now_s=told["time"] + silent_min * 60)
        assert [mail["Subject"][:24] for mail in stack.people.take()] == subjects


def test_the_key_to_look_with_reads_both_buckets_and_changes_nothing(deployed: Moto, cli: AwsCli, home: Path) -> None:
    run_commands(readme_commands("A key to look with"), cli, HOME=str(home))
    text = (home / ".aws" / "credentials").read_text()
    assert stat.S_IMODE((home / ".aws" / "credentials").stat().st_mode) == 0o600
    profile = configparser.ConfigParser()
    profile.read_string(text)
    keys = dict(profile["guardianberry"])
    assert profile["default"]["aws_access_key_id"] != keys["aws_access_key_id"], "the first profile is left alone"
    there = {"Key": "there", "Body": b"evidence"}
    for bucket in (VIDEOS, IMAGES):
        deployed.service("s3").put_object(Bucket=bucket, **there)
    deployed.check_keys(on=True)
    s3 = deployed.service("s3", **keys)
    for bucket in (VIDEOS, IMAGES):
        assert status_of(s3, "list_objects_v2", {"Bucket": bucket}) == 200
        assert status_of(s3, "get_object", {"Bucket": bucket, "Key": "there"}) == 200
        for call, asked in (("put_object", there), ("delete_object", {"Key": "there"}), ("get_bucket_policy", {})):
            assert status_of(s3, call, {"Bucket": bucket, **asked}) == 403
    assert status_of(deployed.service("iam", **keys), "list_users", {}) == 403


def test_the_mail_that_the_readme_lets_you_try(deployed: Moto, cli: AwsCli) -> None:
    stack = Stack(deployed)
    run_commands(readme_commands("Try the mail"), cli)
    stack.alert()
    [mail] = stack.people.take()
    assert mail["Subject"] == "Test: person, 87 %"


def test_the_commands_without_the_functions(deployed: Moto, cli: AwsCli, home: Path) -> None:
    """As somebody with another S3 server runs them, with Python and boto3 in the way."""
    start_s = int(time.time()) - 16 * 60
    metadata = {"confidence": "87", "camera_name": "Front door", "local_time": "2026-11-22T21:14:05+01:00"}
    s3 = deployed.service("s3")
    s3.put_object(Bucket=IMAGES, Key="key.jpg", Body=b"picture", Metadata=metadata)
    s3.put_object(Bucket=VIDEOS, Key=f"alive/front-door/{start_s}", Body=b'{"camera_name": "Front door"}')
    python = Path(sys.executable).parent
    path = cli.path.replace(":/usr/bin", f":{python}:/usr/bin", 1)
    said = run_commands(
        readme_commands("Without the functions, and on other S3 servers"),
        cli,
        **{**deployed.environment(), "PATH": path, "HOME": str(home)},
    )
    subjects = [line for line in said.splitlines() if line.startswith("Subject: ")]
    assert len(subjects) == 3
    assert subjects[0] == "Subject: Front door: person, 87 %, 21:14"
    assert subjects[1].startswith("Subject: Front door: silent since ")
    assert subjects[2].startswith("Subject: NOT WELL (1): ")


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
    heartbeat, told = (f"{prefix}/front-door/1700000000" for prefix in ("alive", "told"))
    put = {"Bucket": VIDEOS, "Body": b"{}", "IfNoneMatch": "*"}
    keys = camera_keys(home)
    assert status_of(deployed.service("s3", **keys), "put_object", {**put, "Key": heartbeat}) == 200
    assert status_of(deployed.service("s3", **keys), "put_object", {**put, "Key": told}) == 403
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
        in_order = sorted(properties["LifecycleConfiguration"]["Rules"], key=lambda rule: rule["Id"])
        assert lifecycle(s3, bucket) == in_order
        policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
        assert policy == wanted[f"{name}Policy"]["Properties"]["PolicyDocument"]

    policies = {policy["PolicyName"]: policy for policy in iam.list_policies(Scope="Local")["Policies"]}
    assert set(policies) == {"guardianberry-upload", "guardianberry-view"}
    for name, resource in (("guardianberry-upload", "UploadOnly"), ("guardianberry-view", "ViewOnly")):
        policy = policies[name]
        asked = {"PolicyArn": policy["Arn"], "VersionId": policy["DefaultVersionId"]}
        document = iam.get_policy_version(**asked)["PolicyVersion"]["Document"]
        assert document == wanted[resource]["Properties"]["PolicyDocument"]
    for camera in ("guardianberry-front-door", "guardianberry-garage"):
        attached = iam.list_attached_user_policies(UserName=camera)["AttachedPolicies"]
        assert [one["PolicyArn"] for one in attached] == [policies["guardianberry-upload"]["Arn"]]
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
    [suffix] = event["Filter"]["S3Key"]["Rules"]
    assert suffix == {"Name": "suffix", "Value": ".jpg"}
    [by_hand] = notice["Filter"]["Key"]["FilterRules"]
    assert {name: value.lower() for name, value in by_hand.items()} == suffix


def lifecycle(s3: Any, bucket: str) -> list[dict[str, Any]]:
    """A bucket's rules in the words of CloudFormation, by their ids."""
    rules = []
    for rule in s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]:
        words = {"Id": rule["ID"], "Status": rule["Status"]}
        if "Expiration" in rule:
            days = rule["Expiration"]["Days"]
            words["ExpirationInDays"] = days if rule["Filter"]["Prefix"] else str(days)  # a parameter is a string
        if rule["Filter"]["Prefix"]:
            words["Prefix"] = rule["Filter"]["Prefix"]
        if "AbortIncompleteMultipartUpload" in rule:
            words["AbortIncompleteMultipartUpload"] = rule["AbortIncompleteMultipartUpload"]
        rules.append(words)
    return sorted(rules, key=lambda rule: rule["Id"])


def test_what_is_of_no_use_later_goes_after_two_days() -> None:
    rules = template_resources()["Videos"]["Properties"]["LifecycleConfiguration"]["Rules"]
    days = {rule["Prefix"]: rule["ExpirationInDays"] for rule in rules if "Prefix" in rule}
    assert days == {"alive/": 2, "live/": 2}
    assert all(rule["Status"] == "Enabled" for rule in rules)


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
