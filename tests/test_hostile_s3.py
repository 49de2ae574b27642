"""A server that is hostile or broken: it blocks no upload for ever, fills no memory, puts nothing into the log."""

from __future__ import annotations

import ipaddress
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.raw_server import DONE, RawServer, length_of, read_body
from tests.s3_server import ACCESS_KEY
from tests.test_s3_faults import make_certificate
from tests.upload_rig import SERIAL, Rig, mp4, wait_until, warnings


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    caplog.set_level(logging.DEBUG, logger="guardianberry")
    monkeypatch.setattr("guardianberry.upload.transport._REQUEST_TIMEOUT_S", 1.0)
    rig = Rig(tmp_path, monkeypatch, url="http://127.0.0.1:1", name="hostile")
    yield rig
    rig.close()


def drip(connection: socket.socket, start: bytes, piece: bytes, *, pause_s: float = 0.02) -> None:
    connection.sendall(start)
    while True:
        connection.sendall(piece)
        time.sleep(pause_s)


def say(connection: socket.socket, head: bytes, answer: bytes) -> None:
    read_body(connection, head)
    connection.sendall(answer)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)


def status(line: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + line, b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


ENDLESS = {
    "head": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
    "body": (b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", b" "),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of 100 Continue": (b"HTTP/1.1 100 Continue\r\n", b"X-More: yes\r\n"),
    "status line": (b"HTTP/1.1 100 ", b"a"),
}


@pytest.mark.parametrize("size_bytes", [3_000, 600_000], ids=["small", "large"])
@pytest.mark.parametrize(("start", "piece"), ENDLESS.values(), ids=ENDLESS.keys())
def test_an_answer_that_never_ends_is_given_up_and_told(
    rig: Rig,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    start: bytes,
    piece: bytes,
    size_bytes: int,
) -> None:
    monkeypatch.setattr("guardianberry.upload.transport._MIN_RATE_BYTES_PER_S", 1e6)
    path = rig.add_video(1_700_000_000, mp4(size_bytes))

    def answer(connection: socket.socket, head: bytes) -> None:
        if size_bytes < 100_000:
            read_body(connection, head)
        drip(connection, start, piece)

    with RawServer(answer) as server:
        rig.use(server.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 1, "the lane is held for ever", timeout_s=20)
        (line,) = warnings(caplog)
        assert "not done after" in line or "not from an S3 server" in line
        server.answer = lambda connection, head: say(connection, head, DONE)
        wait_until(lambda: not path.exists(), "the lane is not free again")


def test_the_time_for_a_large_body_is_no_time_for_its_answer(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A clip of 12 MB may take 50 minutes to send; an answer that drips must not."""
    rig.add_video(1_700_000_000, mp4(600_000))

    def answer(connection: socket.socket, head: bytes) -> None:
        read_body(connection, head)
        drip(connection, b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a", pause_s=0.1)

    with RawServer(answer) as server:
        rig.use(server.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 1, "it may take 150 s", timeout_s=60)
    assert "not done after" in warnings(caplog)[0]


def test_a_proxy_that_never_finishes_its_answer_to_connect_is_given_up_and_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.add_image(1_700_000_000)
    with RawServer(lambda connection, _: drip(connection, b"HTTP/1.1 200 OK\r\n", b"X-More: yes\r\n")) as proxy:
        rig.monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        rig.monkeypatch.setenv("https_proxy", proxy.url)
        rig.use("https://s3.invalid")
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 1, "the lane is held for ever", timeout_s=20)
    (line,) = warnings(caplog)
    assert "not done after" in line


def test_a_server_that_hangs_up_within_100_continue_is_no_busy_loop(rig: Rig) -> None:
    """botocore's own way to read it never returns."""
    rig.add_video(1_700_000_000, mp4(600_000))

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n")

    rig.monkeypatch.setattr("guardianberry.upload.transport._REQUEST_TIMEOUT_S", 60.0)
    with RawServer(answer) as server:
        rig.use(server.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 2, "it does not return", timeout_s=20)


@pytest.mark.parametrize("chunked", [False, True])
def test_no_more_than_a_small_answer_is_read(rig: Rig, caplog: pytest.LogCaptureFixture, chunked: bool) -> None:
    sent_bytes: list[int] = []

    def answer(connection: socket.socket, head: bytes) -> None:
        read_body(connection, head)
        kind = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 300000000"
        connection.sendall(b"HTTP/1.1 400 Bad\r\n" + kind + b"\r\n\r\n")
        block = b"10000\r\n" + b"A" * 65536 + b"\r\n"
        sent_bytes.append(0)
        place = len(sent_bytes) - 1
        for _ in range(4000):
            connection.sendall(block)
            sent_bytes[place] += len(block)

    rig.add_image(1_700_000_000)
    with RawServer(answer) as server:
        rig.use(server.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 1, "it does not end")
        (line,) = warnings(caplog)
    assert "its answer is too long" in line
    assert max(sent_bytes) < 20_000_000  # what the buffers of two sockets can hold


HUGE_ENTITY = b'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + b"".join(
    b'<!ENTITY a%d "%s">' % (n, b"&a%s;" % (b"%d" % (n - 1) if n > 1 else b"") * 10) for n in range(1, 10)
)
ODD: dict[str, bytes] = {
    "deep": status(b"400 Bad", b"<a>" * 20_000),
    "entities": status(b"400 Bad", HUGE_ENTITY + b"]><Error><Code>&a9;</Code></Error>"),
    "not utf-8": status(b"400 \xff\xfe", b"\xff\xfe\0\0" * 100),
    "bad length": b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: many\r\n\r\n",
    "negative length": b"HTTP/1.1 400 Bad\r\nContent-Length: -5\r\n\r\n",
    "bad size": b"HTTP/1.1 200 OK\r\nETag: x\r\nx-amz-object-size: huge\r\nContent-Length: 0\r\n\r\n",
    "bad chunk": b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bad status": b"HTTP/1.1 abc\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "bad gzip": status(b"400 Bad", b"not gzip", b"Content-Encoding: gzip"),
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD.keys())
def test_an_answer_that_cannot_be_read_counts_for_one_file_alone(
    rig: Rig, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    for number in range(3):
        rig.add_image(1_700_000_000 + number)

    def choose(connection: socket.socket, head: bytes) -> None:
        say(connection, head, answer if b"recording_start_time: 1700000002" in head else DONE)

    with RawServer(choose) as server:
        rig.use(server.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 1 or not rig.left(), "it sticks")
        wait_until(lambda: uploader.counters().images >= 2, "the others are held up")
    assert len(warnings(caplog)) <= 1
    assert "Traceback" not in caplog.text


def test_a_server_that_echoes_the_request_gets_nothing_of_it_into_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    heads: list[bytes] = []

    def echo(connection: socket.socket, head: bytes) -> None:
        heads.append(head)
        flat = b" ".join(head.split(b"\r\n"))
        places = [b"ETag", b"x-amz-object-size", b"x-amz-bucket-region", b"x-amz-request-id", b"x-amz-expiration"]
        kind = len(heads) % 4
        if kind == 0:
            say(
                connection,
                head,
                b"HTTP/1.1 200 OK\r\n" + b"".join(p + b": " + flat + b"\r\n" for p in places) + b"\r\n",
            )
        elif kind == 1:
            say(connection, head, status(b"400 " + flat, b"<Error><Code>%s</Code></Error>" % flat))
        elif kind == 2:
            say(connection, head, flat + b"\r\n\r\n")
        else:
            say(
                connection,
                head,
                status(b"301 Moved", b"<Error><Code>PermanentRedirect</Code></Error>", b"x-amz-bucket-region: " + flat),
            )

    for number in range(3):
        rig.add_image(1_700_000_000 + number)
    with RawServer(echo) as server:
        rig.use(server.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 6, "it gives up")
    keys = {head.split(b" ")[1].decode().rpartition("/")[2].partition("?")[0] for head in heads}
    for secret in (ACCESS_KEY, SERIAL, "Signature", *keys):
        assert secret not in caplog.text


# An answer in mid-body


QUOTA = status(b"403 Forbidden", b"<Error><Code>QuotaExceeded</Code></Error>", b"Connection: close")


def answer_and_hang_up(connection: socket.socket, head: bytes) -> None:
    read_body(connection, head, size_bytes=100_000)
    connection.sendall(QUOTA)


def answer_and_read_on(connection: socket.socket, head: bytes) -> None:
    read_body(connection, head, size_bytes=100_000)
    connection.sendall(QUOTA)
    left_bytes = length_of(head) - 100_000
    while left_bytes > 0 and (block := connection.recv(65536)):
        left_bytes -= len(block)


def answer_and_do_nothing(connection: socket.socket, head: bytes) -> None:
    read_body(connection, head, size_bytes=100_000)
    connection.sendall(QUOTA)
    threading.Event().wait(30)


def hang_up_if_asked_to(connection: socket.socket, head: bytes) -> None:
    """As Ceph does: where the client wants the connection closed, it is closed at once."""
    (answer_and_hang_up if b"connection: close" in head.lower() else answer_and_read_on)(connection, head)


MANNERS: list[Callable[[socket.socket, bytes], None]] = [
    answer_and_hang_up,
    answer_and_read_on,
    answer_and_do_nothing,
    hang_up_if_asked_to,
]


@pytest.mark.parametrize(("manner", "tls"), list(itertools.product(MANNERS, [True, False])))
def test_an_answer_in_mid_body_is_read(
    rig: Rig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    manner: Callable[[socket.socket, bytes], None],
    tls: bool,
) -> None:
    rig.monkeypatch.setattr("guardianberry.upload.transport._REQUEST_TIMEOUT_S", 60.0)
    rig.monkeypatch.setattr("guardianberry.upload.transport._CONNECT_TIMEOUT_S", 1.0)
    certificate = make_certificate(tmp_path, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))) if tls else None
    if certificate:
        rig.monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    rig.add_video(1_700_000_000, mp4(5_000_000))
    with RawServer(manner, certificate=certificate) as server:
        rig.use(server.url)
        uploader = rig.start()
        wait_until(lambda: uploader.counters().failed_tries >= 1, "it does not end")
        (line,) = warnings(caplog)
    assert "quota" in line


def test_a_server_that_never_says_continue_gets_the_body_within_a_second(rig: Rig, tmp_path: Path) -> None:
    """Over TLS 1.3, where a session ticket comes first and looks like an answer."""
    certificate = make_certificate(tmp_path, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    rig.monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))

    def answer(connection: socket.socket, head: bytes) -> None:
        read_body(connection, head.replace(b"100-continue", b""))
        connection.sendall(DONE)

    rig.add_video(1_700_000_000, mp4(600_000))
    with RawServer(answer, certificate=certificate) as server:
        rig.use(server.url)
        uploader = rig.start()
        rig.wait_until_empty()
    assert uploader.counters().failed_tries == 0
