"""aws/alert_mail.py: from an image in the bucket to the mail that an owner gets, with the template's own text."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import types
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aws import alert_mail
from tests import aws_rig
from tests.aws_cli import AwsCli, expand_for_each
from tests.aws_functions import Stack
from tests.aws_policies import UPLOAD, allowed_of_all, role_statements, template_resources
from tests.aws_rig import IMAGES, README, REGION, ROOT, VIDEOS, Moto, readme_commands, run_commands
from tests.s3_server import free_port

# Fixtures
moto_process = aws_rig.moto_process
home = aws_rig.home

PROGRAM = ROOT / "aws" / "alert_mail.py"
UUID = "ab082dfc-bd01-5988-9adb-631ad83e7604"
# As the daemon writes it.
IMAGE = {
    "rpi_serial_no": "10000000deadbeef",
    "recording_start_time": "1795378445",
    "confidence": "87",
    "width": "640",
    "height": "480",
    "alert_latency_ms": "153",
    "camera_name": "Front door",
    "local_time": "2026-11-22T21:14:05+01:00",
    "event": "1f0b7bd8-4f0c-4a3a-9a53-2a4b4d1f2d33",
}
VIDEO = {**IMAGE, "max_confidence": "91", "max_people_found": "1", "duration": "12"}


@pytest.fixture(scope="module")
def stack(moto_process: Moto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The README's ten minutes, once for all tests here: each puts objects of its own."""
    folder = tmp_path_factory.mktemp("owner")
    (folder / "home").mkdir()
    deploy = readme_commands("Ten minutes").partition("aws iam create-access-key")[0]
    with AwsCli(folder / "cli", endpoint_url=moto_process.url, home=folder / "home", region=REGION) as cli:
        run_commands(deploy, cli)
    yield Stack(moto_process)
    moto_process.reset()


def mail_for(stack: Stack, key: str = f"{UUID}.jpg", **metadata: str) -> tuple[str, str]:
    """The mail for an image with this metadata."""
    stack.moto.service("s3").delete_object(Bucket=IMAGES, Key=key)
    stack.clear()
    stack.put(IMAGES, key, b"\xff\xd8picture", **metadata)
    stack.alert()
    [mail] = stack.people.take()
    return mail["Subject"], mail["Message"]


def test_the_text_in_the_template_is_the_file() -> None:
    text = PROGRAM.read_text()
    assert template_resources()["AlertMail"]["Properties"]["Code"]["ZipFile"] == text
    assert len(text) < 4096, "CloudFormation's bound for code in a template was that for long"


def test_the_template_takes_one_call_to_deploy() -> None:
    """Above this size `aws cloudformation deploy` needs a bucket for it."""
    assert aws_rig.TEMPLATE.stat().st_size < 51_200


def test_an_image_becomes_the_mail_that_the_readme_shows(stack: Stack) -> None:
    subject, body = mail_for(stack, **IMAGE)
    assert subject == "Front door: person, 87 %, 21:14"
    shown = README.split("<!-- mail -->")[1].split("```")[1]
    shown = "\n".join(line.strip() for line in shown.strip().splitlines())
    body = re.sub(r"http://127.0.0.1:\d+", f"https://s3.{REGION}.amazonaws.com", body)
    body = body.replace(f"{UUID}.jpg", "...")
    body = re.sub(r"\.\.\.\?.*", "...", body)
    assert f"Subject: {subject}\n\n{body}" == shown


def test_the_link_shows_the_picture_and_no_web_page(stack: Stack) -> None:
    stack.clear()
    stack.moto.service("s3").put_object(Bucket=IMAGES, Key="page.jpg", Body=b"<script>", ContentType="text/html")
    stack.alert()
    link = re.findall(r"^http\S+", stack.people.take()[-1]["Message"], re.MULTILINE)[0]
    with urllib.request.urlopen(link, timeout=10) as answer:
        assert answer.read() == b"<script>"
        assert answer.headers["Content-Type"] == "image/jpeg"
    assert "X-Amz-Expires=43200" in link
    assert "AWS4-HMAC-SHA256" in link


