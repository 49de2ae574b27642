"""Every way in which an upload can be refused, told apart, with what to do about it."""

from __future__ import annotations

import enum
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
import botocore.parsers
from urllib3.util.ssl_match_hostname import CertificateError


class FailureScope(enum.Enum):
    """What else will fail for the same reason."""

    EVERYTHING = "no upload would fare better now"
    BUCKET = "no upload to this bucket would"
    FILE = "perhaps only this file, this time"
    FILE_FOR_LONG = "only this file, and the next try would end the same way"


@dataclass(frozen=True)
class Cause:
    """One reason why uploads fail. `text` says what happened and what to do about it."""

    name: str
    scope: FailureScope
    text: str
    passes: bool = False  # True: likely to be over in seconds, without anybody doing anything


NO_CREDENTIALS = Cause(
    "no credentials",
    FailureScope.EVERYTHING,
    "there are no AWS credentials; put them into /etc/environment or ~/.aws/credentials (see the README)",
)
CREDENTIALS_UNREADABLE = Cause(
    "credentials unreadable",
    FailureScope.EVERYTHING,
    "the AWS credentials cannot be read or made; check the files in ~/.aws, and run the credential_process by hand",
)
BAD_KEY = Cause(
    "bad credentials",
    FailureScope.EVERYTHING,
    "S3 does not know these AWS credentials or their secret is wrong; check the access key and the secret key",
)
EXPIRED = Cause(
    "expired credentials",
    FailureScope.EVERYTHING,
    "the temporary AWS credentials have expired; renew them, or let a credential_process renew them",
)
SKEWED_CLOCK = Cause(
    "skewed clock",
    FailureScope.EVERYTHING,
    "this machine's clock is more than 15 minutes off; check that it is synchronised (timedatectl)",
)
NO_PERMISSION = Cause(
    "no permission",
    FailureScope.BUCKET,
    "there is no such bucket for these credentials, or they lack s3:PutObject on it; check the bucket's name in"
    " detect_and_upload.py and the user's policy",
)
NO_BUCKET = Cause(
    "no bucket",
    FailureScope.BUCKET,
    "the bucket does not exist; create it, or correct its name in detect_and_upload.py",
)
WRONG_REGION = Cause(
    "wrong region",
    FailureScope.BUCKET,
    "the bucket is in another region; set AWS_DEFAULT_REGION or `region` in ~/.aws/config to the bucket's",
)
BAD_SET_UP = Cause(
    "bad set-up",
    FailureScope.EVERYTHING,
    "boto3 cannot work with this configuration; check ~/.aws/config and the AWS_* variables",
)
PLAIN_HTTP = Cause(
    "plain http",
    FailureScope.EVERYTHING,
    "the S3 endpoint is plain http and not on this machine, so anyone on the way could look on; use an https:// URL",
)
NETWORK = Cause("network", FailureScope.EVERYTHING, "S3 cannot be reached; check the network", passes=True)
TLS = Cause(
    "tls",
    FailureScope.EVERYTHING,
    "the S3 server's TLS certificate is not trusted, so nothing is sent; check the clock, the endpoint, and"
    " AWS_CA_BUNDLE if the server is your own",
)
CUT = Cause("connection cut", FailureScope.FILE, "the connection to S3 broke or stalled in mid-upload", passes=True)
SLOW_DOWN = Cause("slow down", FailureScope.EVERYTHING, "S3 asks to slow down", passes=True)
SERVER_ERROR = Cause("server error", FailureScope.FILE, "S3 has an error of its own", passes=True)
TRY_AGAIN = Cause("try again", FailureScope.FILE, "S3 was busy with the same object or lost part of it", passes=True)
NOT_S3 = Cause(
    "not s3", FailureScope.EVERYTHING, "what answers is no S3 server; check AWS_ENDPOINT_URL_S3 and the network"
)
UNSUPPORTED = Cause(
    "unsupported",
    FailureScope.BUCKET,
    "the S3 server lacks something that is asked of it; SERVER_SIDE_ENCRYPTION = None may serve it",
)
REFUSED_FILE = Cause("refused file", FailureScope.FILE_FOR_LONG, "S3 refuses this file")

