#!/usr/bin/env python3
"""Fetches AWS keys that last an hour with this camera's certificate, and prints them the way boto3 wants them.

For `credential_process` in ~/.aws/config (see README.md, "Certificates"): boto3 runs this again before the keys
end. Standard library only. Whatever goes wrong is one line on stderr and exit status 1; nothing is written to disk.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import sys
import threading
import urllib.parse

# For all of it, the look-up of the name included: boto3 waits for a credential_process without any limit of its own,
# and the uploads wait with it. A limit on each read would let an answer drip for hours.
LIMIT_S = 20


def fetch(endpoint: str, role_alias: str, certificate: str, private_key: str, ca: str | None) -> dict[str, str]:
    """What AWS IoT's credential provider answers; raises OSError, HTTPException, ValueError or KeyError."""
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, private_key)
    connection = http.client.HTTPSConnection(endpoint, timeout=LIMIT_S, context=context)
    try:
        connection.request("GET", f"/role-aliases/{urllib.parse.quote(role_alias, safe='')}/credentials")
        response = connection.getresponse()
        body = response.read(65536)
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        # The answer is {"message": "..."}: AWS's own words, and never a key.
        raise OSError(f"{endpoint} answered {response.status} {body[:200].decode('utf-8', 'replace')}")
    return json.loads(body)["credentials"]


def for_boto3(credentials: dict[str, str]) -> dict[str, object]:
    return {
        "Version": 1,
        "AccessKeyId": credentials["accessKeyId"],
        "SecretAccessKey": credentials["secretAccessKey"],
        "SessionToken": credentials["sessionToken"],
        "Expiration": credentials["expiration"],
    }


def give_up(args: argparse.Namespace) -> None:
    """Ends the process from a second thread: nothing else ends a name look-up or a read that goes on and on."""
    complain(args, f"no whole answer within {LIMIT_S} s")
    sys.stderr.flush()
    os._exit(1)


def complain(args: argparse.Namespace, reason: str) -> None:
    sys.stderr.write(f"no AWS credentials from {args.endpoint} with {args.certificate}: {reason}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("endpoint", help="aws iot describe-endpoint --endpoint-type iot:CredentialProvider")
    parser.add_argument("role_alias", help="the stack's output RoleAlias")
    parser.add_argument("certificate", help="PEM file")
    parser.add_argument("private_key", help="PEM file, mode 0600")
    parser.add_argument("--ca", help="PEM file, where the system does not know Amazon's root certificates")
    args = parser.parse_args()
    limit = threading.Timer(LIMIT_S, give_up, [args])
    limit.daemon = True
    limit.start()
    try:
        answer = for_boto3(fetch(args.endpoint, args.role_alias, args.certificate, args.private_key, args.ca))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        complain(args, " ".join(f"{type(error).__name__}: {error}".split()))
        return 1
    finally:
        limit.cancel()
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
