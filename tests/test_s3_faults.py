"""Everything that S3 and the network on the way to it can do wrong, over real connections."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from guardianberry.doctor.s3 import check_uploads
from guardianberry.filenames import ImageName
from guardianberry.upload.descriptions import needed_descriptions
from guardianberry.upload.error_log import UploadErrorLog
from guardianberry.upload.errors import NO_BUCKET, NO_CREDENTIALS, REJECTED, UploadError
from guardianberry.upload.queue import MediaType
from guardianberry.upload.s3 import S3
from guardianberry.upload.upload_file import Body
from tests.fakes import FakeClock
from tests.faulty_proxy import Answer, FaultyProxy
from tests.raw_server import DONE, RawServer, read_body
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.upload_rig import Rig, lines, mp4, quick_clock, quick_pause, rig_of, wait_until, warnings


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
def rig(
    tmp_path: Path, s3: S3Server, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Rig]:
    """Reaches the server through the proxy."""
    caplog.set_level(logging.DEBUG)
    with rig_of(s3, tmp_path, monkeypatch, url=proxy.url) as rig:
        yield rig


def recoveries(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in lines(caplog, logging.INFO) if line.startswith("uploads work again")]


# What S3 answers

ANSWERS = {
    "unknown key": (Answer(403, "InvalidAccessKeyId"), "check the access key"),
    "wrong secret": (Answer(403, "SignatureDoesNotMatch"), "check the access key"),
    "expired": (Answer(400, "ExpiredToken"), "have expired"),
    "bad token": (Answer(400, "InvalidToken"), "check the access key"),
    "skewed clock": (Answer(403, "RequestTimeTooSkewed"), "timedatectl"),
    "no permission": (Answer(403, "AccessDenied"), "s3:PutObject"),
    "forbidden without a word": (Answer(403), "s3:PutObject"),
    "no bucket": (Answer(404, "NoSuchBucket"), "create it"),
    "no bucket without a word": (Answer(404), "create it"),
    "other region": (Answer(400, "AuthorizationHeaderMalformed"), "AWS_DEFAULT_REGION"),
    "slow down": (Answer(503, "SlowDown"), "slow down"),
    "overloaded": (Answer(503), "slow down"),
    "too many": (Answer(429, "TooManyRequests"), "slow down"),
    "internal error": (Answer(500, "InternalError"), "reports an internal error"),
    "bad gateway": (Answer(502), "reports an internal error"),
    "conflict": (Answer(409, "ConditionalRequestConflict"), "busy with the same object"),
    "timed out": (Answer(400, "RequestTimeout"), "busy with the same object"),
    "damaged on the way": (Answer(400, "BadDigest"), "received it incompletely"),
    "quota": (Answer(403, "QuotaExceeded"), "quota"),
    "suspended": (Answer(403, "UserSuspended"), "suspended this user"),
    "too large": (Answer(400, "EntityTooLarge"), "MAX_RECORDING_DURATION_S"),
    "too large for a proxy": (Answer(413), "client_max_body_size"),
    "disk full": (Answer(507, "XMinioStorageFull"), "disk is full"),
    "unknown": (Answer(422, "Unprocessable"), "HTTP 422 Unprocessable"),
    "hangs up": (Answer(0), "broke or stalled"),
    "not s3": (Answer(200), "not from an S3 server"),
    "not implemented": (Answer(501, "NotImplemented"), "does not support"),
}


@pytest.mark.parametrize(("answer", "advice"), ANSWERS.values(), ids=ANSWERS.keys())
def test_each_error_is_logged_once_with_what_to_do_and_nothing_is_lost(
    rig: Rig, s3: S3Server, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture, answer: Answer, advice: str
) -> None:
    for number in range(2):
        rig.add_image(1_700_000_000 + number)
    proxy.answer = answer
    uploader = rig.start(clock=quick_clock)
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    (line,) = warnings(caplog)
    assert advice in line
    assert len(rig.left()) == 2
    assert recoveries(caplog) == []
    proxy.answer = None
    rig.wait_until_empty()
    assert len(s3.keys(rig.images_bucket)) == 2
    assert len(recoveries(caplog)) <= 1, "it is said twice"
    assert len(warnings(caplog)) == 1


def test_recovery_is_logged_with_what_is_still_queued(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        rig.add_image(1_700_000_000 + number)
        rig.add_video(1_700_000_000 + number)
    proxy.answer = Answer(503, "SlowDown")
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    proxy.answer = None
    rig.wait_until_empty()
    assert recoveries(caplog) == ["uploads work again; still queued: 3 images, 3 videos"]


def test_the_same_error_is_logged_again_when_it_comes_back(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    uploader = rig.start()
    for count in (1, 2):
        failed_tries = uploader.counters().failed_tries
        proxy.answer = Answer(503, "SlowDown")
        rig.add_image(1_700_000_000 + count)
        uploader.sweep_soon()
        wait_until(lambda before=failed_tries: uploader.counters().failed_tries >= before + 3, "it gives up")
        proxy.answer = None
        rig.wait_until_empty()
        assert len(warnings(caplog)) == count


def test_the_same_error_is_logged_again_when_uploads_had_worked_in_between(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        rig.add_image(1_700_000_000 + number)
    once = [Answer(503, "SlowDown")] * 2  # botocore asks a second time
    proxy.answers = [*once, None, *once]
    rig.start()
    rig.wait_until_empty()
    assert len(warnings(caplog)) == 2
    assert [line.split(";")[1] for line in recoveries(caplog)] == [
        " still queued: 3 images, 0 videos",
        " still queued: 2 images, 0 videos",
    ]


def test_an_object_that_is_already_there_is_done(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    rig.add_image(1_700_000_000)
    proxy.answer = Answer(412, "PreconditionFailed")
    rig.start()
    rig.wait_until_empty()
    assert warnings(caplog) == []


def test_one_bucket_that_fails_does_not_block_the_other(
    rig: Rig, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        rig.add_image(1_700_000_000 + number)
        rig.add_video(1_700_000_000 + number)
    uploader = rig.start(images_bucket=f"nobody.made.{rig.images_bucket}")
    wait_until(lambda: uploader.counters().failed_tries >= 4, "it gives up")
    assert uploader.counters().videos == 3
    (line,) = warnings(caplog)
    assert line.startswith("uploads of images fail: the bucket does not exist")
    s3.create_bucket(f"nobody.made.{rig.images_bucket}")
    rig.wait_until_empty()
    assert recoveries(caplog) == ["uploads work again; still queued: 3 images, 0 videos"]


def test_a_file_that_s3_rejects_is_set_aside_and_the_others_go_on(
    rig: Rig, s3: S3Server, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    poison = rig.add_image(1_700_000_005)
    for number in range(5):
        rig.add_image(1_700_000_000 + number)
    clock = FakeClock()
    proxy.refused_text, proxy.refusal = b"recording_start_time: 1700000005", Answer(418, "Teapot")
    uploader = rig.start(clock=clock)
    wait_until(lambda: uploader.counters().images == 5, "the others are held up")
    for tries, waits_s in enumerate([0, 1, 4, 16, 64, 256, 300], start=1):
        clock.sleep(waits_s)
        uploader.sweep_soon()
        wait_until(lambda tries=tries: uploader.counters().failed_tries == tries, "it is not tried again")
    assert rig.left() == [poison.name]
    (line,) = warnings(caplog)
    assert line == (
        f"uploads of some files (such as {poison.name}) fail: the S3 server rejects them with a code that is not known"
        " here; its manual or its log may explain it (HTTP 418 Teapot)"
    )
    proxy.refused_text = b""
    clock.sleep(300)  # an image waits no longer
    uploader.sweep_soon()
    rig.wait_until_empty()


def test_the_same_unknown_answer_to_all_files_is_one_line_and_all_go_at_once_when_it_is_over(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()  # it stands still, so that only the success can end a file's pause
    for number in range(6):
        rig.add_image(1_700_000_000 + number)
    proxy.answer = Answer(422, "Unprocessable")
    uploader = rig.start(clock=clock)
    wait_until(lambda: uploader.counters().failed_tries >= 5, "it gives up")
    proxy.answer = None
    rig.alert(uploader, 1_700_000_010)
    rig.wait_until_empty()
    assert len(warnings(caplog)) == 1
    assert len(recoveries(caplog)) == 1


@pytest.mark.parametrize("answer", [Answer(500, "InternalError"), Answer(0)])
def test_a_file_that_always_fails_does_not_hold_the_others_up(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    """Four of each media type, at the head of the queue: more than make it look like the server's fault."""
    poison = [add(1_600_000_000 + number) for number in range(4) for add in (rig.add_image, rig.add_video)]
    proxy.refused_text, proxy.refusal = b"recording_start_time: 160000000", answer
    for number in range(5):
        rig.add_image(1_700_000_000 + number)
        rig.add_video(1_700_000_000 + number)
    uploader = rig.start()
    wait_until(lambda: sum(uploader.counters()[:2]) == 10, "the others are held up", timeout_s=120)
    wait_until(lambda: uploader.counters().failed_tries >= 9, "it gives up")
    wait_until(lambda: rig.left() == sorted(path.name for path in poison), "others are left")
    assert len(warnings(caplog)) == 1


