"""Which address of the S3 server an upload goes to, when some of them or the name servers are dead."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guardianberry.upload.connect import Address, Addresses, connect, in_order
from tests.broken_network import NAME_SERVER, SILENT_NAME_SERVER, BlackHole, in_own_namespace
from tests.daemon import ROOT
from tests.raw_server import DONE, RawServer, read_body
from tests.upload_rig import Rig, jpeg, wait_until

V6, V4 = socket.AF_INET6, socket.AF_INET
ONE, TWO, THREE = (Address(V6, (f"2001:db8::{n}", 443, 0, 0)) for n in (1, 2, 3))
FOUR, FIVE = (Address(V4, (f"192.0.2.{n}", 443)) for n in (4, 5))


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        (None, None, [ONE, FOUR, TWO, FIVE, THREE]),
        (FOUR, None, [FOUR, FIVE, ONE, TWO, THREE]),
        (FIVE, FOUR, [FIVE, ONE, TWO, THREE, FOUR]),
        (None, ONE, [TWO, FOUR, THREE, FIVE, ONE]),
        (Address(V4, ("192.0.2.99", 443)), None, [FOUR, ONE, FIVE, TWO, THREE]),  # gone, but its family works
    ],
)
def test_the_good_address_goes_first_the_bad_one_last_and_families_take_turns(
    good: Address | None, bad: Address | None, expected: list[Address]
) -> None:
    assert in_order([ONE, TWO, THREE, FOUR, FIVE], good, bad) == expected


def test_of_a_flood_of_addresses_only_some_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be a connection that is kept open, one every 250 ms, until the process has no descriptors left."""
    flood = [(V4, socket.SOCK_STREAM, 6, "", (f"10.0.{n // 250}.{n % 250}", 443)) for n in range(4000)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: flood)
    addresses, server = Addresses(), ("s3.test", 443)
    good = Address(V4, ("10.0.15.200", 443))
    addresses.note(server, good, answered=True)
    found = addresses.find(server)
    assert len(found) <= 20
    assert found[0] == good


