"""Every reason for which an upload can fail, told apart, with what to do about it."""

from __future__ import annotations

import enum
import http.client
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
from urllib3.util.ssl_match_hostname import CertificateError


class FailureScope(enum.Enum):
    """Which other uploads will fail for the same reason. The values are used in the log."""

    EVERYTHING = "all files"
    BUCKET = "all files for this bucket"
    FILE = "some files"  # perhaps only this file, perhaps only this time


@dataclass(frozen=True)
class Cause:
    """One reason why uploads fail. `text` says what happened and what to do about it."""

    scope: FailureScope
    text: str
    passes: bool = False  # True: likely to end within seconds by itself. False: the next try is likely to fail, too


NO_CREDENTIALS = Cause(
    FailureScope.EVERYTHING,
    "there are no AWS credentials; put them into /etc/environment or ~/.aws/credentials (see the README)",
)
CREDENTIALS_UNREADABLE = Cause(
    FailureScope.EVERYTHING,
    "the AWS credentials cannot be read or obtained; check the files in ~/.aws, and run the credential_process by hand",
)
BAD_KEY = Cause(
    FailureScope.EVERYTHING,
    "S3 does not know these AWS credentials or their secret is wrong; check the access key and the secret key",
)
EXPIRED = Cause(
    FailureScope.EVERYTHING,
    "the temporary AWS credentials have expired; renew them, or use a credential_process, which renews them",
)
SKEWED_CLOCK = Cause(
    FailureScope.EVERYTHING,
    "this machine's clock is more than 15 minutes off; check that it is synchronised (timedatectl)",
)
NO_PERMISSION = Cause(
    FailureScope.BUCKET,
    "there is no such bucket for these credentials, or they lack s3:PutObject on it; check the bucket's name in"
    " detect_and_upload.py and the user's policy",
)
NO_BUCKET = Cause(
    FailureScope.BUCKET, "the bucket does not exist; create it, or correct its name in detect_and_upload.py"
)
WRONG_REGION = Cause(
    FailureScope.BUCKET,
    "the bucket is in another region; set AWS_DEFAULT_REGION or `region` in ~/.aws/config to the bucket's",
)
BAD_SET_UP = Cause(
    FailureScope.EVERYTHING, "boto3 cannot work with this configuration; check ~/.aws/config and the AWS_* variables"
)
PLAIN_HTTP = Cause(
    FailureScope.EVERYTHING,
    "the S3 endpoint is plain http and not on this machine, so others could read what is sent; use an https:// URL",
)
NETWORK = Cause(FailureScope.EVERYTHING, "S3 cannot be reached; check the network", passes=True)
TLS = Cause(
    FailureScope.EVERYTHING,
    "the S3 server's TLS certificate is not trusted, so nothing is sent; check the clock, the endpoint, and"
    " AWS_CA_BUNDLE if the server is your own",
)
CUT = Cause(FailureScope.FILE, "the connection to S3 broke or stalled during the upload", passes=True)
SLOW_DOWN = Cause(FailureScope.EVERYTHING, "S3 asks to slow down", passes=True)
SERVER_ERROR = Cause(FailureScope.FILE, "S3 reports an internal error", passes=True)
TRY_AGAIN = Cause(FailureScope.FILE, "S3 was busy with the same object or received it incompletely", passes=True)
NOT_S3 = Cause(FailureScope.FILE, "the answer is not from an S3 server; check AWS_ENDPOINT_URL_S3 and the network")
UNSUPPORTED = Cause(FailureScope.BUCKET, "the S3 server does not support a part of the request")
REJECTED = Cause(
    FailureScope.FILE,
    "the S3 server rejects them with a code that is not known here; its manual or its log may explain it",
)
TOO_LARGE = Cause(
    FailureScope.FILE,
    "they are too large for the S3 server or a proxy before it; raise its limit (nginx: client_max_body_size), or lower"
    " MAX_RECORDING_DURATION_S or BITRATE_BPS",
)
FULL = Cause(FailureScope.EVERYTHING, "the S3 server's disk is full; make room there")
QUOTA = Cause(FailureScope.BUCKET, "the quota of the bucket or its owner is used up; delete old objects or raise it")
SUSPENDED = Cause(
    FailureScope.EVERYTHING, "the S3 server has suspended this user; its administrator can enable it again"
)