def test_after_an_outage_the_order_is_the_usual_one(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The files that failed meanwhile do not have to wait for the others."""
    starts = [1_700_000_000 + number for number in range(8)]
    for start in starts:
        rig.add_image(start)
        rig.add_video(start)
    proxy.answer = Answer(500, "InternalError")
    sleeps = threading.Event()

    def pause(event: threading.Event, timeout_s: float) -> None:
        if uploader.counters().failed_tries >= 16:  # the outage ends between two sweeps
            proxy.answer = None
            sleeps.set()
        quick_pause(event, timeout_s)

    uploader = rig.uploader(pause=pause)
    uploader.start()
    wait_until(sleeps.is_set, "it gives up")
    rig.wait_until_empty()
    names = [line.split()[1] for line in lines(caplog, logging.INFO) if ": uploaded" in line]
    assert [int(name.split("-")[0]) for name in names] == [starts[-1], *starts[:-1], *starts]


@pytest.mark.parametrize(
    ("header", "answer", "said"),
    [
        (b"x-amz-server-side-encryption", Answer(400, "InvalidRequest"), "does not support encryption at rest"),
        (b"x-amz-server-side-encryption", Answer(400, "InvalidArgument"), "does not support encryption at rest"),
        (b"x-amz-server-side-encryption", Answer(501, "NotImplemented"), "does not support encryption at rest"),
        (b"x-amz-checksum", Answer(400, "InvalidArgument"), "does not support checksums"),
    ],
)
def test_a_header_that_the_server_rejects_is_left_out_with_one_warning(
    rig: Rig,
    s3: S3Server,
    proxy: FaultyProxy,
    caplog: pytest.LogCaptureFixture,
    header: bytes,
    answer: Answer,
    said: str,
) -> None:
    """Ceph answers so to encryption over http, and 18.2 over https, too; others to checksums."""
    for number in range(4):
        rig.add_image(1_700_000_000 + number)
    proxy.refused_text, proxy.refusal = header, answer
    uploader = rig.start()
    rig.wait_until_empty()
    (line,) = warnings(caplog)
    assert said in line
    assert answer.code in line
    assert uploader.counters().failed_tries == 0
    assert sum(header in head for head in proxy.heads) <= 3, "it is not remembered"
    assert all(b"If-None-Match" in head for head in proxy.heads[4:])
    assert len(s3.keys(rig.images_bucket)) == 4


@pytest.mark.parametrize(("encryption", "lines_said"), [("AES256", 2), (None, 1)])
def test_the_check_says_when_an_answer_does_not_confirm_the_encryption(
    rig: Rig, encryption: str | None, lines_said: int
) -> None:
    """Ceph 16 over https stores in plain and says 200."""

    def take(connection: socket.socket, head: bytes) -> None:
        read_body(connection, head)
        connection.sendall(DONE)

    with RawServer(take) as server:
        rig.use(server.url)
        findings = list(check_uploads(S3(server_side_encryption=encryption), {"images": rig.images_bucket}))
    assert len(findings) == lines_said
    assert ("does not confirm the encryption at rest (AES256)" in findings[-1].text) is (encryption is not None)


def test_a_304_to_a_conditional_write_means_that_the_object_is_there(
    rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    rig.add_image(1_700_000_000)
    proxy.answer = Answer(304)
    rig.start()
    rig.wait_until_empty()
    assert warnings(caplog) == []


def test_a_server_without_conditional_writes_is_used_without_them(
    rig: Rig, s3: S3Server, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        rig.add_image(1_700_000_000 + number)
    proxy.refused_text, proxy.refusal = b"If-None-Match", Answer(501, "NotImplemented")
    rig.start()
    rig.wait_until_empty()
    assert proxy.connections == 6  # the condition is not tried again
    assert len(s3.keys(rig.images_bucket)) == 5
    assert warnings(caplog) == []


# What the network does


def test_an_upload_that_is_cut_is_done_again(
    rig: Rig, s3: S3Server, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    content = mp4(500_000)
    rig.add_video(1_700_000_000, content)
    proxy.cut_after_bytes = 100_000
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    proxy.cut_after_bytes = None
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.videos_bucket)
    assert stored.body == content
    assert len(warnings(caplog)) == 1


@pytest.mark.slow
def test_an_upload_that_stalls_ends_and_is_done_again(
    rig: Rig, s3: S3Server, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    rig.monkeypatch.setattr("guardianberry.upload.transport._CONNECT_TIMEOUT_S", 1.0)
    rig.monkeypatch.setattr("guardianberry.upload.transport._READ_TIMEOUT_S", 2.0)
    content = mp4(500_000)
    rig.add_video(1_700_000_000, content)
    proxy.stall_after_bytes = 100_000
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 1, "it hangs", timeout_s=60)
    proxy.stall_after_bytes = None
    rig.wait_until_empty()
    (stored,) = s3.objects(rig.videos_bucket)
    assert stored.body == content
    assert len(warnings(caplog)) == 1


def test_a_refused_connection_is_told_as_such(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.add_image(1_700_000_000)
    rig.use("http://127.0.0.1:1")
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    assert warnings(caplog) == [
        "uploads of all files fail: S3 cannot be reached; check the network (Connection refused)"
    ]


def test_a_name_that_does_not_resolve_is_a_network_fault(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.add_image(1_700_000_000)
    rig.use("https://s3.invalid")
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 1, "it hangs", timeout_s=60)
    (line,) = warnings(caplog)
    assert line.startswith("uploads of all files fail: S3 cannot be reached; check the network (")


def test_a_server_that_says_nonsense_is_no_s3(rig: Rig, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture) -> None:
    rig.add_image(1_700_000_000)
    proxy.answer = Nonsense(200)
    uploader = rig.start(clock=quick_clock)
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    assert len(rig.left()) == 1
    assert len(warnings(caplog)) == 1
    assert warnings(caplog)[0].isprintable()


class Nonsense(Answer):
    def encode(self) -> bytes:
        return b"SSH-2.0-OpenSSH_9.2\r\n\r\n\xff\xfe\0"


def test_a_mix_of_everything_loses_nothing_and_doubles_nothing(rig: Rig, s3: S3Server, proxy: FaultyProxy) -> None:
    """Forty files through a network that fails in another way at each connection."""
    contents = {}
    for number in range(20):
        for path in (rig.add_image(1_700_000_000 + number), rig.add_video(1_700_000_000 + number)):
            contents[path.read_bytes()] = path.name
    faults = [Answer(500, "InternalError"), Answer(503, "SlowDown"), Answer(0), Answer(409, "OperationAborted"), None]
    faults += [Answer(403, "RequestTimeTooSkewed"), Answer(403, "ExpiredToken"), None, Answer(404, "NoSuchBucket")]
    proxy.answers = faults * 2
    proxy.replies_to_lose = 6
    uploader = rig.start()
    for _ in range(20):
        uploader.sweep_soon()
        time.sleep(0.05)
    rig.wait_until_empty(60)
    assert proxy.lost_replies == 6
    stored = [each.body for bucket in (rig.images_bucket, rig.videos_bucket) for each in s3.objects(bucket)]
    assert len(stored) == 40
    assert set(stored) == set(contents)


# Credentials


def write_credentials(path: Path, *content: str) -> None:
    path.write_text("\n".join(["[default]", *content, ""]), encoding="utf-8")


def forget_credentials(rig: Rig, folder: Path) -> Path:
    """Only a file says who we are; the file's path. It is not there yet."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        rig.monkeypatch.delenv(name)
    path = folder / "credentials"
    rig.monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    return path


def test_without_credentials_one_line_and_no_connection_until_there_are_some(
    rig: Rig, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even to the address at which a machine of Amazon's would find some: here it is anybody's."""
    rig.monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    path = forget_credentials(rig, tmp_path)
    rig.add_image(1_700_000_000)
    with FaultyProxy() as anybody:
        rig.monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", anybody.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 4, "it gives up")
        assert anybody.connections == 0
    assert warnings(caplog) == [
        "uploads of all files fail: there are no AWS credentials; put them into /etc/environment or ~/.aws/credentials"
        " (see the README)"
    ]
    assert proxy.connections == 0
    write_credentials(path, f"aws_access_key_id={ACCESS_KEY}", f"aws_secret_access_key={SECRET_KEY}")
    rig.wait_until_empty()


def test_missing_credentials_are_told_before_the_first_event(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget_credentials(rig, tmp_path)
    rig.start()
    wait_until(lambda: warnings(caplog), "nothing is said")
    assert "there are no AWS credentials" in warnings(caplog)[0]


def test_a_sweep_of_empty_folders_does_not_end_a_fault_of_all_files(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was tried in it: the first event must not tell the same fault again."""
    images = MediaType("image", Path("images"), "bucket", ImageName)
    error_log = UploadErrorLog()
    for cause in (NO_CREDENTIALS, NO_BUCKET, REJECTED):
        error_log.failed(images, UploadError(cause))
    caplog.clear()
    error_log.nothing_failed()
    for cause in (NO_CREDENTIALS, NO_BUCKET, REJECTED):
        error_log.failed(images, UploadError(cause), "a.jpg")
    assert warnings(caplog) == [f"uploads of some files (such as a.jpg) fail: {REJECTED.text}"]


def test_credentials_that_are_replaced_on_the_disk_are_taken_up(
    rig: Rig, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = forget_credentials(rig, tmp_path)
    write_credentials(path, "aws_access_key_id=AKIATAKENBACK", "aws_secret_access_key=x")
    rig.add_image(1_700_000_000)
    proxy.refused_text = b"AKIATAKENBACK"
    proxy.refusal = Answer(403, "InvalidAccessKeyId")
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    write_credentials(path, f"aws_access_key_id={ACCESS_KEY}", f"aws_secret_access_key={SECRET_KEY}")
    rig.wait_until_empty()
    assert len(warnings(caplog)) == 1


def make_process(folder: Path, *, lifetime_s: int) -> str:
    """A `credential_process` whose keys are numbered and expire."""
    script = folder / "process"
    script.write_text(
        f"#!{sys.executable}\n"
        "import datetime, json, pathlib\n"
        f"counter = pathlib.Path({str(folder / 'count')!r})\n"
        "count = int(counter.read_text()) + 1 if counter.exists() else 1\n"
        "counter.write_text(str(count))\n"
        f"expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={lifetime_s})\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'AKIANUMBER{count}', 'SecretAccessKey': 'x',\n"
        "                  'SessionToken': f'token-{count}', 'Expiration': expires.isoformat()}))\n",
        encoding="utf-8",
    )
    script.chmod(0o700)
    return str(script)


def test_a_credential_process_is_asked_again_before_its_keys_expire(rig: Rig, s3: S3Server, tmp_path: Path) -> None:
    path = forget_credentials(rig, tmp_path)
    write_credentials(path, f"credential_process = {make_process(tmp_path, lifetime_s=300)}")
    uploader = rig.start()
    for number in range(3):
        rig.add_image(1_700_000_000 + number)
        uploader.sweep_soon()
        rig.wait_until_empty()
    assert int((tmp_path / "count").read_text()) >= 3  # boto3 renews what expires within ten minutes


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\necho the-secret-of-the-day >&2\nexit 1\n",
        "#!/bin/sh\necho the-secret-of-the-day\n",
        '#!/bin/sh\necho \'{"Version": 1, "SecretAccessKey": "the-secret-of-the-day"}\'\n',
        None,
    ],
    ids=["fails", "says no JSON", "leaves the key out", "is not there"],
)
def test_a_credential_process_that_fails_is_told_without_its_words(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str | None
) -> None:
    path = forget_credentials(rig, tmp_path)
    process = tmp_path / "process"
    if script is not None:
        process.write_text(script, encoding="utf-8")
        process.chmod(0o700)
    write_credentials(path, f"credential_process = {process}")
    rig.add_image(1_700_000_000)
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    (line,) = warnings(caplog)
    assert "credential_process" in line
    assert "the-secret-of-the-day" not in caplog.text
    make_process(tmp_path, lifetime_s=3600)
    rig.wait_until_empty()


def test_a_credential_process_that_fails_later_is_told_as_such(
    rig: Rig, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When its first keys have expired. It is no fault of the files, and nothing is sent."""
    path = forget_credentials(rig, tmp_path)
    process = Path(make_process(tmp_path, lifetime_s=5))
    write_credentials(path, f"credential_process = {process}")
    uploader = rig.start()
    wait_until(lambda: (tmp_path / "count").exists(), "it is not asked")
    process.write_text("#!/bin/sh\necho the-secret-of-the-day\n", encoding="utf-8")
    rig.add_image(1_700_000_000)
    uploader.sweep_soon()
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    (line,) = warnings(caplog)
    assert "credential_process" in line
    assert "the-secret-of-the-day" not in caplog.text
    assert proxy.connections == 0
    make_process(tmp_path, lifetime_s=3600)
    rig.wait_until_empty()


def test_a_set_up_that_boto3_cannot_read_is_told(rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tmp_path / "config"
    config.write_text("this is no configuration file\n", encoding="utf-8")
    rig.monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    rig.add_image(1_700_000_000)
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
    (line,) = warnings(caplog)
    assert "check ~/.aws/config" in line
    config.unlink()
    rig.wait_until_empty()


@pytest.mark.parametrize("url", ["nonsense", "https://user:the-secret-of-the-day@", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_url_is_told_without_it(rig: Rig, caplog: pytest.LogCaptureFixture, url: str) -> None:
    rig.use(url)
    rig.add_image(1_700_000_000)
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 2, "it gives up")
    assert len(warnings(caplog)) == 1
    assert "the-secret-of-the-day" not in caplog.text
    assert len(rig.left()) == 1


@pytest.mark.parametrize("region", ["eu-central-1", "cn-north-1", "us-gov-west-1", "of-tomorrow-1"])
def test_what_is_read_of_botocores_descriptions_is_enough(region: str) -> None:
    """S3 is called by the daemon and by botocore itself, the other services where they issue the credentials."""

    def client(service: str, descriptions: botocore.loaders.Loader) -> Any:
        core = botocore.session.Session()
        core.register_component("data_loader", descriptions)
        return core.create_client(service, region, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY)

    ours, whole = needed_descriptions(), botocore.loaders.create_loader()
    operations = client("s3", ours).meta.service_model.operation_names
    assert sorted(operations) == ["CreateSession", "HeadBucket", "ListBuckets", "PutObject"]
    for service in ("s3", "sts", "sso", "sso-oidc"):
        assert client(service, ours).meta.endpoint_url == client(service, whole).meta.endpoint_url


# Transport


@pytest.mark.parametrize("url", ["http://192.0.2.1:9000", "http://example.invalid", "http://127.0.0.1.example.invalid"])
def test_a_plain_http_endpoint_elsewhere_is_refused(rig: Rig, caplog: pytest.LogCaptureFixture, url: str) -> None:
    rig.add_image(1_700_000_000)
    rig.use(url)
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 2, "it gives up")
    (line,) = warnings(caplog)
    assert "the S3 endpoint is plain http" in line
    assert len(rig.left()) == 1


def test_plain_http_on_this_machine_goes_through_no_proxy(rig: Rig, s3: S3Server) -> None:
    with FaultyProxy(s3.port) as listener:
        rig.monkeypatch.setenv("HTTP_PROXY", listener.url)
        rig.monkeypatch.setenv("http_proxy", listener.url)
        rig.use(s3.url.replace("127.0.0.1", "localhost"))
        rig.add_image(1_700_000_000)
        rig.start()
        rig.wait_until_empty()
        assert listener.connections == 0


def make_certificate(folder: Path, *names: x509.GeneralName) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server of the tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return paths


def test_over_tls_a_certificate_is_checked_and_ones_own_can_be_trusted(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = make_certificate(tmp_path, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    with S3Server(certificate=certificate) as server:
        server.create_bucket(rig.images_bucket, rig.videos_bucket)
        rig.use(server.url)
        content = mp4(700_000)
        rig.add_video(1_700_000_000, content)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 3, "it gives up")
        (line,) = warnings(caplog)
        assert "certificate is not trusted" in line
        assert "self-signed certificate" in line
        assert not server.keys(rig.videos_bucket)
        uploader.stop(5)
        rig.monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
        rig.start()
        rig.wait_until_empty()
        (stored,) = server.objects(rig.videos_bucket)
        assert stored.body == content


def test_over_tls_a_certificate_of_another_name_is_not_trusted(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = make_certificate(tmp_path, x509.DNSName("somebody-else.example"))
    with S3Server(certificate=certificate) as server:
        rig.monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
        rig.use(server.url)
        rig.add_image(1_700_000_000)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 2, "it gives up")
        uploader.stop(10)
    (line,) = warnings(caplog)
    assert "certificate is not trusted" in line
    assert "it is for another name" in line
    assert len(rig.left()) == 1


def test_over_tls_the_trusted_certificates_are_read_before_the_first_upload(rig: Rig, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    with S3Server(certificate=certificate) as server:
        server.create_bucket(rig.images_bucket, rig.videos_bucket)
        rig.monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
        rig.use(server.url)
        client = S3(server_side_encryption=None)
        client.prepare()
        certificate[0].unlink()
        for key in ("one", "two"):
            assert client.put(rig.images_bucket, key, Body.of(b"x"), content_type="image/jpeg", metadata={})


class KeepsConnections(BaseHTTPRequestHandler):
    """Takes every object and would serve the next request on the same connection, whatever the client asked for."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = False

    def log_message(self, *_: object) -> None:
        pass


def test_each_upload_has_a_connection_of_its_own(rig: Rig) -> None:
    """One that is kept may be dropped by a router without a word, and an alert would pay for it."""
    for number in range(4):
        rig.add_image(1_700_000_000 + number)
    server = ThreadingHTTPServer(("127.0.0.1", 0), KeepsConnections)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rig.use(f"http://127.0.0.1:{server.server_address[1]}")
    rig.start()
    rig.wait_until_empty()
    server.shutdown()
    server.server_close()
    assert KeepsConnections.connections == 4
