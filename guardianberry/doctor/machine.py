"""--check of the machine: power, group, folders, clock, start at boot. It leaves nothing behind."""

import contextlib
import errno
import grp
import os
import platform
import re
import shlex
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from guardianberry.disk import what_to_do
from guardianberry.doctor.page import Finding, fail, ok, warn
from guardianberry.filenames import DAMAGED_PREFIX, PART_PREFIX
from guardianberry.machine import answer_of, power_faults, read_text, user_name
from guardianberry.recording.clock import CLOCK_WAIT_S

LITTLE_SPACE_BYTES = 1_000_000_000  # about 200 clips: a weekend without network
NO_SPACE_BYTES = 50_000_000  # ten clips


def check_system(root: Path) -> Finding:
    """Which machine this is, and whether the packages exist for it."""
    model = read_text(root / "proc/device-tree/model").strip("\0 \n") or f"{platform.machine()}, no Raspberry Pi"
    bits = 8 * struct.calcsize("P")
    text = f"{model}, Python {platform.python_version()}, {bits}-bit"
    if bits < 64:
        return fail("machine", text, "Install the 64-bit Raspberry Pi OS: some packages exist only for that.")
    return ok("machine", text)


class User(NamedTuple):
    """Who runs this. `video`: "no group" on this machine, "in session", "after login" or "not a member"."""

    uid: int
    name: str
    video: str


def current_user() -> User:
    name = user_name(os.geteuid())
    try:
        group = grp.getgrnam("video")
    except KeyError:
        return User(os.geteuid(), name, "no group")
    if group.gr_gid in {*os.getgroups(), os.getegid()}:
        return User(os.geteuid(), name, "in session")
    return User(os.geteuid(), name, "after login" if name in group.gr_mem else "not a member")


def check_user(folder: Path, user: User) -> Iterator[Finding]:
    """Root must not leave files that the daemon's user cannot read; the camera is for group video."""
    owner = folder.stat().st_uid
    if user.uid == 0 and owner != 0:
        name = user_name(owner)
        yield fail("user", f"root, but {folder} belongs to {name}", f"Run this as {name}, without sudo.")
    elif user.uid == 0:
        yield warn("user", "root", "An ordinary user in group video is enough, and safer.")
    elif user.video == "in session":
        yield ok("user", f"{user.name}, in group video")
    elif user.video == "after login":
        yield warn("user", f"{user.name} is in group video, but not yet in this session", "Log out and in again.")
    elif user.video == "not a member":
        command = f"sudo usermod -aG video {user.name}"
        yield warn("user", f"{user.name} is not in group video", f"Run this, then log out and in again:\n{command}")


def check_power() -> Iterator[Finding]:
    """Only on a Raspberry Pi: is the power supply strong enough?"""
    faults = power_faults()
    if faults is None:
        return
    if not faults:
        yield ok("power", "no under-voltage, not throttled")
        return
    advice = "Use the power supply made for this Pi and a short cable: too little damages cards and stops cameras."
    too_hot = " Give it a heat sink and air." if any("too hot" in fault for fault in faults) else ""
    yield warn("power", ", ".join(faults), advice + too_hot)


