"""A server of which a test writes each byte itself."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

Answer = Callable[[socket.socket, bytes], None]  # (connection, head of the request)

DONE = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n'


class RawServer:
    """Calls `answer` for each connection on 127.0.0.1, in a thread of its own. Use it as a context manager."""

    def __init__(self, answer: Answer, *, certificate: tuple[Path, Path] | None = None, address: str = "127.0.0.1"):
        self.answer = answer
        self.connections = 0
        self._context: ssl.SSLContext | None = None
        if certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
        self._listener = socket.create_server((address, 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'https' if certificate else 'http'}://{address}:{self.port}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for each in list(self._open):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            self._open.add(connection)
            with connection:
                self.answer(connection, read_head(connection))
        self._open.discard(connection)


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        head += byte
    return head


def length_of(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return next((int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")), 0)


def read_body(connection: socket.socket, head: bytes, *, size_bytes: int | None = None) -> bytes:
    """The body, or its first `size_bytes`; "100 Continue" is said where it is asked for."""
    if b"100-continue" in head.lower():
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    left_bytes = length_of(head) if size_bytes is None else size_bytes
    body = b""
    while len(body) < left_bytes and (block := connection.recv(min(65536, left_bytes - len(body)))):
        body += block
    return body
