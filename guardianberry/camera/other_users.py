"""Who else uses the camera on this machine, and who sends what is read from a TCP port.

Another user of this machine could start a program of that name to keep us waiting, or listen on the port to feed us his
own film. Only our own user and root are believed.
"""

import itertools
import os
import re
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from guardianberry.camera.process import PROGRAMS

_ACCEPT_POLL_S = 0.02
_ESTABLISHED = "01"  # in /proc/net/tcp

# Programs of that name may be scripts: a stand-in, or a wrapper with a #! line.
_INTERPRETER = re.compile(r"(python[\d.]*|bash|dash|sh)$")


class RunningCamera(NamedTuple):
    pid: int
    name: str
    listens_on_port: int | None  # if started with --listen -o tcp://...

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def running_cameras() -> list[RunningCamera]:
    """Every camera program of our own user or root that is alive; zombies do not count."""
    found = []
    for process in psutil.process_iter(["uids"]):
        uids = process.info["uids"]
        if uids is None or not is_trusted(*uids):
            continue  # nothing else is read: megabytes of arguments, of hundreds of processes, would take a minute
        try:
            name, arguments, status = process.name(), process.cmdline(), process.status()
        except psutil.Error:  # it has ended
            continue
        if _INTERPRETER.match(name):
            name = _script_name(arguments)
        if name in PROGRAMS and status != psutil.STATUS_ZOMBIE:
            found.append(RunningCamera(process.pid, name, _listening_port(arguments)))
    return found


def is_trusted(*uids: int) -> bool:
    """Whether all of these are our own user or root."""
    return {0, os.getuid()}.issuperset(uids)


def uid_of_other_end(connection: socket.socket, timeout_s: float) -> int | None:
    """Who owns the other end of a TCP connection to this machine; None if nobody here has accepted it in time.

    Until a connection is accepted, the kernel's table gives it inode 0 and, whoever listens, the uid 0.
    """
    here, there = connection.getsockname(), connection.getpeername()
    ends = {(_kernel_address(*there[:2], v6=v6), _kernel_address(*here[:2], v6=v6)) for v6 in (False, True)}
    give_up_s = time.monotonic() + timeout_s
    while True:
        for table in ("tcp", "tcp6"):
            for row in _rows(Path("/proc/net", table)):
                if (row[1], row[2]) in ends and row[3] == _ESTABLISHED and row[9] != "0":
                    return int(row[7])
        if time.monotonic() >= give_up_s:
            return None
        time.sleep(_ACCEPT_POLL_S)


def _rows(table: Path) -> list[list[str]]:
    """Of /proc/net/tcp: its columns are number, local and remote address, state, ..., uid (7), time-out, inode (9)."""
    try:
        return [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:  # a kernel without IPv6
        return []


def _kernel_address(ip: str, port: int, *, v6: bool) -> str:
    """As in /proc/net/tcp and tcp6: 32-bit words in the machine's byte order, in hexadecimal."""
    if ":" in ip:
        packed = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    else:  # a socket for both families has IPv4 addresses in tcp6
        packed = (b"\x00" * 10 + b"\xff\xff" if v6 else b"") + socket.inet_aton(ip)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _script_name(arguments: list[str]) -> str:
    return next((os.path.basename(argument) for argument in arguments[1:] if not argument.startswith("-")), "")


def _listening_port(arguments: list[str]) -> int | None:
    if not {"--listen", "--listen=1", "-l"} & set(arguments):
        return None
    outputs = [value for flag, value in itertools.pairwise(arguments) if flag in ("-o", "--output")]
    outputs += [argument.partition("=")[2] for argument in arguments if argument.startswith("--output=")]
    matches = [re.match(r"tcp://[^/]*:(\d+)", output) for output in outputs]
    return next((int(match[1]) for match in matches if match), None)
