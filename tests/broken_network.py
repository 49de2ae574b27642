"""Dead addresses on loopback, and name servers of one's own (for root, in a network namespace)."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

SILENT_NAME_SERVER, NAME_SERVER = "127.0.0.9", "127.0.0.10"
_TYPE_A = b"\0\1"


class BlackHole:
    """An address that never answers: its backlog is full, so that the kernel drops every further SYN."""

    def __init__(self, address: str, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._sockets = [socket.create_server((address, port), family=family, backlog=0)]
        self.port = int(self._sockets[0].getsockname()[1])
        for _ in range(4):
            client = socket.socket(family)
            client.setblocking(False)
            client.connect_ex((address, self.port))
            self._sockets.append(client)

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def in_own_namespace(*arguments: str) -> list[str]:
    """The command that runs Python with these arguments where only it sees loopback and what it mounts. Needs root."""
    unshare = [shutil.which("unshare") or "unshare", "--mount", "--net"]
    return [*unshare, "sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, *arguments]


def use_name_servers(folder: Path, address: str, *servers: str) -> None:
    """In a namespace of one's own: these are asked, in this order. One says `address` for every name, one is silent."""
    for name, lines in {"resolv.conf": [f"nameserver {server}\n" for server in servers], "hosts": []}.items():
        (folder / name).write_text("".join(lines), encoding="ascii")
        subprocess.run(["mount", "--bind", str(folder / name), f"/etc/{name}"], check=True)
    silent, answering = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    silent.bind((SILENT_NAME_SERVER, 53))
    answering.bind((NAME_SERVER, 53))
    threading.Thread(target=_answer, args=(answering, silent, address), daemon=True).start()


def _answer(server: socket.socket, _silent: socket.socket, address: str) -> None:
    record = bytes.fromhex("c00c00010001000000010004") + ipaddress.IPv4Address(address).packed
    with contextlib.suppress(OSError):
        while True:
            query, client = server.recvfrom(512)
            question = query[12 : query.index(0, 12) + 5]
            is_a = question[-4:-2] == _TYPE_A
            counts = bytes([0, 1, 0, is_a, 0, 0, 0, 0])
            server.sendto(query[:2] + b"\x81\x80" + counts + question + record * is_a, client)
