"""A bad network between the program and an S3 server: a TCP proxy on 127.0.0.1 that does what it is told.

Every fault is an attribute that may be set at any time; it counts for connections made afterwards, and
`rate_bytes_per_s` for those that are open, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator

_BLOCK_BYTES = 2048


@dataclasses.dataclass(frozen=True)
class Answer:
    """What S3 would say in XML; a status of 0 closes the connection without a word."""

    status: int
    code: str = ""
    text: str = "said by the test"
    headers: tuple[str, ...] = ()

    def encode(self) -> bytes:
        xml = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>{self.text}</Message></Error>"
        body = xml.encode() if self.code else b""
        lines = [f"HTTP/1.1 {self.status} Told", f"Content-Length: {len(body)}", "Content-Type: application/xml"]
        return "\r\n".join([*lines, *self.headers, "Connection: close", "", ""]).encode() + body


class FaultyProxy:
    """Use it as a context manager. `target_port` 0 is enough where only answers of its own are wanted."""

    def __init__(self, target_port: int = 0, *, port: int = 0) -> None:
        self.target_port = target_port
        self.answer: Answer | None = None  # given to every request in place of the server's
        self.answers: list[Answer | None] = []  # given first, one per request; None lets one request through
        self.delay_s = 0.0  # before a connection reaches the server
        self.cut_after_bytes: int | None = None  # of the request
        self.stall_after_bytes: int | None = None  # of the request: nothing moves any more, in either direction
        self.replies_to_lose = 0  # the server does as it was asked, the answer never arrives
        self.refused_text = b""  # requests that hold it in their head get `refusal`
        self.refusal = Answer(500, "InternalError")
        self.silent = False  # accepts and never says a word
        self.rate_bytes_per_s: float | None = None  # upwards, shared by all connections
        self.connections = 0
        self.heads: list[bytes] = []  # of the requests, as they came
        self.requests_answered = 0  # by the proxy itself
        self.lost_replies = 0
        self._lock = threading.Lock()
        self._free_at_s = 0.0
        self._closing = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.socket()
        # Small buffers, so that what is "under way" is in the client's hands and not hidden in ours.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        _close(self._listener)
        with self._lock:
            open_sockets = list(self._sockets)
        for each in open_sockets:
            _close(each)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._tracked(client), contextlib.suppress(OSError):
            if self.silent:
                self._closing.wait()
                return
            head = _peek_head(client)
            self.heads.append(head)
            if answer := self._next_answer() or self.refuse(head):
                self._answer(client, answer)
                return
            self._closing.wait(self.delay_s)
            with self._tracked(socket.create_connection(("127.0.0.1", self.target_port), 5)) as server:
                server.settimeout(None)
                if (changed := self.change(head)) != head:
                    client.recv(len(head), socket.MSG_WAITALL)
                    server.sendall(changed)
                self._relay(client, server)

    def refuse(self, head: bytes) -> Answer | None:
        """What is said to a request with this head in place of handing it on."""
        return self.refusal if self.refused_text and self.refused_text in head else None

    def change(self, head: bytes) -> bytes:
        """The head as the server gets it."""
        return head

    def _next_answer(self) -> Answer | None:
        with self._lock:
            return self.answers.pop(0) if self.answers else self.answer

    def _answer(self, client: socket.socket, answer: Answer) -> None:
        """Take the whole request in, so that nobody is told before he has finished, and say the answer."""
        request = client.makefile("rb")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = request.readline()
            if not line:
                return
            head += line
        lowered = head.lower()
        length = next((int(line[15:]) for line in lowered.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if b"expect: 100-continue" in lowered:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.read(length)
        with self._lock:
            self.requests_answered += 1
        if answer.status:
            client.sendall(answer.encode())
            client.shutdown(socket.SHUT_WR)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        lose = self._take_a_loss()
        stalled = threading.Event()
        up = threading.Thread(target=self._pump_up, args=(client, server, stalled), daemon=True)
        up.start()
        while block := server.recv(65536):
            if lose and _without_interim(block):
                with self._lock:
                    self.lost_replies += 1
                break
            if stalled.is_set():
                self._closing.wait()
                return
            client.sendall(block)
        _close(client)

    def _take_a_loss(self) -> bool:
        with self._lock:
            lose = self.replies_to_lose > 0
            self.replies_to_lose -= lose
            return lose

    def _pump_up(self, client: socket.socket, server: socket.socket, stalled: threading.Event) -> None:
        cut_after_bytes, stall_after_bytes, sent_bytes = self.cut_after_bytes, self.stall_after_bytes, 0
        with contextlib.suppress(OSError):
            while block := client.recv(_BLOCK_BYTES):
                self._wait_for_the_link(len(block))
                sent_bytes += len(block)
                if cut_after_bytes is not None and sent_bytes > cut_after_bytes:
                    _close(client)
                    break
                if stall_after_bytes is not None and sent_bytes > stall_after_bytes:
                    stalled.set()
                    self._closing.wait()
                    return
                server.sendall(block)
            server.shutdown(socket.SHUT_WR)

    def _wait_for_the_link(self, size_bytes: int) -> None:
        """One uplink for all: each block takes its time on it after the blocks that came before."""
        rate = self.rate_bytes_per_s
        if rate is None:
            return
        with self._lock:
            self._free_at_s = max(self._free_at_s, time.monotonic()) + size_bytes / rate
            free_at_s = self._free_at_s
        self._closing.wait(max(0.0, free_at_s - time.monotonic()))

    @contextlib.contextmanager
    def _tracked(self, each: socket.socket) -> Iterator[socket.socket]:
        with self._lock:
            self._sockets.add(each)
        try:
            yield each
        finally:
            with self._lock:
                self._sockets.discard(each)
            _close(each)


def _peek_head(client: socket.socket) -> bytes:
    """The request's head, left in the socket for whoever reads it next."""
    head, give_up_s = b"", time.monotonic() + 5
    while b"\r\n\r\n" not in head and time.monotonic() < give_up_s:
        head = client.recv(16384, socket.MSG_PEEK)
        if not head:
            break
        time.sleep(0.001)
    return head.split(b"\r\n\r\n")[0]


def _without_interim(block: bytes) -> bytes:
    """What is left of the server's words without "100 Continue", which may come twice or together with the answer."""
    while block.startswith(b"HTTP/1.1 100"):
        block = block.partition(b"\r\n\r\n")[2]
    return block


def _close(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
