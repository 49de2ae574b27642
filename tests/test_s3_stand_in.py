"""The demo's stand-in for S3, as a process of its own."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from guardianberry.demo import log_objects
from tests.upload_rig import Rig, jpeg, mp4, wait_until

PROGRAM = Path(__file__).resolve().parent.parent / "demo" / "s3_stand_in.py"


class StandIn:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body, headers or {})
        status = connection.getresponse().status
        connection.close()
        return status

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    stand_in = StandIn(tmp_path / "s3")
    yield stand_in
    stand_in.process.kill()
    stand_in.process.wait()


def test_it_keeps_objects_as_files(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, monkeypatch, url=f"http://127.0.0.1:{stand_in.port}", name="test")
    picture, film = jpeg(), mp4(3_000_000)
    rig.add_video(1_700_000_000, film)
    uploader = rig.start()
    rig.alert(uploader, 1_700_000_000, picture)
    rig.wait_until_empty()
    rig.close()
    names = stand_in.files()
    assert [name.split("/")[0] for name in names] == ["images.test"] * 2 + ["videos.test"] * 2
    assert (stand_in.folder / names[0]).read_bytes() == picture
    assert (stand_in.folder / names[2]).read_bytes() == film
    assert names[1] == f"{names[0]}.metadata.json"
    about = json.loads((stand_in.folder / names[1]).read_text(encoding="utf-8"))
    assert about["Content-Type"] == "image/jpeg"
    assert about["x-amz-server-side-encryption"] == "AES256"
    assert about["metadata"]["confidence"] == "81"
    assert about["metadata"]["alert_latency_ms"].isdecimal()


def test_it_knows_conditional_writes(stand_in: StandIn) -> None:
    condition = {"If-None-Match": "*"}
    assert stand_in.ask("PUT", "/bucket/key", b"one", condition) == 200
    assert stand_in.ask("PUT", "/bucket/key", b"two", condition) == 412
    assert (stand_in.folder / "bucket" / "key").read_bytes() == b"one"
    assert stand_in.ask("PUT", "/bucket/key", b"two") == 200
    assert (stand_in.folder / "bucket" / "key").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/bucket/key", {}),
        ("HEAD", "/bucket", {}),
        ("DELETE", "/bucket/key", {}),
        ("POST", "/bucket/key?uploads", {}),
        ("PATCH", "/bucket/key", {}),
        ("PUT", "/bucket/key?partNumber=1&uploadId=x", {}),
        ("PUT", "/bucket", {}),
        ("PUT", "/../key", {}),
        ("PUT", "/bucket/../../key", {}),
        ("PUT", "/bucket/..%2f..%2fkey", {}),
        ("PUT", "/bucket/%2e%2e", {}),
        ("PUT", "/bucket/a\\b", {}),
        ("PUT", "/bucket/.hidden", {}),
        ("PUT", "/bucket/" + "x" * 200, {}),
        ("PUT", "/bucket/key", {"Content-Length": "-1"}),
        ("PUT", "/bucket/key", {"Content-Length": "99999999999"}),
        ("PUT", "/bucket/key", {"x-amz-checksum-crc32": "AAAAAA=="}),
    ],
)
def test_it_refuses_everything_else(stand_in: StandIn, method: str, path: str, headers: dict[str, str]) -> None:
    assert stand_in.ask(method, path, b"body" if method == "PUT" else b"", headers) in (400, 501)
    assert stand_in.files() == []
    assert [path.name for path in stand_in.folder.parent.iterdir()] in ([], ["s3"])


def test_it_keeps_nothing_of_a_request_that_breaks_off(stand_in: StandIn) -> None:
    with socket.create_connection(("127.0.0.1", stand_in.port), 5) as client:
        client.sendall(b"PUT /bucket/key HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
        wait_until(lambda: (stand_in.folder / "bucket").exists(), "it does not begin")
    wait_until(lambda: not stand_in.files(), "half an object is kept")


def test_what_another_user_puts_there_does_not_end_the_demo(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="guardianberry")
    assert stand_in.ask("PUT", "/bucket/a.jpg", b"no event", {"x-amz-meta-note": "x"}) == 200
    assert stand_in.ask("PUT", "/bucket/a.jpg.metadata.json", b"{}") == 400
    assert stand_in.ask("PUT", "/bucket/b.metadata.json/c", b"{}") == 400
    log_objects(stand_in.folder.parent)
    assert "1 object(s) arrived" in caplog.text


def test_it_listens_on_this_machine_only(stand_in: StandIn) -> None:
    listening = [each for each in psutil.Process(stand_in.process.pid).net_connections() if each.status == "LISTEN"]
    assert [each.laddr.ip for each in listening] == ["127.0.0.1"]


def test_it_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    script = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, {str(PROGRAM)!r}, {str(tmp_path / "s3")!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False, timeout=30)
    pid = int(done.stdout)
    wait_until(lambda: not psutil.pid_exists(pid) or is_zombie(pid), "it goes on without its parent")


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
