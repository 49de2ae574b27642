"""The uploader against a real Ceph RADOS Gateway: what the server says to each fault, and what the daemon does then.

Started by bench/ceph.sh, which sets the gateway up. Prints Markdown and keeps it in docs/ceph.md, a section for each
version of Ceph. Files, keys and back-off (50 times as fast) are those of the tests. The second table is what somebody
with a camera's key can do.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
from collections.abc import Callable
from typing import Any

import botocore.exceptions

from bench.ceph_rig import (
    CAMERA,
    CLIP_BYTES,
    KEYS,
    OTHER,
    OWNER,
    QUOTA_BYTES,
    Gateway,
    Play,
    aws_statements,
    play,
    policy,
    put_alone,
    readable,
    statement,
)
from bench.report import ROOT, table
from guardianberry.doctor.s3 import check_uploads
from guardianberry.upload import transport
from guardianberry.upload.s3 import S3
from guardianberry.upload.upload_file import Body
from tests.s3_server import ACCESS_KEY, SECRET_KEY
from tests.upload_rig import jpeg, mp4

DOCUMENT = ROOT / "docs" / "ceph.md"


# Faults: each makes its buckets and returns what is worth a word beside the daemon's lines


def deliver(played: Play) -> str:
    """And read it back, as the bucket's owner."""
    played.encryption = "AES256"
    played.make_buckets()
    image, clip = jpeg(60_000), mp4(CLIP_BYTES)
    played.add(image, clip)
    played.deliver()
    names: set[str] = set()
    for bucket, content in zip(played.buckets, (image, clip), strict=True):
        client = played.gateway.client(OWNER)
        (entry,) = client.list_objects_v2(Bucket=bucket)["Contents"]
        answer = client.get_object(Bucket=bucket, Key=entry["Key"])
        assert answer["Body"].read() == content, "the content is another"
        names |= answer["Metadata"].keys()
    manner = "as sent" if "rpi_serial_no" in names else "with `-` for `_`" if "rpi-serial-no" in names else "others"
    return f"content as sent, metadata names {manner}"


def check(played: Play) -> str:
    played.make_buckets()
    findings = check_uploads(S3(server_side_encryption="AES256"), {"images": played.rig.images_bucket})
    lines = [re.sub(r"images\.\S+|\S+\.txt", "...", finding.text) for finding in findings]
    return "; ".join(f'"{line}"' for line in lines)


def twice(played: Play) -> str:
    played.make_buckets()
    _put_twice(played)
    return ""


def twice_with_versions(played: Play) -> str:
    played.make_buckets()
    for bucket in played.buckets:
        _keep_versions(played.gateway, bucket)
    _put_twice(played)
    pages = [played.gateway.client(OWNER).list_object_versions(Bucket=bucket)["Versions"] for bucket in played.buckets]
    return f"{sum(map(len, pages))} versions of {len({version['Key'] for page in pages for version in page})} objects"


def _put_twice(played: Play) -> None:
    content = jpeg(60_000), mp4(CLIP_BYTES)
    for _ in range(2):
        played.add(*content)
        played.deliver()


def _keep_versions(gateway: Gateway, bucket: str) -> None:
    gateway.client(OWNER).put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def wrong_checksum(played: Play) -> str:
    played.make_buckets()
    body = Body(lambda size, offset: b"x" * size, 1000, crc32=0)
    s3 = S3(server_side_encryption=None)
    stored = s3.put(played.rig.images_bucket, "key", body, content_type="image/jpeg", metadata={})
    return "takes it for stored" if stored else ""


def quota(played: Play) -> str:
    played.make_buckets()
    scope = ("--quota-scope=bucket", f"--uid={OWNER}")
    played.gateway.admin("quota", "set", *scope, f"--max-size={QUOTA_BYTES}")
    played.gateway.admin("quota", "enable", *scope)
    played.add()
    played.fail_then(lambda: played.gateway.admin("quota", "disable", *scope))
    return ""


def quota_and_close(played: Play) -> str:
    """A gateway that is told that the connection ends after this answer does not take the rest of the body."""
    send = transport.Transport.send

    def send_and_close(self: transport.Transport, request: Any, **more: Any) -> Any:
        request.headers["Connection"] = "close"
        return send(self, request, **more)

    played.patch.setattr(transport.Transport, "send", send_and_close)
    return quota(played)


def too_often(played: Play) -> str:
    """One upload a minute."""
    played.make_buckets()
    scope = ("--ratelimit-scope=user", f"--uid={CAMERA}")
    try:
        played.gateway.admin("ratelimit", "set", *scope, "--max-write-ops=1")
    except subprocess.CalledProcessError:
        return "this version limits no rates"
    played.gateway.admin("ratelimit", "enable", *scope)
    played.add()
    played.fail_then(lambda: played.gateway.admin("ratelimit", "disable", *scope))
    return ""