_CAUSE_OF_CODE = {
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "InvalidClientTokenId"), BAD_KEY
    ),
    **dict.fromkeys(("UnrecognizedClientException", "InvalidToken", "AuthFailure", "MissingSecurityHeader"), BAD_KEY),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), EXPIRED),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"), SKEWED_CLOCK),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), NO_BUCKET),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"), WRONG_REGION),
    **dict.fromkeys(("IllegalLocationConstraintException", "Redirect"), WRONG_REGION),
    **dict.fromkeys(("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"), SLOW_DOWN),
    **dict.fromkeys(("RequestLimitExceeded", "ServiceUnavailable", "BandwidthLimitExceeded"), SLOW_DOWN),
    **dict.fromkeys(("OperationAborted", "ConditionalRequestConflict", "RequestTimeout"), TRY_AGAIN),
    **dict.fromkeys(
        ("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"), TRY_AGAIN
    ),
}
_CAUSE_OF_STATUS = {
    **dict.fromkeys((301, 302, 307, 308), WRONG_REGION),
    **dict.fromkeys((401, 403), NO_PERMISSION),
    **dict.fromkeys((404, 405), NO_BUCKET),
    **dict.fromkeys((408, 409), TRY_AGAIN),
    **dict.fromkeys((429, 503), SLOW_DOWN),
    407: NETWORK,
    501: UNSUPPORTED,
}


class UploadError(Exception):
    """An upload did not go through. `detail` is short and holds no credential, serial number or content."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(f"{cause.text} ({detail})" if detail else cause.text)
        self.cause = cause


class Interrupted(Exception):  # noqa: N818 (a request from our own side, not an error)
    """Raised by a body that is not to be read on, because the program stops."""


def status_and_code(error: Any) -> tuple[int, str]:
    """Of a ClientError. The server wrote the code, so it is cut to what cannot break a log line."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(error.response.get("Error", {}).get("Code", ""))
    return status, re.sub(r"[^0-9A-Za-z.]", "", code)[:60]


def cause_of_answer(status: int, code: str) -> Cause:
    if cause := _CAUSE_OF_CODE.get(code) or _CAUSE_OF_STATUS.get(status):
        return cause
    return SERVER_ERROR if status >= 500 else REFUSED_FILE


def cause_of_exception(error: Exception) -> tuple[Cause, str]:
    """Of an upload that got no answer, with a detail from the operating system.

    The exceptions' own texts hold the URL with the key, or what a credential_process wrote: they are never logged.
    """
    known = botocore.exceptions
    if isinstance(error, (known.NoCredentialsError, known.PartialCredentialsError)):
        return NO_CREDENTIALS, ""
    if isinstance(error, (known.CredentialRetrievalError, known.TokenRetrievalError, known.UnauthorizedSSOTokenError)):
        return CREDENTIALS_UNREADABLE, ""
    if isinstance(error, known.SSLError):
        reason = _why_not_trusted(error)
        return (TLS, reason) if reason else (CUT, _root_detail(error))
    # Before any byte of the body: the network is at fault. Afterwards it may be this file.
    if isinstance(error, (known.EndpointConnectionError, known.ConnectTimeoutError, known.ProxyConnectionError)):
        return NETWORK, _root_detail(error)
    if isinstance(error, (known.ReadTimeoutError, known.ConnectionClosedError, known.HTTPClientError)):
        return CUT, _root_detail(error)
    if isinstance(error, botocore.parsers.ResponseParserError):
        return NOT_S3, "its answer cannot be read"
    return BAD_SET_UP, type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was made of, and so on."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        inner = inner.__cause__ or inner.__context__


def _why_not_trusted(error: BaseException) -> str:
    """Empty when the certificate was not what went wrong."""
    for inner in _chain(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message
        if isinstance(inner, CertificateError):
            return "it is made out to another name"
    return ""


def _root_detail(error: BaseException) -> str:
    """The words of the innermost error of the operating system, else the name of the outermost one."""
    words = [inner.strerror for inner in _chain(error) if isinstance(inner, OSError) and inner.strerror]
    return words[-1] if words else type(error).__name__