def test_a_lost_view_is_no_person(monkeypatch: pytest.MonkeyPatch) -> None:
    [(subject, body)], _ = tell(monkeypatch, {**IMAGE, "confidence": "0"})
    assert subject == "Front door: VIEW LOST, 21:14"
    assert "Covered, turned or out of focus" in body
    assert "0 %" not in subject + body


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"camera_name": ""}, "camera beef: person, 87 %, 21:14"),
        ({"camera_name": "", "rpi_serial_no": ""}, "camera ?: person, 87 %, 21:14"),
        ({"local_time": ""}, "Front door: person, 87 %, 20:14"),
        ({"local_time": "", "recording_start_time": ""}, "Front door: person, 87 %"),
        ({"confidence": ""}, "Front door: picture, 21:14"),
        ({"confidence": "many"}, "Front door: picture, 21:14"),
        ({"alert_latency_ms": "NaN"}, "Front door: person, 87 %, 21:14"),
        ({"recording_start_time": "9" * 400, "local_time": "never"}, "Front door: person, 87 %"),
        ({"local_time": "0001-01-01T00:00:00+23:59"}, "Front door: person, 87 %, 00:00"),
    ],
)
def test_what_is_missing_or_odd_is_left_out(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], subject: str
) -> None:
    [(title, _)], _ = tell(monkeypatch, {**IMAGE, **change})
    assert title == subject


def test_another_programs_image_is_told_too(stack: Stack) -> None:
    subject, body = mail_for(stack, key="holiday 1/ä&b.jpg")
    assert subject == "camera ?: picture"
    assert "prefix=holiday%201%2F%C3%A4%26b.jpg" in body


def test_ceph_writes_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    ceph = {name.replace("_", "-"): value for name, value in IMAGE.items()}
    assert tell(monkeypatch, ceph) == tell(monkeypatch, IMAGE)
    assert tell(monkeypatch, ceph)[0][0][0] == "Front door: person, 87 %, 21:14"


