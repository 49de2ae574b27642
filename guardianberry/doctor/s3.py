"""--check of S3: are there credentials, where are they stored, and does S3 accept them? They are never shown."""

import os
import re
import shlex
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions
import botocore.session

from guardianberry.doctor.machine import cron_lines, is_open_to_others
from guardianberry.doctor.page import Finding, fail, ok, warn
from guardianberry.machine import read_text
from guardianberry.upload.errors import (
    BAD_SET_UP,
    NO_PERMISSION,
    PLAIN_HTTP,
    UploadError,
    cause_of_answer,
    cause_of_exception,
    status_and_code,
)
from guardianberry.upload.s3 import S3
from guardianberry.upload.upload_file import Body

_TEST_OBJECT = b"A test object of guardianberry --check --upload. It may be deleted.\n"
_METHODS = {  # botocore's words for where it found them
    "env": "environment variables",
    "shared-credentials-file": "~/.aws/credentials",
    "config-file": "~/.aws/config",
    "custom-process": "what a credential_process says",
}
_ADVICE = "aws/README.md shows how keys are made and where they go."


def check_s3(server_side_encryption: str | None, root: Path, buckets: Mapping[str, str]) -> Iterator[Finding]:
    """Credentials, endpoint, and whether S3 accepts the key; then a test object goes into each of the buckets."""
    s3 = S3(server_side_encryption=server_side_encryption)
    try:
        client = s3.prepare()  # made as the daemon makes it, with the same errors
    except UploadError as error:
        subject = "endpoint" if error.cause in (PLAIN_HTTP, BAD_SET_UP) else "credentials"
        yield fail(subject, str(error), _ADVICE)
        return
    method = client._request_signer._credentials.method
    yield ok("credentials", f"found in {_METHODS.get(method, method)}")
    yield from check_credential_files(os.environ, root)
    url = urlsplit(client.meta.endpoint_url)
    place = f"{url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")  # a URL can hold a password
    answer = ask(client)
    yield answer._replace(text=f"{place}, {answer.text}")
    yield from check_uploads(s3, buckets)


def ask(client: Any) -> Finding:
    """Whether S3 answers and accepts the key. A camera's key may not list buckets, so it should be refused that."""
    try:
        client.list_buckets()
    except botocore.exceptions.ClientError as error:
        status, code = status_and_code(error)
        cause = cause_of_answer(status, code)
        if cause is NO_PERMISSION or status in (404, 405, 501):  # the key is valid, and not allowed to list
            return ok("endpoint", "answers, and accepts the key")
        return fail("endpoint", str(UploadError(cause, f"HTTP {status} {code}")), _ADVICE)
    except (botocore.exceptions.BotoCoreError, UploadError) as error:
        failure = error if isinstance(error, UploadError) else UploadError(*cause_of_exception(error))
        return fail("endpoint", str(failure), "Until then all files stay in the queue on the disk; nothing is lost.")
    advice = "A camera needs s3:PutObject alone: " + _ADVICE
    return warn("endpoint", "answers, and the key may list all buckets", advice)


def check_credential_files(environment: Mapping[str, str], root: Path) -> Iterator[Finding]:
    """Whether other users can read the key, and whether the daemon will find it after a reboot."""
    home = Path(environment.get("HOME", "/"))
    files = {
        Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws/credentials"),
        Path(environment.get("AWS_CONFIG_FILE") or home / ".aws/config"),
    }
    for path in sorted(files):
        if path.is_file() and is_open_to_others(path):
            advice = f"Run this:\nchmod 600 {shlex.quote(str(path))}"
            yield warn("credentials", f"other users of this machine can read {path}", advice)
    system = root / "etc/environment"
    if re.search(r"AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN", read_text(system)) and is_open_to_others(system):
        advice = "Move it to ~/.aws/credentials (chmod 600), or run this:\nsudo chmod 600 /etc/environment"
        yield warn("credentials", f"{system} holds a key that every user of this machine can read", advice)
    if missing := only_in_this_shell(environment, root):
        advice = "Put them into ~/.aws/credentials and ~/.aws/config, or into /etc/environment."
        text = f"{', '.join(missing)} of this shell will be missing when cron starts the daemon"
        yield warn("credentials", text, advice)


def only_in_this_shell(environment: Mapping[str, str], root: Path) -> list[str]:
    """AWS's variables that neither /etc/environment nor cron's own table sets."""
    elsewhere = read_text(root / "etc/environment") + "\n" + "\n".join(cron_lines(root))
    return sorted(
        name
        for name in environment
        if name.startswith("AWS_") and not re.search(rf"^\s*(export\s+)?{re.escape(name)}\s*=", elsewhere, re.MULTILINE)
    )


def check_uploads(s3: S3, buckets: Mapping[str, str]) -> Iterator[Finding]:
    """Put a test object into each of the buckets (by subject). Its name is no event's, yet it may alert people."""
    for subject, bucket in buckets.items():
        key = f"{uuid.uuid4()}.txt"
        try:
            s3.put(bucket, key, Body.of(_TEST_OBJECT), content_type="text/plain", metadata={"check": "test"})
        except UploadError as error:
            yield fail(subject, f"{bucket}: {error}", _ADVICE)
            continue
        yield ok(subject, f"{bucket} stored {key}")
        if missing := s3.encryption_missing:
            advice = "On AWS every object is encrypted. Elsewhere ask who runs the server; the daemon works anyway."
            yield warn(subject, f"{bucket}: the answer does not confirm the encryption at rest ({missing})", advice)
