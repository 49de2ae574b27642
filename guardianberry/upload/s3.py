"""One PutObject to any S3 server: fresh connection, checked certificate, no object twice.

This module holds the only boto3 client. It never retries for long: the queue on the disk is the retry.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3.session
import botocore.exceptions
import botocore.httpsession
import botocore.loaders
import botocore.parsers
import botocore.session
import botocore.utils
from botocore.config import Config

from guardianberry.upload.errors import (
    BAD_SET_UP,
    CREDENTIALS_UNREADABLE,
    NO_CREDENTIALS,
    NOT_S3,
    PLAIN_HTTP,
    UNSUPPORTED,
    UploadError,
    cause_of_answer,
    cause_of_exception,
    status_and_code,
)
from guardianberry.upload.queue import Body

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5  # also the longest that one block may take to get into the socket
_READ_TIMEOUT_S = 10
_ATTEMPTS = 2  # a second one rides out a hiccup; everything longer is the sweep's
# What one upload may have under way on the network; Linux doubles it, to 32 KiB. Left alone it grows to 4 MB, which on
# a home's 300 kbit/s uplink takes longer to leave than S3's answer may take, and an alert would queue behind it. 32 KiB
# leave within a second there, and still carry 8 Mbit/s to a server 30 ms away.
_SEND_BUFFER_BYTES = 16 * 1024


def keep_libraries_quiet() -> None:
    """No debug line of the libraries, at whatever level the root logger is: theirs hold signatures and session tokens.

    Their warnings go too: one of them quotes what a credential_process wrote. Everything they have to say comes out of
    `put` as an exception anyway.
    """
    for name in ("boto3", "botocore", "urllib3", "s3transfer"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _LeanFiles(botocore.loaders.JSONFileLoader):
    """The descriptions of AWS that botocore reads, without their prose: 6 MB less for as long as the daemon runs."""

    def load_file(self, file_path: str) -> Any:
        for ending, open_file in ((".json", open), (".json.gz", gzip.open)):
            try:
                with open_file(file_path + ending, "rb") as file:
                    return json.load(file, object_pairs_hook=_without_prose)
            except FileNotFoundError:
                continue
        return None


def _without_prose(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: "" if key == "documentation" and isinstance(value, str) else value for key, value in pairs}


class S3:
    """The one client, made at the first use and made anew when the credentials on this machine have changed.

    Safe to use from several threads.
    """

    def __init__(self, *, server_side_encryption: str | None) -> None:
        self._encryption = {"ServerSideEncryption": server_side_encryption} if server_side_encryption else {}
        self._condition = {"IfNoneMatch": "*"}
        self._lock = threading.Lock()
        self._client: Any = None
        self._credentials: Any = None  # of `_client`; they renew themselves where they can
        self._made_of: Any = None  # the credentials and the configuration files' content behind `_client`
        self._distrusted = False  # True: what `_client` was made of may have been corrected since
        keep_libraries_quiet()

    def prepare(self) -> None:
        """Make the client, which takes a Pi a second or two that the first alert should not wait for.

        Raises UploadError; connects to nothing.
        """
        self._ready_client()

    def put(
        self, bucket: str, key: str, body: Body, *, crc32_base64: str, content_type: str, metadata: Mapping[str, str]
    ) -> bool:
        """Store `body` as one object; False when it is already there. Raises UploadError, or what `body` raises.

        Either way of returning means that S3 has confirmed the object.
        """
        client = self._ready_client()
        asked = {"Bucket": bucket, "Key": key, "Body": body, "ContentType": content_type, "Metadata": dict(metadata)}
        asked |= {"ChecksumCRC32": crc32_base64, **self._encryption}
        condition = self._condition
        stored = self._put_once(client, **asked, **condition)
        if stored is None and condition:
            stored = self._put_once(client, **asked)
            if stored is not None:
                log.info("this S3 server knows no conditional writes; going on without them")
                self._condition = {}
        if stored is None:
            raise UploadError(UNSUPPORTED, "HTTP 501")
        return stored

    def _put_once(self, client: Any, **asked: Any) -> bool | None:
        """True: stored. False: it was there before. None: the server lacks what was asked of it (501)."""
        body = asked["Body"]
        body.seek(0)
        try:
            answer = client.put_object(**asked)
        except botocore.exceptions.ClientError as error:
            status, code = status_and_code(error)
            if status == 412 or code == "PreconditionFailed":
                return False
            if status == 501:
                return None
            cause = cause_of_answer(status, code)
            if error.operation_name != "PutObject":  # an assumed role was refused, before S3 was asked anything
                cause = CREDENTIALS_UNREADABLE
            self._distrusted = self._distrusted or not cause.passes
            raise UploadError(cause, f"HTTP {status} {code}") from error
        except (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError) as error:
            if body.error is not None:  # the disk failed, not the network
                raise body.error from error
            cause, detail = cause_of_exception(error)
            self._distrusted = self._distrusted or not cause.passes
            raise UploadError(cause, detail) from error
        if not answer.get("ETag"):  # a page that says "log in to this Wi-Fi" is a 200 too
            raise UploadError(NOT_S3, "HTTP 200 without an ETag")
        return True

    def _ready_client(self) -> Any:
        with self._lock:
            try:
                if self._client is None or self._distrusted:
                    self._make_client()
                    self._distrusted = False
                # Renewed here if need be, and not while a request is signed, where the error would be taken for S3's.
                self._credentials.get_frozen_credentials()
            except botocore.exceptions.BotoCoreError as error:
                raise UploadError(*cause_of_exception(error)) from error
            except botocore.exceptions.ClientError as error:  # of the service that hands a role's credentials out
                raise UploadError(CREDENTIALS_UNREADABLE, status_and_code(error)[1]) from error
            except (OSError, ValueError, RuntimeError) as error:  # a credential_process: not there, no JSON, old keys
                raise UploadError(CREDENTIALS_UNREADABLE, type(error).__name__) from error
            return self._client

    def _make_client(self) -> None:
        """Look credentials and configuration up afresh; a new client unless the present one was made of the same."""
        core = botocore.session.Session()
        core.get_component("data_loader").file_loader = _LeanFiles()
        # A camera is no EC2 machine, and whoever answers 169.254.169.254 in its network would hand us *his* keys.
        core.get_component("credential_provider").remove("iam-role")
        credentials = core.get_credentials()
        if credentials is None:
            self._client = None
            raise UploadError(NO_CREDENTIALS)
        made_of = (credentials.get_frozen_credentials(), core.full_config)
        if self._client is not None and made_of == self._made_of:
            return
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        try:
            client = boto3.session.Session(botocore_session=core).client("s3", config=config)
        except ValueError as error:  # an endpoint that is no URL; its text may hold a password
            raise UploadError(BAD_SET_UP, "the endpoint is not a URL") from error
        url = urlsplit(client.meta.endpoint_url)
        if url.scheme != "https" and not _is_loopback(url.hostname or ""):
            raise UploadError(PLAIN_HTTP)
        client.meta.events.register("before-send.s3.PutObject", _sender(core))
        self._client, self._credentials, self._made_of = client, credentials, made_of


def _sender(core: Any) -> Callable[..., Any]:
    """What sends a signed request in place of botocore's connection pool.

    Each upload has a fresh connection: one that was kept alive and then dropped without a word by a home router would
    cost an alert the ten seconds until that is noticed. The certificate is always checked.
    """
    verify = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True

    def send(request: Any, **_: Any) -> Any:
        plain = urlsplit(request.url).scheme != "https"  # only ever to this machine: no proxy needs to see it
        request.headers["Connection"] = "close"
        session = botocore.httpsession.URLLib3Session(
            verify=verify,
            proxies={} if plain else botocore.utils.get_environ_proxies(request.url),
            timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
            socket_options=[
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES),
            ],
        )
        try:
            return session.send(request)
        finally:
            session.close()

    return send


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
