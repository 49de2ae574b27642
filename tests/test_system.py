"""Serial number, private folders, one daemon a folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardianberry.machine import (
    AlreadyRunningError,
    StopFlag,
    for_child,
    get_rpi_serial_number,
    lock_folder,
)


def write(root: Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_the_serial_number_comes_from_the_best_source_there_is(tmp_path):
    assert get_rpi_serial_number(tmp_path) == "unknown"
    write(tmp_path, "etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    # As `systemd-id128 machine-id --app-specific=5c0d9a3f0b2e4d6c9a51b8f1e7d24c36` says there.
    assert get_rpi_serial_number(tmp_path) == "7ebd13bbf5aa46b88edcae9966db96cc"
    write(
        tmp_path, "proc/cpuinfo", b"processor\t: 0\nHardware\t: BCM2835\nSerial\t\t: 10000000abcdef01\nModel\t\t: x\n"
    )
    assert get_rpi_serial_number(tmp_path) == "10000000abcdef01"
    write(tmp_path, "sys/firmware/devicetree/base/serial-number", b"100000001234abcd\0")
    assert get_rpi_serial_number(tmp_path) == "100000001234abcd"


def test_a_serial_number_can_always_travel_in_a_header(tmp_path):
    write(tmp_path, "etc/machine-id", b"uninitialized\n")
    assert get_rpi_serial_number(tmp_path) == "unknown"
    write(tmp_path, "sys/firmware/devicetree/base/serial-number", b"bad\r\nX-Injected: 1 \xff\n")
    assert get_rpi_serial_number(tmp_path) == "badX-Injected1"


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
    hold = "import sys; from pathlib import Path; from guardianberry.machine import lock_folder\n"
    hold += "lock_folder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunningError, match=str(tmp_path)):
            lock_folder(tmp_path)
        other.kill()
    os.close(lock_folder(tmp_path))


def test_a_stop_flag_can_be_set_by_a_signal_while_it_is_being_set():
    """Ctrl-C in a terminal sends two signals at once: to the daemon and to launch.sh, which sends another."""
    program = """
import os, signal, time
from guardianberry.machine import StopFlag
stop = StopFlag()
signal.signal(signal.SIGALRM, lambda *_: stop.set())
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
for _ in range(200_000):
    stop.set()
signal.setitimer(signal.ITIMER_REAL, 0)
assert stop.wait(10) and stop.is_set()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_waiting_for_a_stop_is_bounded():
    stop = StopFlag()
    assert not stop.wait(0.01)
    stop.set()
    assert stop.wait()


def test_a_child_gets_what_it_needs_and_no_more(monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "SOMEBODYS_TOKEN", "STAND_IN_VIDEO", "LC_TIME"):
        monkeypatch.setenv(name, "x")
    child = for_child("STAND_IN_*")
    assert {"PATH", "STAND_IN_VIDEO", "LC_TIME"} <= set(child["env"])
    assert not {"AWS_SECRET_ACCESS_KEY", "SOMEBODYS_TOKEN"} & set(child["env"])
    assert child["cwd"] == Path("/")