HOSTILE = [
    "x\r\nBcc: everybody@example.com",
    "x\nSubject: forged",
    "http://evil.example/login",
    "evil.example",
    "<script>alert(1)</script>",
    "a" * 1900,
    "\u202eabc\u2028def",
    "{0.__class__} %s ${HOME} $(id)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_metadata_makes_no_header_no_line_and_no_link(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the module itself: HTTP headers could not carry all of this, another server's answer may."""
    sent, posted = tell(monkeypatch, dict.fromkeys(IMAGE, text))
    [(title, body)] = sent
    assert title.isascii()
    assert title.isprintable()
    assert 0 < len(title) < 100
    assert len(body.splitlines()) == len(tell(monkeypatch, {})[0][0][1].splitlines())
    assert re.findall(r"\S*evil\S*|\S*://\S*", body.split("\n\n")[0]) in ([], ["evil"])
    assert not re.search(r"[<>{}$.:/@](?! )", title.replace(": ", " "))
    assert len(body) < 4000
    [headers] = posted
    assert all("\n" not in value for value in headers.values())
    assert capsys.readouterr().out == ""


class OddS3:
    """An S3 server that answers a HeadObject with any metadata at all."""

    meta = types.SimpleNamespace(region_name=REGION)

    def __init__(self, metadata: dict[str, str]) -> None:
        self._metadata = metadata

    def client(self, _service: str, **_options: Any) -> OddS3:
        return self

    def generate_presigned_url(self, *_: Any) -> str:
        return "https://signed"

    def head_object(self, **_: Any) -> dict[str, Any]:
        return {"Metadata": self._metadata}


class Phone:
    """What ntfy would be sent."""

    def __init__(self) -> None:
        self.got: list[urllib.request.Request] = []

    def open(self, request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert 0 < timeout < 60
        self.got.append(request)
        return io.BytesIO()


def tell(monkeypatch: pytest.MonkeyPatch, metadata: dict[str, str]) -> tuple[list[Any], list[Any]]:
    """The mails and the push messages for an image of which S3 says this."""
    sent: list[tuple[str, str]] = []
    phone = Phone()
    monkeypatch.setattr(alert_mail, "boto3", OddS3(metadata))
    monkeypatch.setattr(alert_mail, "PUSH_URL", "https://ntfy.example/topic")
    monkeypatch.setattr(alert_mail, "send", lambda title, body: sent.append((title, body)))
    monkeypatch.setattr(urllib.request, "urlopen", phone.open)
    alert_mail.tell(IMAGES, f"{UUID}.jpg")
    return sent, [request.headers for request in phone.got]


def test_s3s_test_message_and_odd_ones_are_told(stack: Stack) -> None:
    test = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": IMAGES}
    odd: list[Any] = [{"Records": [5]}, {"Records": [{"s3": {"bucket": {"name": IMAGES}, "object": {"key": 7}}}]}, []]
    for message in (test, *odd):
        stack.clear()
        stack.call("AlertMail", {"Records": [{"Sns": {"Message": json.dumps(message)}}]})
        [mail] = stack.people.take()
        assert mail["Subject"] == "GuardianBerry: S3 sent a test or odd message"
    stack.call("AlertMail", {"Records": [{"Sns": {"Message": "no JSON"}}]})
    assert len(stack.people.take()) == 1


@pytest.mark.parametrize("broken", ["the object is gone", "no permission", "the phone's server is down"])
def test_whatever_fails_the_mail_goes_out(stack: Stack, broken: str) -> None:
    """Without permission: a bucket that its role does not know."""
    bucket, push_url = IMAGES, ""
    if broken == "the object is gone":
        stack.moto.service("s3").delete_object(Bucket=IMAGES, Key="fails.jpg")
    elif broken == "no permission":
        bucket = VIDEOS
        stack.put(VIDEOS, "fails.mp4", **VIDEO)
    else:
        stack.put(IMAGES, "fails.jpg", **IMAGE)
        push_url = f"http://127.0.0.1:{free_port()}/topic"
    stack.clear()
    key = "fails.mp4" if bucket == VIDEOS else "fails.jpg"
    stack.call("AlertMail", s3_message(bucket, key), PUSH_URL=push_url)
    [mail] = stack.people.take()
    known = {"the object is gone": "camera ?: picture", "no permission": "camera ?: clip"}
    assert mail["Subject"] == known.get(broken, "Front door: person, 87 %, 21:14")
    assert f"prefix={key}" in mail["Message"]


class Ntfy:
    """A server that takes what a phone is to be shown."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], str]] = []
        ntfy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                ntfy.got.append((dict(self.headers), body.decode()))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/topic"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Ntfy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def test_the_phone_gets_the_picture(stack: Stack) -> None:
    stack.clear()
    stack.put(IMAGES, "phone.jpg", b"\xff\xd8picture", **IMAGE)
    with Ntfy() as ntfy:
        stack.alert(PUSH_URL=ntfy.url)
    [mail] = stack.people.take()
    [(headers, body)] = ntfy.got
    assert headers["Title"] == mail["Subject"] == "Front door: person, 87 %, 21:14"
    assert headers["Filename"] == "alert.jpg"
    assert headers["Attach"] in mail["Message"]
    with urllib.request.urlopen(headers["Attach"], timeout=10) as picture:
        assert picture.read() == b"\xff\xd8picture"
    assert "2026-11-22 21:14:05" in body


def test_a_text_message_is_the_subject_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signed link would fill 15 SMS."""
    published: list[dict[str, Any]] = []
    sns = types.SimpleNamespace(publish=lambda **asked: published.append(asked))
    monkeypatch.setattr(alert_mail, "boto3", types.SimpleNamespace(client=lambda _service: sns))
    monkeypatch.setattr(alert_mail, "TOPIC", "topic")
    alert_mail.send("Front door: person", "a long text")
    [asked] = published
    assert asked["MessageStructure"] == "json"
    assert json.loads(asked["Message"]) == {"default": "a long text", "sms": "Front door: person"}


# ---- What mails nobody -----------------------------------------------------------------------------------------------

UNTOLD = [
    (IMAGES, "key.txt"),  # ./launch.sh --check --upload
    (IMAGES, "key.part"),
    (VIDEOS, f"{UUID}.mp4"),
    (VIDEOS, f"live/{UUID}/0001.part"),
    (VIDEOS, f"live/{UUID}/0002.jpg"),
    (VIDEOS, f"best/{UUID}.jpg"),
    (VIDEOS, "alive/front-door/1795378445"),
    (VIDEOS, "told/front-door/1795378445-silent"),
]


def test_only_images_are_told(stack: Stack) -> None:
    stack.clear()
    for bucket, key in UNTOLD:
        stack.put(bucket, key, **IMAGE)
    assert stack.machines.take() == []
    videos = template_resources()["Videos"]["Properties"]
    assert "NotificationConfiguration" not in videos


def s3_message(bucket: str, key: str) -> dict[str, Any]:
    return {"Records": [{"s3": {"bucket": {"name": bucket}, "object": {"key": key}}}]}


def test_with_clip_mails_a_clip_is_told_and_nothing_under_a_prefix(stack: Stack) -> None:
    """S3 calls the function for whatever ends in .mp4; a stolen key can put that anywhere."""
    [wired] = template_resources(clip_mails=True)["Videos"]["Properties"]["NotificationConfiguration"][
        "LambdaConfigurations"
    ]
    assert wired["Filter"]["S3Key"]["Rules"] == [{"Name": "suffix", "Value": ".mp4"}]
    assert wired["Function"] == "arn of AlertMail"
    permission = template_resources(clip_mails=True)["ClipMailPermission"]["Properties"]
    assert permission["SourceArn"] == f"arn:aws:s3:::{VIDEOS}"
    stack.clear()
    for prefix in ("live/", "best/", "alive/", "told/", "other/"):
        stack.call("AlertMail", s3_message(VIDEOS, f"{prefix}x.mp4"))
        stack.call("AlertMail", s3_message(VIDEOS, f"{prefix}x.jpg"))
    assert stack.people.take() == []
    stack.put(VIDEOS, f"{UUID}.mp4", **VIDEO)
    stack.call("AlertMail", s3_message(VIDEOS, f"{UUID}.mp4"))
    [mail] = stack.people.take()
    # The deployed role may not read clips, and the mail goes out all the same; its name comes with ClipMails=yes.
    assert mail["Subject"] == "camera ?: clip"
    assert f"{UUID}.mp4" in mail["Message"]


def test_a_clips_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(alert_mail, "boto3", OddS3(VIDEO))
    monkeypatch.setattr(alert_mail, "send", lambda title, body: sent.append((title, body)))
    alert_mail.handler(s3_message(VIDEOS, f"{UUID}.mp4"))
    assert [title for title, _ in sent] == ["Front door: clip, 91 %, 21:14"]


# ---- What its role may do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_mails", [False, True])
def test_of_all_the_actions_that_aws_has_the_mails_role_is_allowed_these(*, clip_mails: bool) -> None:
    image, clip, part = (
        f"arn:aws:s3:::{IMAGES}/k.jpg",
        f"arn:aws:s3:::{VIDEOS}/k.mp4",
        f"arn:aws:s3:::{VIDEOS}/live/k.part",
    )
    buckets = (f"arn:aws:s3:::{IMAGES}", f"arn:aws:s3:::{VIDEOS}")
    log = "arn of AlertMailLog"
    statements = role_statements("AlertMailRole", clip_mails=clip_mails)
    allowed = allowed_of_all(statements, (image, clip, part, *buckets, "mail-topic", "topic", log, "*"), UPLOAD)
    clips = {("s3:getobject", clip)} if clip_mails else set()
    logs = {("logs:createlogstream", log), ("logs:putlogevents", log)}
    assert allowed == {("s3:getobject", image), ("sns:publish", "mail-topic"), *logs, *clips}
    trusted = template_resources()["AlertMailRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert [one["Principal"] for one in trusted] == [{"Service": "lambda.amazonaws.com"}]


def test_people_subscribe_to_the_mails_and_machines_to_the_alerts() -> None:
    resources = template_resources()
    assert resources["AlertByEmail"]["Properties"]["TopicArn"] == "mail-topic"
    wire = resources["AlertsToMail"]["Properties"]
    assert (wire["TopicArn"], wire["Protocol"], wire["Endpoint"]) == ("topic", "lambda", "arn of AlertMail")
    permission = resources["AlertMailPermission"]["Properties"]
    assert (permission["Principal"], permission["SourceArn"]) == ("sns.amazonaws.com", "topic")
    failed = resources["AlertMailFailed"]["Properties"]["DestinationConfig"]["OnFailure"]
    assert failed == {"Destination": "mail-topic"}
    parameters = expand_for_each(aws_rig.TEMPLATE, {})["Parameters"]
    assert parameters["PushUrl"]["NoEcho"] is True
    assert not re.fullmatch(parameters["PushUrl"]["AllowedPattern"], "http://ntfy.example/topic")


# ---- As a command ----------------------------------------------------------------------------------------------------


def test_as_a_command_it_prints_the_mail(stack: Stack) -> None:
    stack.put(IMAGES, "by-hand.jpg", **IMAGE)
    command = [sys.executable, str(PROGRAM), IMAGES, "by-hand.jpg"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **stack.moto.environment()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Subject: Front door: person, 87 %, 21:14\n\n")
    assert "console.aws.amazon.com" not in done.stdout
