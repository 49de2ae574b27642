"""One PutObject to any S3 server: a fresh connection, a checked certificate, no object twice.

This module holds the only boto3 client. It tries twice at most; the sweep tries again later.
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
    Cause,
    FailureScope,
    UploadError,
    cause_of_answer,
    cause_of_exception,
    status_and_code,
)
from guardianberry.upload.upload_file import Body

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5  # also for a block of the body to fit into the socket's buffer
_READ_TIMEOUT_S = 10
_ATTEMPTS = 2  # the second one helps in a short disturbance; the sweep handles longer ones
# The send buffer of a connection; Linux doubles it, to 32 KiB. By default it grows to 4 MB. On a home's uplink of
# 300 kbit/s that takes longer to send than the read timeout, and an alert would have to wait for it. 32 KiB are sent
# within a second there, and are enough for 8 Mbit/s to a server 30 ms away.
_SEND_BUFFER_BYTES = 16 * 1024


def keep_libraries_quiet() -> None:
    """No log line of the libraries, whatever the root logger's level is.

    Debug lines hold signatures and session tokens, and a warning quotes what a credential_process wrote. All that
    matters comes out of `put` as an exception.
    """
    for name in ("boto3", "botocore", "urllib3", "s3transfer"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _FilesWithoutDocumentation(botocore.loaders.JSONFileLoader):
    """Reads botocore's descriptions of AWS without their documentation: 6 MB less for as long as the daemon runs."""

    def load_file(self, file_path: str) -> Any:
        for ending, open_file in ((".json", open), (".json.gz", gzip.open)):
            try:
                with open_file(file_path + ending, "rb") as file:
                    return json.load(file, object_pairs_hook=_without_documentation)
            except FileNotFoundError:
                continue
        return None


def _without_documentation(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: "" if key == "documentation" and isinstance(value, str) else value for key, value in pairs}


class S3:
    """The one client. It is made at the first use, and made anew after an error that does not pass by itself.

    So credentials and configuration that were corrected on the disk are used without a restart. For any thread.
    """

    def __init__(self, *, server_side_encryption: str | None) -> None:
        self._encryption = {"ServerSideEncryption": server_side_encryption} if server_side_encryption else {}
        self._condition = {"IfNoneMatch": "*"}
        self._lock = threading.Lock()
        self._client: Any = None
        self._credentials: Any = None  # of `_client`; those that can be renewed renew themselves
        keep_libraries_quiet()

    def prepare(self) -> Any:
        """Make the client. It takes a Pi a second or two, and the first alert should not wait for that.

        Connects to nothing. Raises UploadError.
        """
        return self._ready_client()

    def put(
        self, bucket: str, key: str, body: Body, *, crc32_base64: str, content_type: str, metadata: Mapping[str, str]
    ) -> bool:
        """Store `body` as one object. True: stored now. False: it was there already. S3 has confirmed either.

        Raises UploadError, or what `body` raises.
        """
        client = self._ready_client()
        asked = {"Bucket": bucket, "Key": key, "Body": body, "ContentType": content_type, "Metadata": dict(metadata)}
        asked |= {"ChecksumCRC32": crc32_base64, **self._encryption}
        condition = self._condition
        stored = self._put_once(client, **asked, **condition)
        if stored is None and condition:
            stored = self._put_once(client, **asked)
            if stored is not None:
                log.info("this S3 server does not support conditional writes; uploads go on without them")
                self._condition = {}
        if stored is None:
            raise UploadError(UNSUPPORTED, "HTTP 501")
        return stored

    def _put_once(self, client: Any, **asked: Any) -> bool | None:
        """True: stored. False: it was there already. None: the server does not support the request (501)."""
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
            if error.operation_name != "PutObject":  # a role could not be assumed; S3 was asked nothing
                cause = CREDENTIALS_UNREADABLE
            raise self._failed(cause, f"HTTP {status} {code}") from error
        except (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError) as error:
            if body.error is not None:  # the disk failed, not the network
                raise body.error from error
            raise self._failed(*cause_of_exception(error)) from error
        if not answer.get("ETag"):  # the login page of a public Wi-Fi is a 200, too
            raise UploadError(NOT_S3, "HTTP 200 without an ETag")
        return True

    def _failed(self, cause: Cause, detail: str) -> UploadError:
        if not cause.passes and cause.scope is not FailureScope.FILE_FOR_LONG:
            self._client = None
        return UploadError(cause, detail)

    def _ready_client(self) -> Any:
        with self._lock:
            try:
                client = self._client
                if client is None:
                    client = self._client = self._make_client()
                # Renews them if necessary. While a request is signed, an error of it would look like one of S3.
                self._credentials.get_frozen_credentials()
            except botocore.exceptions.BotoCoreError as error:
                raise UploadError(*cause_of_exception(error)) from error
            except botocore.exceptions.ClientError as error:  # of the service that issues a role's credentials
                raise UploadError(CREDENTIALS_UNREADABLE, status_and_code(error)[1]) from error
            except (OSError, ValueError, RuntimeError) as error:  # a credential_process: not there, no JSON, old keys
                raise UploadError(CREDENTIALS_UNREADABLE, type(error).__name__) from error
            return client

    def _make_client(self) -> Any:
        """A client with the credentials and the configuration as they are on the disk now. Raises UploadError."""
        core = botocore.session.Session()
        core.get_component("data_loader").file_loader = _FilesWithoutDocumentation()
        # A camera is not an EC2 machine. In its network anybody could answer at 169.254.169.254 and give us *his* keys.
        core.get_component("credential_provider").remove("iam-role")
        self._credentials = core.get_credentials()
        if self._credentials is None:
            raise UploadError(NO_CREDENTIALS)
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        try:
            client = boto3.session.Session(botocore_session=core).client("s3", config=config)
        except ValueError as error:  # an endpoint that is not a URL; the text may hold a password
            raise UploadError(BAD_SET_UP, "the endpoint is not a URL") from error
        url = urlsplit(client.meta.endpoint_url)
        if url.scheme != "https" and not _is_loopback(url.hostname or ""):
            raise UploadError(PLAIN_HTTP)
        client.meta.events.register("before-send.s3.PutObject", _sender(core))
        return client


def _sender(core: Any) -> Callable[..., Any]:
    """Sends a signed request in place of botocore's connection pool.

    Each upload has a fresh connection. A home router drops an idle one without telling either end; an alert would wait
    for the read timeout of ten seconds until that is noticed. The certificate is always checked.
    """
    verify = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True

    def send(request: Any, **_: Any) -> Any:
        plain = urlsplit(request.url).scheme != "https"  # then the server is on this machine: no proxy
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
