"""Where the stream goes."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import IO, Any

from stand_in_camera import CameraError, die, say


class FileSink:
    """Stdout or a file. Without --flush the tail of a frame waits for the next one, as in stdio."""

    def __init__(self, file: IO[bytes], flush: bool) -> None:
        self._file, self._flush = file, flush

    def send(self, data: bytes) -> None:
        self._file.write(data)
        if self._flush:
            self._file.flush()

    def close(self) -> None:
        self._file.flush()


class SocketSink:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError:  # the real one throws this in a thread where nobody catches it
            say("terminate called after throwing an instance of 'std::runtime_error'")
            say("  what():  failed to send data on socket")
            die(-signal.SIGABRT)

    def close(self) -> None:
        self._connection.close()


def open_sink(options: dict[str, Any], persona: str) -> FileSink | SocketSink:
    output = options["output"]
    if "://" in output:
        return SocketSink(open_socket(output, options["listen"], options["verbose"]))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it; a camera dies with its reader
    flush = options["flush"] or persona == "pi5"  # libav writes to a pipe packet by packet
    if output == "-":
        return FileSink(os.fdopen(os.dup(1), "wb", buffering=4096), flush)
    return FileSink(open(output or os.devnull, "wb"), flush)


def open_socket(output: str, listen: bool, verbose: int) -> socket.socket:
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
