"""Sends one signed request to S3 over a fresh connection, within a deadline, and takes only a small answer.

botocore signs the request and hands it to `Transport.send`; what the server answered is reduced to what this daemon
uses before botocore sees it. The server may be hostile: it may answer for ever, or with anything.
"""

from __future__ import annotations

import functools
import http.client
import os
import re
import socket
import ssl
import threading
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import botocore.awsrequest
import botocore.httpsession
import botocore.utils
from urllib3.exceptions import NewConnectionError
from urllib3.util import wait_for_read

from guardianberry.upload.connect import Addresses, Exchange
from guardianberry.upload.errors import CUT, NOT_S3, PLAIN_HTTP, UploadError

_CONNECT_TIMEOUT_S = 5.0  # also for a block of the body to fit into the socket's buffer
_READ_TIMEOUT_S = 10.0
# For the request: this, and the time that the body takes at 32 kbit/s. Then for the answer: this again.
_REQUEST_TIMEOUT_S = 30.0
_MIN_RATE_BYTES_PER_S = 4_000
# Linux doubles it. By default it grows to 4 MB: an uplink of 300 kbit/s needs more than the read timeout for that, and
# an alert would wait for it. 32 KiB take a second there, and are enough for 8 Mbit/s to a server 30 ms away.
_SEND_BUFFER_BYTES = 16 * 1024
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_LINE_BYTES = 8 * 1024
_MAX_INTERIM_ANSWERS, _MAX_INTERIM_HEADERS = 8, 20  # of "100 Continue" in one answer
# A smaller body is sent without asking first: an alert does not wait for a round trip, and not for a second where the
# server says no "100 Continue". For a larger one it is worth knowing first that the object is there already.
_MIN_EXPECT_BYTES = 256 * 1024
_CONTINUE_TIMEOUT_S = 1.0

_CODE = re.compile(rb"<Code>\s*([0-9A-Za-z.]{1,60})\s*</Code>")
# The headers of an answer that are used, and what they may hold.
_HEADERS = {
    "ETag": re.compile(r"[\x21-\x7e]{1,200}"),
    "x-amz-server-side-encryption": re.compile(r"[0-9A-Za-z:-]{1,30}"),
    "x-amz-bucket-region": re.compile(r"[a-z0-9-]{1,30}"),
}


_local = threading.local()  # `exchange`: the one of this thread. urllib3 makes the connections, so they cannot be told


class _Answer(http.client.HTTPResponse):
    """Gives up when the server says "100 Continue" again and again."""

    _interim_answers = 0

    def _read_status(self) -> Any:
        self._interim_answers += 1
        if self._interim_answers > _MAX_INTERIM_ANSWERS:
            raise http.client.HTTPException("only interim answers")
        return super()._read_status()  # type: ignore[misc]


class _Connection:
    """What differs from botocore's connections, over TLS and without. TLS itself is left as it is."""

    response_class = _Answer
    only_here = False

    def _new_conn(self: Any) -> socket.socket:
        server = self._dns_host, self.port
        try:
            connected: socket.socket = _local.exchange.connect(
                server, self.socket_options, only_here=self.only_here, timeout_s=_CONNECT_TIMEOUT_S
            )
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error
        return connected

    def send(self: Any, data: Any) -> None:
        """Where the server does not take the body to its end, it may have said why: then urllib3 reads its answer.

        urllib3 does so after a BrokenPipeError alone. Over TLS the same is an SSLEOFError.
        """
        try:
            super().send(data)  # type: ignore[misc]
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise BrokenPipeError(*error.args) from error
        except TimeoutError as error:
            if not wait_for_read(self.sock, 0):
                raise
            raise BrokenPipeError(*error.args) from error

    def getresponse(self) -> Any:
        """The body is sent: what it was given of time is no longer needed."""
        _local.exchange.limit(_REQUEST_TIMEOUT_S)
        return super().getresponse()  # type: ignore[misc]

    def _handle_expect_response(self: Any, message_body: Any) -> None:
        """As botocore's, which never returns when the server hangs up within the headers of "100 Continue".

        Over TLS 1.3 a session ticket makes the socket readable, although the server has said nothing yet.
        """
        timeout_s = self.sock.gettimeout()
        self.sock.settimeout(_CONTINUE_TIMEOUT_S)
        with self.sock.makefile("rb", 0) as stream:
            try:
                parts = stream.readline(_MAX_LINE_BYTES).split(None, 2)
                if parts[1:2] == [b"100"]:
                    for _ in range(_MAX_INTERIM_HEADERS):
                        if not stream.readline(_MAX_LINE_BYTES).strip():
                            break
                elif parts:
                    version, status, reason = (part.decode("ascii") for part in [*parts, b"", b""][:3])
                    self.response_class = functools.partial(
                        botocore.awsrequest.AWSHTTPResponse, status_tuple=(version, int(status), reason)
                    )
                    self._response_received = True
            except TimeoutError:
                pass
            finally:
                self.sock.settimeout(timeout_s)


