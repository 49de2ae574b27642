"""Stands in for S3 in the demo: takes PutObject and keeps each object as a file that a person can open.

    python s3_stand_in.py FOLDER

Prints its port as the first line, then serves on 127.0.0.1 until it is stopped, or until the program that started it
has ended. An object goes to FOLDER/BUCKET/KEY and its headers to FOLDER/BUCKET/KEY.metadata.json.
Buckets need not be created. Signatures are not checked, and everything but PutObject is refused: it is no S3 server.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")  # of a bucket or a part of a key: no way out of the folder
_MOST_BYTES = 200 * 1024 * 1024
_BLOCK_BYTES = 64 * 1024
_METADATA_PREFIX = "x-amz-meta-"
_ABOUT = ".metadata.json"  # what is written about an object is not taken from anybody
_TIMEOUT_S = 30
_LOOK_S = 0.5


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "GuardianBerryDemo"
    timeout = _TIMEOUT_S
    folder = Path()

    def do_PUT(self) -> None:
        target = self._target()
        length = self.headers.get("Content-Length", "")
        if target is None or not length.isdecimal() or int(length) > _MOST_BYTES:
            self._answer(400, "InvalidRequest")
            return
        if self._is_there(target):
            self._answer(412, "PreconditionFailed")
            return
        self._answer(*self._store(target, int(length)))

    def refuse(self) -> None:
        self._answer(501, "NotImplemented")

    do_GET = do_HEAD = do_POST = do_DELETE = refuse  # noqa: N815 (the base class names them)

    def log_message(self, *_: object) -> None:
        """Nothing: the demo's daemon tells the story."""

    def _target(self) -> Path | None:
        parts = urlsplit(self.path)
        names = unquote(parts.path).split("/")[1:]
        if (
            parts.query not in ("", "x-id=PutObject")
            or not 2 <= len(names) <= 4
            or not all(map(_NAME.fullmatch, names))
            or any(name.endswith(_ABOUT) for name in names)
        ):
            return None
        return self.folder.joinpath(*names)

    def _is_there(self, target: Path) -> bool:
        return self.headers.get("If-None-Match") == "*" and target.exists()

    def _store(self, target: Path, length: int) -> tuple[int, str]:
        """The status, and the error code or, of a 200, the ETag."""
        part = target.with_name(f".{target.name}.{threading.get_ident()}")
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            digest, crc32 = self._take_in(part, length)
            if crc32 is None:
                return 400, "IncompleteBody"
            if self.headers.get("x-amz-checksum-crc32", crc32) != crc32:
                return 400, "BadDigest"
            return (200, digest) if self._keep(part, target) else (412, "PreconditionFailed")
        finally:
            part.unlink(missing_ok=True)

    def _take_in(self, part: Path, length: int) -> tuple[str, str | None]:
        """The content's MD5 in hex and its CRC-32 in base64; the latter is None when the client went away."""
        digest, crc32 = hashlib.md5(usedforsecurity=False), 0
        with part.open("wb") as file:
            while length > 0 and (block := self.rfile.read(min(length, _BLOCK_BYTES))):
                file.write(block)
                digest.update(block)
                crc32 = zlib.crc32(block, crc32)
                length -= len(block)
        return digest.hexdigest(), None if length else base64.b64encode(crc32.to_bytes(4, "big")).decode()

    def _keep(self, part: Path, target: Path) -> bool:
        """False when somebody else's upload of the same key was quicker."""
        if self.headers.get("If-None-Match") == "*":
            try:
                os.link(part, target)
            except FileExistsError:
                return False
        else:
            part.replace(target)
        names = ("Content-Type", "x-amz-server-side-encryption")
        about: dict[str, object] = {name: self.headers[name] for name in names if name in self.headers}
        about["metadata"] = {
            name.lower().removeprefix(_METADATA_PREFIX): value
            for name, value in self.headers.items()
            if name.lower().startswith(_METADATA_PREFIX)
        }
        target.with_name(target.name + _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        return True

    def _answer(self, status: int, code: str) -> None:
        xml = "" if status == 200 else f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>"
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", str(len(xml)))
        self.send_header("Connection", "close")
        if status == 200:
            self.send_header("ETag", f'"{code}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(xml.encode())


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    parent = os.getppid()  # before it reads the port, because it may end right after
    os.umask(0o077)
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=_end_with_parent, args=(server, parent), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


def _end_with_parent(server: ThreadingHTTPServer, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
