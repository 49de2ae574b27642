"""Where the stream goes."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import suppress
from typing import IO, Any, NoReturn

from stand_in_camera import CameraError, die, say
from stand_in_camera.options import uses_libav

PIECE_BYTES = 32 * 1024  # libav's own buffer


class FileSink:
    """Stdout or a file. Without `flush` the tail of a frame waits for the next one, as in stdio."""

    def __init__(self, file: IO[bytes], *, flush: bool, piece_bytes: int, lost: str) -> None:
        self._file, self._flush, self._piece_bytes, self._lost = file, flush, piece_bytes, lost

    def send(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), self._piece_bytes):
                self._file.write(data[start : start + self._piece_bytes])
                if self._flush:
                    self._file.flush()
        except OSError:
            abort(self._lost)

    def close(self) -> None:
        with suppress(OSError):
            self._file.flush()


class SocketSink:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError:
            abort("failed to send data on socket")

    def close(self) -> None:
        self._connection.close()


class LibavSocketSink:
    """libav opens its output when the first packet is there, and waits for its one client in the same thread."""

    def __init__(self, output: str, *, listen: bool) -> None:
        self._output, self._listen = output, listen
        self._connection: socket.socket | None = None

    def send(self, data: bytes) -> None:
        if self._connection is None:
            self._connection = open_socket(self._output, listen=self._listen, verbose=0)
        try:
            self._connection.sendall(data)
        except OSError as error:
            abort(f"libav: error writing output: {error.strerror}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def abort(reason: str) -> NoReturn:
    """The real one throws this in a thread where nobody catches it."""
    say("terminate called after throwing an instance of 'std::runtime_error'")
    say(f"  what():  {reason}")
    die(-signal.SIGABRT)


def open_sink(options: dict[str, Any], persona: str) -> FileSink | SocketSink | LibavSocketSink:
    output, is_libav = options["output"], uses_libav(options, persona)
    if "://" in output and is_libav:
        return LibavSocketSink(output, listen=options["listen"])
    if "://" in output:
        return SocketSink(open_socket(output, listen=options["listen"], verbose=options["verbose"]))
    file = os.fdopen(os.dup(1), "wb", buffering=4096) if output == "-" else open(output or os.devnull, "wb")
    if is_libav:
        return FileSink(file, flush=True, piece_bytes=PIECE_BYTES, lost="libav: error writing output: Broken pipe")
    return FileSink(file, flush=options["flush"], piece_bytes=2**30, lost="failed to write output bytes")


def open_socket(output: str, *, listen: bool, verbose: int) -> socket.socket:
    match = re.match(r"tcp://(\d+\.\d+\.\d+\.\d+):(\d+)$", output)
    if not match:
        raise CameraError(f"bad network address {output}")
    address = (match[1], int(match[2]))
    if not listen:
        try:
            return socket.create_connection(address)
        except OSError:
            raise CameraError("connect to server failed") from None
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(address)
    except OSError:
        raise CameraError("failed to bind listen socket") from None
    server.listen(1)
    if verbose:
        say("Waiting for client to connect...")
    connection = server.accept()[0]
    if verbose:
        say("Client connection accepted")
    server.close()
    return connection
