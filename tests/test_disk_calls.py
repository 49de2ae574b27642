"""Files that are whole after any failure, disks that hang, and what the owner is told to do."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from guardianberry.disk import FAULTS, DiskThread, what_to_do, write_atomically
from tests.mounts import read_only, small_disk


def test_what_is_written_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "1-2-3-4.jpg"
    path.write_bytes(b"old")
    write_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"new" * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_under_the_name_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"old")
    (tmp_path / ".part-1-2-3-4.jpg").symlink_to(other)
    write_atomically(tmp_path / "1-2-3-4.jpg", b"new")
    assert other.read_bytes() == b"old"
    assert not (tmp_path / "1-2-3-4.jpg").is_symlink()


def test_on_a_full_disk_the_file_is_as_before_and_nothing_is_left(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        path = disk / "1-2-3-4.jpg"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, bytes(200_000))
        assert path.read_bytes() == b"old"
        assert list(disk.iterdir()) == [path]


def test_a_call_to_a_disk_that_hangs_is_given_up_and_later_ones_fail_at_once() -> None:
    disk, answer = DiskThread(timeout_s=0.05), threading.Event()
    with pytest.raises(TimeoutError, match="the disk does not answer"):
        disk.call(answer.wait)
    assert disk.hangs
    ran: list[int] = []
    with pytest.raises(OSError, match="the disk does not answer"):
        disk.call(ran.append, 1)
    answer.set()
    while disk.hangs:
        pass
    assert disk.call(len, "abc") == 3
    assert not ran


def test_what_a_call_raises_comes_out() -> None:
    with pytest.raises(FileNotFoundError):
        DiskThread().call(os.stat, "/nowhere/that/exists")


def test_a_timeout_of_the_call_itself_is_no_disk_that_hangs() -> None:
    def fails() -> None:
        raise TimeoutError(errno.ETIMEDOUT, "NFS gave up")

    disk = DiskThread()
    with pytest.raises(TimeoutError, match="NFS gave up"):
        disk.call(fails)
    assert not disk.hangs


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EROFS, "Read-only file system: see `dmesg`"),
        (errno.EIO, "Input/output error: see `dmesg`"),
        (errno.ENOSPC, "No space left on device: free some space"),
        (errno.EDQUOT, "Disk quota exceeded: free some space"),
        (errno.ESTALE, "unmount it and mount it again"),
        (errno.EINVAL, "Invalid argument: it is tried again"),
    ],
)
def test_each_fault_has_its_advice(tmp_path: Path, number: int, advice: str) -> None:
    assert advice in what_to_do(OSError(number, os.strerror(number)), tmp_path)
    assert (number in FAULTS) == (number != errno.EINVAL), "is it the disk, or this file alone?"


def test_a_folder_of_another_user_is_told_with_the_command_that_helps(tmp_path: Path) -> None:
    (tmp_path / "videos of all").mkdir()
    (tmp_path / "link").symlink_to("videos of all")
    denied = PermissionError(errno.EACCES, "Permission denied")
    for name in ("videos of all", "link"):  # chown -R follows no link that it is given
        told = what_to_do(denied, tmp_path / name)
        assert told.endswith(f" '{tmp_path}/videos of all'")
        assert told.startswith("Permission denied: sudo chown -R ")
    assert "sudo install -d -m 700 -o " in what_to_do(denied, tmp_path / "missing")


def test_a_link_to_a_disk_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    (tmp_path / "videos").symlink_to("/media/stick/videos")
    with pytest.raises(OSError, match="exists") as caught:
        (tmp_path / "videos").mkdir()
    assert what_to_do(caught.value, tmp_path / "videos") == (
        "it is a link to /media/stick/videos, which is not there: mount that disk"
    )


def test_a_disk_that_takes_no_writes_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    path = tmp_path / "disk" / "1-2-3-4.jpg"
    path.write_bytes(b"old")
    with read_only(tmp_path / "disk"), pytest.raises(OSError, match="Read-only"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