def suspended(played: Play) -> str:
    played.make_buckets()
    played.gateway.admin("user", "suspend", f"--uid={CAMERA}")
    played.add()
    played.fail_then(lambda: played.gateway.admin("user", "enable", f"--uid={CAMERA}"))
    return ""


def no_permission(played: Play) -> str:
    played.make_buckets(allowed=False)
    played.add()
    played.fail_then(played.allow)
    return ""


def no_copies(played: Play) -> str:
    played.make_buckets(allowed=False)
    for bucket in played.buckets:
        statements = [put_alone(bucket), *aws_statements(bucket, "NoCopies")]
        played.gateway.client(OWNER).put_bucket_policy(Bucket=bucket, Policy=policy(*statements))
    played.add()
    played.fail_then(played.allow)
    return ""


def no_bucket(played: Play) -> str:
    played.add()
    played.fail_then(played.make_buckets)
    return ""


def wrong_key(played: Play) -> str:
    return _with_another("AWS_ACCESS_KEY_ID", "NOBODYSKEY", ACCESS_KEY, played)


def wrong_secret(played: Play) -> str:
    return _with_another("AWS_SECRET_ACCESS_KEY", "wrong", SECRET_KEY, played)


def _with_another(variable: str, wrong: str, right: str, played: Play) -> str:
    played.make_buckets()
    played.patch.setenv(variable, wrong)
    played.add()
    played.fail_then(lambda: played.patch.setenv(variable, right))
    return ""


FAULTS: dict[str, tuple[str, Callable[[Play], str]]] = {
    "encryption asked for (`AES256`), over http": ("http", deliver),
    "encryption asked for, over https": ("https", deliver),
    "encryption asked for, `--check --upload`": ("https", check),
    "same file twice, by two processes": ("https", twice),
    "the same, versioning on": ("https", twice_with_versions),
    "wrong CRC-32": ("https", wrong_checksum),
    "clip over the bucket's quota, over http; then no quota": ("http", quota),
    "clip over the bucket's quota, over https; then no quota": ("https", quota),
    "the same with `Connection: close`, which the daemon does not send": ("https", quota_and_close),
    "one upload a minute allowed, then no limit": ("https", too_often),
    "user suspended, then enabled": ("https", suspended),
    "no permission, then the policy": ("https", no_permission),
    "`NoCopies` of `aws/bucket_policy.json` in the policy, then not": ("https", no_copies),
    "no bucket, then made, then the policy": ("https", no_bucket),
    "unknown access key, then the right one": ("https", wrong_key),
    "wrong secret key, then the right one": ("https", wrong_secret),
}


def play_faults(gateway: Gateway) -> list[str]:
    rows = []
    for fault, (scheme, function) in FAULTS.items():
        with play(gateway, gateway.http if scheme == "http" else gateway.https) as played:
            more = function(played)
            did = [more] if more and not played.expected else [played.did(), *([more] if more else [])]
            rows.append([fault, played.said(), "; ".join(did)])
        print(f"({fault})", flush=True)
    return table(["fault", "what the server said", "what the daemon said and did"], rows)


# What a camera's key can do


def closed(bucket: str) -> list[dict[str, Any]]:
    """What a policy can take from the camera's user, who owns what it has put."""
    published = {"StringEquals": {"s3:x-amz-acl": ["public-read", "public-read-write", "authenticated-read"]}}
    return [
        statement("Deny", CAMERA, ["Get*", "PutObjectAcl", "PutObjectTagging"], bucket),
        statement("Deny", CAMERA, ["PutObject"], bucket, Condition=published),
    ]


