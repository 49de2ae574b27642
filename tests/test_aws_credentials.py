"""Credentials that are better than a key in a file: credential_process scripts, and certificates (aws/README.md)."""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import aws_rig
from tests.aws_cli import AwsCli
from tests.aws_rig import (
    IMAGES,
    REGION,
    ROOT,
    SECRET,
    VIDEOS,
    Camera,
    Moto,
    attach_what_moto_left_out,
    readme_commands,
    run_commands,
    wait_for,
)
from tests.s3_server import free_port

# Fixtures
moto_process = aws_rig.moto_process
moto = aws_rig.moto
home = aws_rig.home
cli = aws_rig.cli
deployed = aws_rig.deployed


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
    assert "the AWS credentials cannot be read or obtained" in complaints[0]
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
        self.drips = threading.Event()
        openssl("req", "-x509", *CURVE, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out",
                self.certificate, "-keyout", self._private_key)  # fmt: skip
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                subject = self.connection.getpeercert()["subject"]  # type: ignore[attr-defined]
                endpoint.asked.append((subject[0][0][1], self.path))
                while endpoint.drips.is_set() and not self.server.stopped.wait(0.1):  # type: ignore[attr-defined]
                    self.wfile.write(b"H")
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
        self._server.stopped = threading.Event()  # type: ignore[attr-defined]
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
        self._server.stopped.set()  # type: ignore[attr-defined]
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


@needs_openssl
def test_an_answer_that_drips_ends_within_the_one_limit(certified: tuple[CredentialsEndpoint, list[str]]) -> None:
    """Each read succeeds, so that a limit on reads never ends it."""
    endpoint, command = certified
    endpoint.drips.set()
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from aws import iot_credentials as it; it.LIMIT_S = 1.5; "
    )
    done = subprocess.run(
        [sys.executable, "-c", program + "sys.exit(it.main())", *command[2:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("no AWS credentials from 127.0.0.1:")
    assert done.stderr.endswith(": no whole answer within 1.5 s\n")
    assert len(endpoint.asked) == 1