def take(connection: socket.socket, head: bytes) -> None:
    read_body(connection, head)
    connection.sendall(DONE)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(take) as server:
        yield server


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    caplog.set_level(logging.DEBUG, logger="guardianberry")
    rig = Rig(tmp_path, monkeypatch, url="http://127.0.0.1:1", name="connect")
    yield rig
    rig.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """The name `localhost` has these addresses, in this order."""
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host != "localhost":
            return real(host, port, *rest, **more)
        return [(V4, socket.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("dead", [1, 2, 4])
def test_dead_addresses_before_the_good_one_make_no_alert_late(
    rig: Rig, server: RawServer, monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    """As behind a router that announces IPv6 without having it. One after the other, each would cost five seconds."""
    holes = [BlackHole(f"127.0.0.{number}", server.port) for number in range(2, 2 + dead)]
    resolve_to(monkeypatch, *(f"127.0.0.{number}" for number in range(2, 2 + dead)), "127.0.0.1")
    rig.use(f"http://localhost:{server.port}")
    uploader = rig.start()
    for number, limit_s in enumerate([4.5, 2.5]):
        begun_s = time.monotonic()
        stored = threading.Event()
        name = f"{1_700_000_000 + number}-81-640-480.jpg"
        uploader.offer_alert(name, jpeg(), frame_arrival_s=begun_s, stored=stored.set)
        assert stored.wait(limit_s), "the alert is late"
    for hole in holes:
        hole.close()


def test_an_address_that_refuses_is_passed_at_once(server: RawServer) -> None:
    dead, good = Address(V4, ("127.0.0.2", server.port)), Address(V4, ("127.0.0.1", server.port))
    connected, address = connect([dead] * 30 + [good], timeout_s=2)  # 30 times 250 ms is more
    connected.close()
    assert address == good


def test_without_any_answer_it_ends(server: RawServer) -> None:
    hole = BlackHole("127.0.0.2", server.port)
    with pytest.raises(TimeoutError):
        connect([Address(V4, ("127.0.0.2", server.port))] * 2, timeout_s=0.1)
    with pytest.raises(ConnectionRefusedError):
        connect([Address(V4, ("127.0.0.3", server.port))] * 2, timeout_s=0.1)
    hole.close()


def test_an_address_that_takes_connections_and_never_answers_is_not_tried_first_again(
    rig: Rig, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a link that loses large packets alone."""
    monkeypatch.setattr("guardianberry.upload.transport._READ_TIMEOUT_S", 0.5)
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    with socket.create_server(("127.0.0.2", server.port)):
        rig.use(f"http://localhost:{server.port}")
        rig.add_image(1_700_000_000)
        rig.start()
        rig.wait_until_empty()


@pytest.mark.parametrize("elsewhere", ["192.0.2.1", "::ffff:192.0.2.1"])
def test_plain_http_goes_to_this_machine_alone_whatever_a_name_server_says(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, elsewhere: str
) -> None:
    """Where /etc/hosts has no `localhost`, or boto3 puts the bucket's name before it, name servers are asked for it."""
    tried: list[Any] = []
    monkeypatch.setattr("guardianberry.upload.connect._begin", lambda selector, address, options: tried.append(address))
    resolve_to(monkeypatch, elsewhere)
    rig.use("http://localhost:9000")
    rig.add_image(1_700_000_000)
    uploader = rig.start()
    wait_until(lambda: uploader.counters().failed_tries >= 1, "it is not given up")
    assert not tried
    assert "plain http" in caplog.text


class SlowNames:
    """Look-ups that wait until `answer` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = threading.Event()
        self.answer.set()
        self.failure: OSError | None = None
        self.look_ups = 0
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: int, *_: Any, **__: Any) -> Any:
        self.look_ups += 1
        self.answer.wait(30)
        if self.failure:
            raise self.failure
        return [(V4, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


def test_a_slow_look_up_is_not_waited_for_where_an_address_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    names, addresses, server = SlowNames(monkeypatch), Addresses(), ("s3.example", 443)
    known = addresses.find(server)
    names.answer.clear()
    for _ in range(3):
        assert addresses.find(server) == known
    assert names.look_ups == 2, "each upload makes a thread of its own wait"
    assert sum(thread.name == "look-up" for thread in threading.enumerate()) == 1
    names.answer.set()
    wait_until(lambda: not any(thread.name == "look-up" for thread in threading.enumerate()), "it does not end")
    assert addresses.find(server) == known
    assert names.look_ups == 3


def test_a_look_up_that_fails_is_no_matter_where_an_address_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    names, addresses = SlowNames(monkeypatch), Addresses()
    known = addresses.find(("s3.example", 443))
    names.failure = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert addresses.find(("s3.example", 443)) == known
    with pytest.raises(socket.gaierror, match="Temporary failure"):
        addresses.find(("other.example", 443))


def test_the_server_is_looked_up_before_the_first_alert(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    names = SlowNames(monkeypatch)
    rig.use("https://s3.example")
    rig.start()
    wait_until(lambda: names.look_ups, "it is not looked up")


DEAD_NAME_SERVER = f"""
import time
from pathlib import Path
from guardianberry.upload.connect import Addresses
from tests.broken_network import use_name_servers

use_name_servers(Path.cwd(), "192.0.2.1", "{SILENT_NAME_SERVER}", "{NAME_SERVER}")
addresses = Addresses()
for _ in range(2):
    begun_s = time.monotonic()
    assert [address.sockaddr for address in addresses.find(("s3.example.test", 443))] == [("192.0.2.1", 443)]
    print(time.monotonic() - begun_s)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a name server of its own needs root")
def test_a_dead_first_name_server_makes_no_alert_late(tmp_path: Path) -> None:
    """glibc waits five seconds for it, at each look-up."""
    command = in_own_namespace("-c", DEAD_NAME_SERVER)
    env = {"PATH": os.defpath + ":/usr/sbin:/sbin", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    if "mount" in ran.stderr or "unshare" in ran.stderr:
        pytest.skip(f"no name server of its own here: {ran.stderr}")
    first_s, second_s = map(float, ran.stdout.split())
    assert first_s < 3.5, ran.stderr
    assert second_s < 1.5, ran.stderr