def attempts(gateway: Gateway, bucket: str) -> dict[str, str]:
    camera, owner, other = (gateway.client(user) for user in (CAMERA, OWNER, OTHER))
    own, published = {"Bucket": bucket, "Key": "own"}, {"Bucket": bucket, "Key": "published"}
    owner.put_object(Bucket=bucket, Key="owners", Body=b"x")
    tags = {"TagSet": [{"Key": "a", "Value": "b"}]}
    return {
        "upload, as the daemon does": answer_to(lambda: camera.put_object(**own, Body=b"x", IfNoneMatch="*")),
        "read what it has put": answer_to(lambda: camera.get_object(**own)),
        "read its ACL": answer_to(lambda: camera.get_object_acl(**own)),
        "read what others have put": answer_to(lambda: camera.get_object(Bucket=bucket, Key="owners")),
        "list the bucket": answer_to(lambda: camera.list_objects_v2(Bucket=bucket)),
        "set tags": answer_to(lambda: camera.put_object_tagging(**own, Tagging=tags)),
        "copy": answer_to(lambda: camera.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/own")),
        "make an object public": answer_to(lambda: camera.put_object_acl(**own, ACL="public-read")),
        "upload a public object": answer_to(lambda: camera.put_object(**published, Body=b"x", ACL="public-read")),
        "another user reads that": answer_to(lambda: other.get_object(**published)),
        "overwrite, without `If-None-Match`": answer_to(lambda: camera.put_object(**own, Body=b"y")),
        "overwrite what others have put": answer_to(lambda: camera.put_object(Bucket=bucket, Key="owners", Body=b"y")),
        "delete": answer_to(lambda: camera.delete_object(**own)),
        "begin a multipart upload": answer_to(lambda: camera.create_multipart_upload(Bucket=bucket, Key="parts")),
        "list its buckets": answer_to(camera.list_buckets),
        "create a bucket": answer_to(lambda: camera.create_bucket(Bucket=f"of.{bucket}")),
        "(the bucket's owner reads it)": answer_to(lambda: owner.get_object(**own)),
    }


def answer_to(request: Callable[[], Any]) -> str:
    try:
        request()
    except botocore.exceptions.ClientError as error:
        return str(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return "**done**"


def try_rights(gateway: Gateway) -> list[str]:
    columns: dict[str, dict[str, str]] = {}

    def try_with(what: str, bucket: str, statements: list[dict[str, Any]], *, versioning: bool = False) -> None:
        owner = gateway.client(OWNER)
        owner.create_bucket(Bucket=bucket)
        owner.put_bucket_policy(Bucket=bucket, Policy=policy(*statements))
        if versioning:
            _keep_versions(gateway, bucket)
        columns[what] = attempts(gateway, bucket)
        if versioning:
            versions = [each for each in owner.list_object_versions(Bucket=bucket)["Versions"] if each["Key"] == "own"]
            columns[what]["overwrite, without `If-None-Match`"] += f" ({len(versions)} versions are kept)"

    try_with("policy: `PutObject` alone", "rights.put", [put_alone("rights.put")])
    several = [put_alone("rights.deny"), readable("rights.deny"), *closed("rights.deny")]
    try_with("and the denies below", "rights.deny", several)
    gateway.admin("user", "modify", f"--uid={CAMERA}", "--op-mask=write", "--max-buckets=-1")
    several = [put_alone("rights.mask"), readable("rights.mask"), *closed("rights.mask")]
    try_with("and the user's mask, versioning on", "rights.mask", several, versioning=True)
    several = [put_alone("rights.aws"), *aws_statements("rights.aws", "NothingIsOverwritten")]
    try_with("aws", "rights.aws", several)
    overwritten = columns.pop("aws")["overwrite, without `If-None-Match`"]
    rows = [[what, *(column[what] for column in columns.values())] for what in next(iter(columns.values()))]
    rows.append(["overwrite under `NothingIsOverwritten` of `aws/bucket_policy.json`", overwritten, "", ""])
    statements = [put_alone("BUCKET"), readable("BUCKET"), *closed("BUCKET")]
    example = ",\n".join("  " + json.dumps(each) for each in statements)
    mask = f"radosgw-admin user modify --uid={CAMERA} --op-mask=write --max-buckets=-1"
    return [
        *table(["with the camera's key", *columns], rows),
        *("", "The policy with the denies, and the user's mask:"),
        *("", "```json", '{"Version": "2012-10-17", "Statement": [', example, "]}", "```", "", "```sh", mask, "```"),
    ]


def keep(version: str, lines: list[str]) -> None:
    """Print the section of this version, and put it into the document in place of the one that is there."""
    start, end = f"<!-- bench/ceph.sh: {version.split('.')[0]} -->\n", "<!-- end -->\n"
    section = start + "\n".join(["", f"## Ceph {version}", "", *lines, ""]) + "\n" + end
    print(section, flush=True)
    document = DOCUMENT.read_text(encoding="utf-8")
    before, found, after = document.partition(start)
    after = after.partition(end)[2]
    DOCUMENT.write_text(before + section + after if found else f"{document}\n{section}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("http", "https", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--admin", required=True, nargs=argparse.REMAINDER, help="radosgw-admin and its options")
    options = parser.parse_args()
    gateway = Gateway(options.http, options.https, options.ca, options.admin)
    logger = logging.getLogger("guardianberry")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    for user, (access_key, secret_key) in KEYS.items():
        keys = (f"--access-key={access_key}", f"--secret-key={secret_key}")
        gateway.admin("user", "create", f"--uid={user}", f"--display-name={user}", *keys)
    version = re.findall(r"ceph version (\S+)", gateway.admin("--version"))[0].partition("+")[0]
    keep(version, [*play_faults(gateway), "", *try_rights(gateway)])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
