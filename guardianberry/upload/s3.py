"""One PutObject to any S3 server: a fresh connection, a checked certificate, no object twice.

This module holds the only boto3 client. It tries twice at most; the sweep tries again later.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions

from guardianberry.upload.connect import Addresses
from guardianberry.upload.descriptions import needed_descriptions
from guardianberry.upload.errors import (
    BAD_SET_UP,
    CREDENTIALS_UNREADABLE,
    NO_CREDENTIALS,
    NOT_S3,
    PLAIN_HTTP,
    REJECTED,
    UNSUPPORTED,
    Cause,
    FailureScope,
    UploadError,
    cause_of_answer,
    cause_of_exception,
    status_and_code,
)
from guardianberry.upload.transport import Transport
from guardianberry.upload.upload_file import Body

log = logging.getLogger(__name__)

_ATTEMPTS = 2  # the second one helps in a short disturbance; the sweep handles longer ones
_MAX_ANSWERS = 100  # remembered
# The parts of a request that a server may not support, in the order in which they are left out to see whether it is
# them, and what is missing then.
_OPTIONAL = {
    "IfNoneMatch": (logging.INFO, "conditional writes", "an upload whose answer is lost is stored again"),
    "ServerSideEncryption": (
        logging.WARNING,
        "encryption at rest",
        "what is stored there is not encrypted, unless the server does so by itself",
    ),
    "ChecksumCRC32": (logging.WARNING, "checksums", "TLS alone protects the content on the way"),
}


def keep_libraries_quiet() -> None:
    """No log line of theirs: debug lines hold signatures and tokens, a warning quotes what a credential_process wrote.

    All that matters comes out of `put` as an exception.
    """
    for name in ("boto3", "botocore", "urllib3", "s3transfer"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class S3:
    """The one client. It is made at the first use, and made anew after an error that does not pass by itself.

    So credentials and configuration that were corrected on the disk are used without a restart. For any thread.
    """

    def __init__(self, *, server_side_encryption: str | None) -> None:
        self._encryption = server_side_encryption
        self._lock = threading.Lock()
        self._client: Any = None
        self._credentials: Any = None  # of `_client`; those that can be renewed renew themselves
        self._addresses = Addresses()
        self._left_out: frozenset[str] = frozenset()  # of `_OPTIONAL`
        self._not_to_blame: set[str] = set()  # answers that leaving parts out did not change
        self.encryption_missing = ""  # what was configured, where the last answer of a success did not confirm it
        keep_libraries_quiet()

    def prepare(self, *buckets: str) -> Any:
        """Make the client, which takes a Pi a second or two, and look the server up: the first alert should not wait.

        Connects to nothing but the name server. Raises UploadError.
        """
        client = self._ready_client()
        url = urlsplit(client.meta.endpoint_url)
        host = url.hostname or ""
        names = [f"{bucket}.{host}" for bucket in buckets if "." not in bucket and host.endswith(".amazonaws.com")]
        for name in (host, *names):
            self._addresses.look_up((name, url.port or (443 if url.scheme == "https" else 80)))
        return client

    def put(self, bucket: str, key: str, body: Body, *, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Store `body` as one object. True: stored now. False: it was there already. S3 has confirmed either.

        Raises UploadError, or what `body` raises.
        """
        client = self._ready_client()
        asked = {"Bucket": bucket, "Key": key, "Body": body, "ContentType": content_type, "Metadata": dict(metadata)}
        checksum = base64.b64encode(body.crc32.to_bytes(4)).decode()
        optional = {"IfNoneMatch": "*", "ServerSideEncryption": self._encryption, "ChecksumCRC32": checksum}
        optional = {name: value for name, value in optional.items() if value and name not in self._left_out}
        try:
            return self._put_once(client, **asked, **optional)
        except UploadError as error:
            about_a_part = error.cause in (UNSUPPORTED, REJECTED) and error.detail.startswith(("HTTP 400", "HTTP 501"))
            if not about_a_part or str(error) in self._not_to_blame:
                raise
            for left_out in _combinations(list(optional), error.cause):
                kept = {name: value for name, value in optional.items() if name not in left_out}
                try:
                    stored = self._put_once(client, **asked, **kept)
                except UploadError as other:
                    if other.cause not in (UNSUPPORTED, REJECTED):
                        raise
                    continue
                self._leave_out(left_out, error)
                return stored
            if len(self._not_to_blame) < _MAX_ANSWERS:
                self._not_to_blame.add(str(error))
            raise

    def _leave_out(self, names: set[str], error: UploadError) -> None:
        self._left_out |= names
        for name in sorted(names):
            level, what, consequence = _OPTIONAL[name]
            text = "this S3 server does not support %s (%s); uploads go on without: %s"
            log.log(level, text, what, error.detail, consequence)

    def _put_once(self, client: Any, **asked: Any) -> bool:
        """True: stored. False: it was there already. Raises as `put` does."""
        body = asked["Body"]
        body.seek(0)
        try:
            answer = client.put_object(**asked)
        except UploadError:
            raise
        except botocore.exceptions.ClientError as error:
            status, code = status_and_code(error)
            if "IfNoneMatch" in asked and status in (304, 412):
                return False
            cause = cause_of_answer(status, code)
            if error.operation_name != "PutObject":  # a role could not be assumed; S3 was asked nothing
                cause = CREDENTIALS_UNREADABLE
            raise self._failed(cause, f"HTTP {status} {code}".rstrip()) from error
        except Exception as error:  # whatever the other end brings about: it counts for this one file
            if body.error is not None:  # the disk failed, not the network
                raise body.error from error
            raise self._failed(*cause_of_exception(error)) from error
        if not answer.get("ETag"):  # the login page of a public Wi-Fi is a 200, too
            raise UploadError(NOT_S3, "HTTP 200 without an ETag")
        self._not_to_blame.clear()
        is_encrypted = bool(answer.get("ServerSideEncryption"))
        self.encryption_missing = "" if is_encrypted or not self._encryption else self._encryption
        return True

    def _failed(self, cause: Cause, detail: str) -> UploadError:
        if not cause.passes and (cause.scope is not FailureScope.FILE or cause is NOT_S3):
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
        descriptions = needed_descriptions()  # before boto3, whose code takes the 6 MB that reading them leaves
        import boto3.session
        import botocore.session
        from botocore.config import Config

        core = botocore.session.Session()
        core.register_component("data_loader", descriptions)
        # A camera is not an EC2 machine. In its network anybody could answer at 169.254.169.254 and give us *his* keys.
        core.get_component("credential_provider").remove("iam-role")
        self._credentials = core.get_credentials()
        if self._credentials is None:
            raise UploadError(NO_CREDENTIALS)
        config = Config(
            request_checksum_calculation="when_required",  # each upload brings its own
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        try:
            client = boto3.session.Session(botocore_session=core).client("s3", config=config)
        except ValueError as error:  # an endpoint that is not a URL; the text may hold a password
            raise UploadError(BAD_SET_UP, "the endpoint is not a URL") from error
        url = urlsplit(client.meta.endpoint_url)
        over_tls = url.scheme == "https"
        if not over_tls and not _is_loopback(url.hostname or ""):
            raise UploadError(PLAIN_HTTP)
        transport = Transport(self._addresses, core.get_config_variable("ca_bundle"), over_tls=over_tls)
        client.meta.events.register("before-send.s3", transport.send)
        return client


def _combinations(names: list[str], cause: Cause) -> Iterator[set[str]]:
    """What to leave out: each part on its own, then all. 501 is mostly about the condition, 400 hardly ever."""
    for name in names if cause is UNSUPPORTED else [*names[1:], *names[:1]]:
        yield {name}
    if len(names) > 1:
        yield set(names)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