_CODES = {
    BAD_KEY: "InvalidAccessKeyId SignatureDoesNotMatch InvalidSecurity InvalidClientTokenId UnrecognizedClientException"
    " InvalidToken AuthFailure MissingSecurityHeader",
    EXPIRED: "ExpiredToken ExpiredTokenException TokenRefreshRequired",
    SKEWED_CLOCK: "RequestTimeTooSkewed RequestExpired RequestInTheFuture",
    NO_BUCKET: "NoSuchBucket InvalidBucketName",
    WRONG_REGION: "PermanentRedirect AuthorizationHeaderMalformed TemporaryRedirect IllegalLocationConstraintException"
    " Redirect",
    SLOW_DOWN: "SlowDown Throttling ThrottlingException TooManyRequests RequestLimitExceeded ServiceUnavailable"
    " BandwidthLimitExceeded",
    QUOTA: "QuotaExceeded XMinioAdminBucketQuotaExceeded",
    SUSPENDED: "UserSuspended AccountProblem NotSignedUp",
    FULL: "XMinioStorageFull",
    TOO_LARGE: "EntityTooLarge MaxMessageLengthExceeded",
    TRY_AGAIN: "OperationAborted ConditionalRequestConflict RequestTimeout IncompleteBody BadDigest"
    " XAmzContentSHA256Mismatch XAmzContentChecksumMismatch",
}
_CAUSE_OF_CODE = {code: cause for cause, codes in _CODES.items() for code in codes.split()}
_STATUSES = {
    WRONG_REGION: (301, 302, 307, 308),
    NO_PERMISSION: (401, 403),
    NO_BUCKET: (404, 405),
    TRY_AGAIN: (408, 409),
    SLOW_DOWN: (429, 503),
    NETWORK: (407,),
    TOO_LARGE: (413,),
    UNSUPPORTED: (501,),
    FULL: (507,),
}
_CAUSE_OF_STATUS = {status: cause for cause, statuses in _STATUSES.items() for status in statuses}


class UploadError(Exception):
    """An upload did not go through. `detail` is short and holds no credential, serial number or content."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(f"{cause.text} ({detail})" if detail else cause.text)
        self.cause = cause
        self.detail = detail


class Interrupted(Exception):  # noqa: N818 (no error: the program was asked to stop)
    """Raised in the middle of an upload when the program stops."""


def status_and_code(error: Any) -> tuple[int, str]:
    """Of a ClientError. The server wrote the code, so only what cannot harm a log line is kept of it."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(error.response.get("Error", {}).get("Code") or "")
    return status, re.sub(r"[^0-9A-Za-z.]", "", code)[:60]


def cause_of_answer(status: int, code: str) -> Cause:
    if cause := _CAUSE_OF_CODE.get(code) or _CAUSE_OF_STATUS.get(status):
        return cause
    return SERVER_ERROR if status >= 500 else REJECTED


def cause_of_exception(error: Exception) -> tuple[Cause, str]:
    """Of an upload without an answer: the cause, and a detail from the operating system.

    The exceptions' own texts are never logged: they hold the URL with the key, or what a credential_process wrote.
    """
    known = botocore.exceptions
    if isinstance(error, (known.NoCredentialsError, known.PartialCredentialsError)):
        return NO_CREDENTIALS, ""
    if isinstance(error, (known.CredentialRetrievalError, known.TokenRetrievalError, known.UnauthorizedSSOTokenError)):
        return CREDENTIALS_UNREADABLE, ""
    if isinstance(error, known.SSLError):
        reason = _why_not_trusted(error)
        return (TLS, reason) if reason else (CUT, _root_detail(error))
    # Without a connection the network is at fault. With one it may be this file.
    if isinstance(error, (known.EndpointConnectionError, known.ConnectTimeoutError, known.ProxyConnectionError)):
        return NETWORK, _root_detail(error)
    if isinstance(error, known.HTTPClientError):
        return (NOT_S3, "its answer cannot be read") if _is_nonsense(error) else (CUT, _root_detail(error))
    if isinstance(error, known.BotoCoreError):
        return BAD_SET_UP, type(error).__name__
    return NOT_S3, type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, and so on."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        inner = inner.__cause__ or inner.__context__


def _is_nonsense(error: BaseException) -> bool:
    """Whether the server gave an answer that is not HTTP."""
    chain = list(_chain(error))
    if any(isinstance(inner, (OSError, http.client.IncompleteRead)) for inner in chain):
        return False
    return any(isinstance(inner, (http.client.HTTPException, ValueError)) for inner in chain)


def _why_not_trusted(error: BaseException) -> str:
    """Empty when the certificate was not the reason."""
    for inner in _chain(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message
        if isinstance(inner, CertificateError):
            return "it is for another name"
    return ""


def _root_detail(error: BaseException) -> str:
    """The text of the innermost error of the operating system, else the type of the outermost error."""
    words = [inner.strerror for inner in _chain(error) if isinstance(inner, OSError) and inner.strerror]
    return words[-1] if words else type(error).__name__