def check_folder(
    folder: Path,
    min_free_bytes: int,
    user: User,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> Finding:
    """One of the two folders of the queue: can be written to, with space. As long as its disk hangs, so does this."""
    subject, place = folder.name + "/", folder
    try:
        if folder.is_symlink() and not folder.exists():
            text = f"a link to {folder.readlink()}, which is not there"
            return fail(subject, text, "Mount that disk, or remove the link.")
        if not folder.exists():
            place = folder.parent
        with tempfile.NamedTemporaryFile(prefix=PART_PREFIX, dir=place) as file:
            file.write(b"?" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free, damaged = free_bytes(place), sorted(folder.glob(f"{DAMAGED_PREFIX}*"))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOTDIR):
            return fail(subject, f"cannot be used: {what_to_do(error, folder)}")
        advice = f"Make it a folder of {user.name}:\nsudo chown -R {user.name} {shlex.quote(str(place))}"
        return fail(subject, f"cannot be written to: {error.strerror}", advice)
    text = f"writable, {free / 1e9:.1f} GB free"
    if place == folder and folder.is_symlink():
        text += f", a link to {folder.resolve()}"
    if damaged:
        text += f"; clips that could not be finished: {len(damaged)}, such as {damaged[0].name}"
    make_space = "Delete what is not needed."
    if free < NO_SPACE_BYTES:
        return fail(subject, text, make_space)
    if free < min_free_bytes:
        advice = f"{make_space} That is below MIN_FREE_DISK_BYTES: the oldest videos are deleted, uploaded or not."
        return warn(subject, text, advice)
    if free < LITTLE_SPACE_BYTES:
        return warn(subject, text, make_space)
    if damaged:
        return warn(subject, text, "Look at them on another computer, or remove them: nothing else does.")
    return ok(subject, text if place == folder else f"will be made, {free / 1e9:.1f} GB free")


def check_clock(is_synchronised: Callable[[], bool], now_text: str) -> Finding:
    if is_synchronised():
        return ok("clock", f"synchronised, it is {now_text}")
    advice = (
        f"See `timedatectl`. Events wait for it until {CLOCK_WAIT_S:.0f} s after the boot and then take its time as it"
        " is; S3 refuses uploads from a clock that is 15 minutes off."
    )
    return warn("clock", f"not synchronised, it says {now_text}", advice)


def check_start_at_boot(folder: Path, root: Path) -> Finding:
    """A line for cron, or a systemd unit, that starts this folder's daemon."""
    launcher = folder / "launch.sh"
    command = shlex.quote(str(launcher))
    advice = "Run crontab -e and add this line:\n@reboot " + command.replace("%", r"\%")  # cron ends a command at %
    if not os.access(launcher, os.X_OK):
        return warn("at boot", f"{launcher} is missing or not executable", f"Run this:\nchmod +x {command}")
    lines = [line for line in cron_lines(root) if "launch.sh" in line or "detect_and_upload.py" in line]
    mine = [line for line in lines if names_path(line, launcher)]
    if any(line.startswith("@reboot") for line in mine):
        return ok("at boot", "cron starts it (@reboot)")
    for unit in sorted((root / "etc/systemd/system").glob("*.service")):
        if names_path(read_text(unit), launcher):
            return ok("at boot", f"systemd starts it ({unit.name})")
    if mine:
        return warn("at boot", "cron starts it, but not with @reboot", advice)
    if lines:
        return warn("at boot", "cron starts a GuardianBerry of another folder", advice)
    return warn("at boot", "nothing starts it after a power cut", advice)


def cron_lines(root: Path) -> list[str]:
    """The lines of this user's crontab and of the system's, without comments, and with cron's \\% as %."""
    code, own = answer_of("crontab", "-l")
    own = re.sub(r"\$HOME\b|\$\{HOME\}|(?<!\S)~(?=/)", lambda _: str(Path.home()), own if code == 0 else "")
    tables = [own, read_text(root / "etc/crontab")]
    tables += [read_text(path) for path in sorted((root / "etc/cron.d").glob("*"))]
    lines = (line.strip().replace(r"\%", "%") for table in tables for line in table.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def names_path(text: str, path: Path) -> bool:
    """Whether the text has `path` as a whole word, in quotes if it has a space, or as `shlex.quote` writes it."""
    start = r"(?<=[\"'])" if " " in str(path) else r"(?<![^\s=\"'])"
    name = rf"({start}{re.escape(str(path))}|(?<!\S){re.escape(shlex.quote(str(path)))})(?![^\s\"';&>])"
    return re.search(name, text) is not None


def is_open_to_others(path: Path) -> bool:
    """Whether anyone but the owner may read or change the file; False if it is not there."""
    with contextlib.suppress(OSError):
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    return False
