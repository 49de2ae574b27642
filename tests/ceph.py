"""A stand-in for Ceph's gateway (16, over http): what docs/ceph.md shows of it. It stands before moto, which stores."""

from __future__ import annotations

import re
import socket

from tests.faulty_proxy import Answer, FaultyProxy
from tests.raw_server import length_of, read_body, read_head

_QUOTA = Answer(403, "QuotaExceeded")
_COUNTED_BYTES = 100_000  # of a body, when the gateway refuses it


class Ceph(FaultyProxy):
    """Use it as a context manager. The attributes may be set at any time."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.has_versioning = False  # of the buckets: then conditions are ignored (and moto keeps the versions)
        self.quota_bytes: int | None = None  # a larger object is over it
        self.uploads_left: int | None = None  # before the rate limit

    def refuse(self, head: bytes) -> Answer | None:
        if b"x-amz-server-side-encryption" in head.lower():
            return Answer(400, "InvalidRequest")
        if self.quota_bytes is not None and length_of(head) > self.quota_bytes:
            return _QUOTA
        if self.uploads_left is None:
            return None
        with self._lock:
            self.uploads_left -= 1
            return Answer(503, "SlowDown") if self.uploads_left < 0 else None

    def change(self, head: bytes) -> bytes:
        """`-` for `_` in the names of metadata, and no condition where it is ignored."""
        lines = head.split(b"\r\n")
        if self.has_versioning:
            lines = [line for line in lines if not line.lower().startswith(b"if-none-match:")]
        name = re.compile(rb"x-amz-meta-[^:]*", re.IGNORECASE)
        return b"\r\n".join(name.sub(lambda found: found[0].replace(b"_", b"-"), line, count=1) for line in lines)

    def _answer(self, client: socket.socket, answer: Answer) -> None:
        """A quota is noticed in mid-body. Then it reads on, but hangs up where the client wants no other request."""
        if answer is not _QUOTA:
            super()._answer(client, answer)
            return
        head = read_head(client)
        read_body(client, head, size_bytes=_COUNTED_BYTES)
        client.sendall(answer.encode())
        if b"connection: close" not in head.lower():
            while client.recv(65536):
                pass