class _HttpPool(botocore.awsrequest.AWSHTTPConnectionPool):
    class ConnectionCls(_Connection, botocore.awsrequest.AWSHTTPConnection):
        only_here = True


class _HttpsPool(botocore.awsrequest.AWSHTTPSConnectionPool):
    class ConnectionCls(_Connection, botocore.awsrequest.AWSHTTPSConnection):
        pass


class _Session(botocore.httpsession.URLLib3Session):
    """botocore's way to send, with the certificate checked as ever, over connections of ours.

    `context` holds the trusted certificates; None: they are read for this session.
    """

    def __init__(self, context: ssl.SSLContext | None, **options: Any) -> None:
        self._context = context
        super().__init__(**options)

    def _get_ssl_context(self) -> Any:
        return self._context or super()._get_ssl_context()

    def _setup_ssl_cert(self, conn: Any, url: str, verify: Any) -> None:
        super()._setup_ssl_cert(conn, url, verify)
        if self._context:
            conn.ca_certs = None  # else urllib3 reads them into the context again

    def _get_pool_manager_kwargs(self, **extra: Any) -> Any:
        self._pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}  # before a manager takes them
        return super()._get_pool_manager_kwargs(**extra)


class Transport:
    """Sends signed requests in place of botocore's connection pool. The certificate is always checked.

    Each upload has a fresh connection: a home router drops an idle one without telling either end, and an alert would
    wait for the read timeout of ten seconds.
    """

    def __init__(self, addresses: Addresses, ca_bundle: str | None, *, over_tls: bool) -> None:
        self._addresses = addresses
        self._verify = ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or True
        self._context = _context_that_trusts(self._verify) if over_tls else None

    def send(self, request: Any, **_: Any) -> Any:
        """The answer as botocore wants it. Raises botocore's exceptions, and UploadError for no second try."""
        size_bytes = int(request.headers.get("Content-Length", 0))
        if size_bytes < _MIN_EXPECT_BYTES:
            request.headers.pop("Expect", None)
        is_plain = urlsplit(request.url).scheme != "https"  # then the server is on this machine: no proxy
        proxies = {} if is_plain else botocore.utils.get_environ_proxies(request.url)
        session = _Session(
            None if proxies else self._context,  # a proxy has a certificate, too
            verify=self._verify,
            proxies=proxies,
            timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
            socket_options=[
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES),
            ],
        )
        request.stream_output = True  # so that the session leaves it to us to read the answer
        with Exchange(self._addresses, _REQUEST_TIMEOUT_S + size_bytes / _MIN_RATE_BYTES_PER_S) as exchange:
            _local.exchange = exchange
            answered = False
            try:
                answer = session.send(request)
                content = answer.raw.read(_MAX_ANSWER_BYTES + 1)
                answered = not exchange.is_expired
            finally:
                session.close()
                exchange.note(answered=answered)
                if exchange.is_elsewhere:
                    raise UploadError(PLAIN_HTTP)
                if exchange.is_expired:
                    raise UploadError(CUT, f"not done after {exchange.limit_s:.0f} s")
        if len(content) > _MAX_ANSWER_BYTES:
            raise UploadError(NOT_S3, "its answer is too long")
        if request.method == "GET" and answer.status_code == 200 and b"<ListAllMyBucketsResult" not in content:
            raise UploadError(NOT_S3, "HTTP 200 to another question")  # the doctor's question; see `_reduced`
        return _reduced(answer, content)


def _context_that_trusts(ca_bundle: str | bool) -> Any:
    """Reading the certificates takes 30 ms of a PC's CPU, so it is not left to each upload.

    None where they cannot be read: then each upload tries to, and fails with the reason.
    """
    context = botocore.httpsession.create_urllib3_context()
    try:
        context.load_verify_locations(botocore.httpsession.get_cert_path(ca_bundle))
    except OSError:  # of ssl, too
        return None
    return context


def _reduced(answer: Any, content: bytes) -> Any:
    """The answer without anything that this daemon does not use: it cannot confuse a parser or reach the log."""
    headers = {name: answer.headers.get(name) or "" for name in _HEADERS}
    headers = {name: value for name, value in headers.items() if _HEADERS[name].fullmatch(value)}
    code = _CODE.search(content)
    body = b"<Error><Code>%s</Code></Error>" % (code[1] if code else b"") if answer.status_code >= 300 else b""
    raw = SimpleNamespace(stream=lambda: [body])
    return botocore.awsrequest.AWSResponse(answer.url, answer.status_code, headers, raw)
