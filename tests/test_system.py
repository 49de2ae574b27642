"""Serial number, private folders, one daemon a folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardianberry.machine import (
    AlreadyRunningError,
    FolderError,
    get_rpi_serial_number,
    lock_folder,
    make_private_folder,
)


def write(root: Path, name: str, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_the_serial_number_comes_from_the_best_source_there_is(tmp_path):
    assert get_rpi_serial_number(tmp_path) == "unknown"
    write(tmp_path, "etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    assert get_rpi_serial_number(tmp_path) == "0123456789abcdef0123456789abcdef"
    write(
        tmp_path, "proc/cpuinfo", b"processor\t: 0\nHardware\t: BCM2835\nSerial\t\t: 10000000abcdef01\nModel\t\t: x\n"
    )
    assert get_rpi_serial_number(tmp_path) == "10000000abcdef01"
    write(tmp_path, "sys/firmware/devicetree/base/serial-number", b"100000001234abcd\0")
    assert get_rpi_serial_number(tmp_path) == "100000001234abcd"


def test_a_serial_number_can_always_travel_in_a_header(tmp_path):
    write(tmp_path, "etc/machine-id", b"bad\r\nX-Injected: 1 \xff\n")
    assert get_rpi_serial_number(tmp_path) == "badX-Injected1"


def test_folders_are_for_the_owner_alone_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        (tmp_path / "old").mkdir(mode=0o777)
        for name in ("new", "old"):
            make_private_folder(tmp_path / name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(old)


def test_a_folder_on_a_disk_that_is_not_mounted_is_named(tmp_path):
    (tmp_path / "videos").symlink_to("/media/stick/videos")
    with pytest.raises(
        FolderError, match=r"/videos cannot be made .* link to /media/stick/videos: is that disk mounted"
    ):
        make_private_folder(tmp_path / "videos")


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
    assert not list(tmp_path.iterdir())
