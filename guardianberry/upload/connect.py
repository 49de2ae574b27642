"""Connects to a server at the address that answers first, as RFC 8305 ("Happy Eyeballs") describes it.

urllib3 tries one address after the other, 5 s each: behind a router that announces IPv6 without having it, every alert
would be late by 5 s for each IPv6 address of the server.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from urllib3.util.connection import allowed_gai_family

from guardianberry.machine import started

_ATTEMPT_DELAY_S = 0.25  # RFC 8305, section 5
_LOOK_UP_TIMEOUT_S = 20.0
# A forged answer of a name server can hold 4,000 addresses, each of them a connection that is kept open.
_MAX_ADDRESSES = 20
# The last known addresses are used when a look-up takes longer. It goes on, for the next connection.
_SLOW_LOOK_UP_S = 0.5
# For glibc (resolv.conf(5)): a name server that is dead costs 2 s instead of 5 s until the next one is asked.
os.environ.setdefault("RES_OPTIONS", "timeout:2 attempts:3")


class Address(NamedTuple):
    """As `socket.getaddrinfo` gives it."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]


Server = tuple[str, int]  # host name and port


class Addresses:
    """The addresses of servers by name, and which of them worked. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Server, Future[list[Address]]] = {}
        self._known: dict[Server, list[Address]] = {}
        self._good: dict[Server, Address] = {}  # the last one through which an answer came
        self._bad: dict[Server, Address] = {}  # the last one that accepted a connection and then gave no answer

    def look_up(self, server: Server) -> Future[list[Address]]:
        """The look-up of this server, in a thread of its own; one at a time."""
        with self._lock:
            if server not in self._running:
                thread = threading.Thread(target=self._look_up, args=(server,), name="look-up", daemon=True)
                running = self._running[server] = Future()
                if not started(thread):
                    del self._running[server]
                    running.set_exception(OSError(errno.EAGAIN, "the system has no thread left"))
                return running
            return self._running[server]

    def find(self, server: Server) -> list[Address]:
        """In the order in which they should be tried. Raises OSError where no address is known."""
        known = self._known.get(server)
        try:
            found = self.look_up(server).result(_SLOW_LOOK_UP_S if known else _LOOK_UP_TIMEOUT_S)
        except OSError as error:  # TimeoutError, too
            if known:
                found = known
            elif error.strerror:
                raise
            else:
                raise TimeoutError(errno.ETIMEDOUT, "the look-up of the server's name takes too long") from error
        with self._lock:
            return in_order(found, self._good.get(server), self._bad.get(server))[:_MAX_ADDRESSES]

    def note(self, server: Server, address: Address, *, answered: bool) -> None:
        """Whether the server answered a request at this address, to which there was a connection."""
        now, before = (self._good, self._bad) if answered else (self._bad, self._good)
        with self._lock:
            now[server] = address
            if before.get(server) == address:
                del before[server]

    def _look_up(self, server: Server) -> None:
        try:
            entries = socket.getaddrinfo(*server, allowed_gai_family(), socket.SOCK_STREAM)
            found = list(dict.fromkeys(Address(entry[0], entry[4]) for entry in entries))
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            with self._lock:
                self._running.pop(server).set_exception(error)
            return
        with self._lock:
            self._known[server] = found
            self._running.pop(server).set_result(found)


def in_order(addresses: Sequence[Address], good: Address | None, bad: Address | None) -> list[Address]:
    """The good one first, the bad one last, and the families by turns, beginning with that of the good one."""
    rest = [address for address in addresses if address not in (good, bad)]
    families = list(dict.fromkeys(address.family for address in rest))
    if good is not None:
        families.sort(key=lambda family: family is not good.family)
    by_family = [[address for address in rest if address.family is family] for family in families]
    turns = [address for turn in itertools.zip_longest(*by_family) for address in turn if address is not None]
    return [
        *(address for address in addresses if address == good),
        *turns,
        *(address for address in addresses if address == bad),
    ]


def connect(
    addresses: Sequence[Address], *, timeout_s: float, options: Sequence[tuple[int, int, int | bytes]] = ()
) -> tuple[socket.socket, Address]:
    """A connection to the first address that accepts one, and that address. Raises OSError.

    The next address is tried when the one before fails, or after 250 ms. `timeout_s` counts from the last attempt.
    """
    left = list(reversed(addresses))
    failure = OSError(errno.EHOSTUNREACH, "the server's name has no address")
    next_s, give_up_s = 0.0, 0.0
    with selectors.DefaultSelector() as selector:
        try:
            while left or selector.get_map():
                now_s = time.monotonic()
                if left and now_s >= next_s:
                    next_s, give_up_s = now_s + _ATTEMPT_DELAY_S, now_s + timeout_s
                    try:
                        _begin(selector, left.pop(), options)
                    except OSError as error:
                        failure, next_s = error, 0.0
                    continue
                if not left and now_s >= give_up_s:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                for key, _ in selector.select((next_s if left else give_up_s) - now_s):
                    attempt = key.fileobj
                    assert isinstance(attempt, socket.socket)
                    selector.unregister(attempt)
                    if number := attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        attempt.close()
                        failure, next_s = OSError(number, os.strerror(number)), 0.0
                    else:
                        return attempt, key.data
        finally:
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
    raise failure


def _begin(selector: selectors.BaseSelector, address: Address, options: Sequence[tuple[int, int, int | bytes]]) -> None:
    attempt = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        for option in options:
            attempt.setsockopt(*option)
        attempt.setblocking(False)
        if (number := attempt.connect_ex(address.sockaddr)) not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        selector.register(attempt, selectors.EVENT_WRITE, address)
    except OSError:
        attempt.close()
        raise


class Exchange:
    """One request and its answer. When the time is over, the connection is shut down, whatever it is waiting for."""

    def __init__(self, addresses: Addresses, limit_s: float) -> None:
        self.limit_s = limit_s
        self.is_expired = False
        self.is_elsewhere = False  # it should go to this machine alone, and the server's name leads elsewhere
        self._addresses = addresses
        self._reached: tuple[Server, Address] | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None  # a duplicate: the original goes from socket to TLS socket
        self._timer = threading.Timer(0, self._expire)

    def __enter__(self) -> Exchange:
        self.limit(self.limit_s)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def limit(self, limit_s: float) -> None:
        """The time that is left from now on."""
        self._timer.cancel()
        self.limit_s = limit_s
        self._timer = threading.Timer(limit_s, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def connect(self, server: Server, options: Any, *, only_here: bool, timeout_s: float) -> socket.socket:
        found = self._addresses.find(server)
        if only_here:  # what /etc/hosts does not know, a name server answers, "localhost" too
            found = [address for address in found if ipaddress.ip_address(address.sockaddr[0]).is_loopback]
            self.is_elsewhere = not found
        connected, address = connect(found, timeout_s=timeout_s, options=options or ())
        connected.settimeout(timeout_s)
        self._reached = server, address
        with self._lock:
            self._socket = connected.dup()
        if self.is_expired:
            self._expire()
        return connected

    def note(self, *, answered: bool) -> None:
        if self._reached is not None:
            self._addresses.note(*self._reached, answered=answered)

    def _expire(self) -> None:
        with self._lock:
            self.is_expired = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the other end has closed it already
                    self._socket.shutdown(socket.SHUT_RDWR)
