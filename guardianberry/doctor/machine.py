"""The doctor's look at the machine: power, group, folders, clock, start at boot. It changes nothing that stays."""

from __future__ import annotations

import contextlib
import grp
import os
import platform
import pwd
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from guardianberry.doctor.findings import Finding, fail, ok, warn
from guardianberry.filenames import PART_PREFIX
from guardianberry.machine import environment_without_credentials

LITTLE_SPACE_BYTES = 1_000_000_000  # some 200 clips: a weekend without network
NO_SPACE_BYTES = 50_000_000  # ten clips
COMMAND_TIMEOUT_S = 5
# What the bits of `vcgencmd get_throttled` say; the same again 16 bits higher: at some time since the boot.
_THROTTLED_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "too hot"}


def output_of(*command: str) -> str | None:
    """What the command prints; None if it is not there, fails, or does not end."""
    try:
        answer = subprocess.run(
            command,
            env=environment_without_credentials(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace")


def check_system(root: Path) -> Finding:
    """Which machine this is, and whether the packages exist for it."""
    model = read(root / "proc/device-tree/model").strip("\0 \n") or f"{platform.machine()}, no Raspberry Pi"
    bits = 8 * struct.calcsize("P")
    text = f"{model}, Python {platform.python_version()}, {bits}-bit"
    if bits < 64:
        return fail("machine", text, "Install the 64-bit Raspberry Pi OS: some packages exist only for that.")
    return ok("machine", text)


def check_user(folder: Path) -> Iterator[Finding]:
    """Root must not leave files behind that the daemon's user cannot read; the camera is for group video."""
    owner = folder.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        name = user_name(owner)
        yield fail("user", f"root, but {folder} belongs to {name}", f"Run this as {name}, without sudo.")
        return
    if os.geteuid() == 0:
        yield warn("user", "root", "An ordinary user in group video is enough, and safer.")
        return
    me = user_name(os.geteuid())
    try:
        video = grp.getgrnam("video")
    except KeyError:
        return  # no such group on this machine, so no camera that asks for it
    if video.gr_gid in {*os.getgroups(), os.getegid()}:
        yield ok("user", f"{me}, in group video")
    elif me in video.gr_mem:
        yield warn("user", f"{me} is in group video, but not yet in this session", "Log out and in again.")
    else:
        yield warn(
            "user", f"{me} is not in group video", f"Run this, then log out and in again:\nsudo usermod -aG video {me}"
        )


def check_power() -> Iterator[Finding]:
    """Only on a Raspberry Pi: does the power supply do?"""
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", output_of("vcgencmd", "get_throttled") or "")
    if match is None:
        return
    bits = int(match[1], 16)
    now = [text for bit, text in _THROTTLED_BITS.items() if bits >> bit & 1]
    earlier = [text for bit, text in _THROTTLED_BITS.items() if bits >> (bit + 16) & 1 and text not in now]
    said = [*(f"{text} now" for text in now), *(f"{text} since the boot" for text in earlier)]
    if not said:
        yield ok("power", "no under-voltage, not throttled")
        return
    cool = "" if "too hot" not in (*now, *earlier) else " Give it a heat sink and air."
    yield warn(
        "power",
        ", ".join(said),
        "Use the power supply made for this Pi and a short cable: under-voltage ruins SD cards and stops cameras."
        + cool,
    )


def check_folder(folder: Path, min_free_bytes: int) -> Finding:
    """One of the two folders of the queue: private, writable, with space. Nothing is made that stays."""
    subject = folder.name + "/"
    if folder.is_symlink() and not folder.exists():
        return fail(
            subject, f"a link to {folder.readlink()}, which is not there", "Mount that disk, or remove the link."
        )
    place = folder if folder.exists() else folder.parent
    me = user_name(os.geteuid())
    advice = f"Make it a folder of {me}:\nsudo chown -R {me} {place}"
    try:
        with tempfile.NamedTemporaryFile(prefix=PART_PREFIX, dir=place) as file:
            file.write(b"?" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free_bytes = shutil.disk_usage(place).free
    except OSError as error:
        return fail(subject, f"cannot be written to: {error.strerror}", advice)
    text = f"writable, {free_bytes / 1e9:.1f} GB free"
    if place == folder and folder.is_symlink():
        text += f", a link to {folder.resolve()}"
    make_space = "Delete what is not needed."
    if free_bytes < NO_SPACE_BYTES:
        return fail(subject, text, make_space)
    if free_bytes < min_free_bytes:
        return warn(
            subject, text, f"{make_space} That is below MIN_FREE_DISK_BYTES: the oldest videos go, uploaded or not."
        )
    if free_bytes < LITTLE_SPACE_BYTES:
        return warn(subject, text, make_space)
    return ok(subject, text if place == folder else f"will be made, {free_bytes / 1e9:.1f} GB free")


def check_clock(is_synchronised: Callable[[], bool], wait_s: float, now_text: str) -> Finding:
    if is_synchronised():
        return ok("clock", f"synchronised, it is {now_text}")
    return warn(
        "clock",
        f"not synchronised, it says {now_text}",
        f"See `timedatectl`. Events wait for it until {wait_s} s after the boot and are then dated as it stands;"
        " S3 refuses uploads from a clock that is 15 minutes off.",
    )


def check_start_at_boot(folder: Path, root: Path) -> Finding:
    """A line for cron, or a systemd unit, that starts this folder's daemon."""
    launcher = folder / "launch.sh"
    advice = f"Run crontab -e and add this line:\n@reboot {launcher} >> {folder.parent}/guardianberry.log 2>&1"
    if not os.access(launcher, os.X_OK):
        return warn("at boot", f"{launcher} is missing or not executable", f"Run this:\nchmod +x {launcher}")
    lines = [line for line in cron_lines(root) if "launch.sh" in line or "detect_and_upload.py" in line]
    mine = [line for line in lines if names_path(line, launcher)]
    if any(line.startswith("@reboot") for line in mine):
        return ok("at boot", "cron starts it (@reboot)")
    for unit in sorted((root / "etc/systemd/system").glob("*.service")):
        if names_path(read(unit), launcher):
            return ok("at boot", f"systemd starts it ({unit.name})")
    if mine:
        return warn("at boot", "cron knows it, but not with @reboot", advice)
    if lines:
        return warn("at boot", "cron starts a GuardianBerry of another folder", advice)
    return warn("at boot", "nothing starts it after a power cut", advice)


def cron_lines(root: Path) -> list[str]:
    """What cron does for this user and for the system, without comments."""
    own = re.sub(r"\$HOME\b|\$\{HOME\}|(?<!\S)~(?=/)", lambda _: str(Path.home()), output_of("crontab", "-l") or "")
    tables = [own, read(root / "etc/crontab")]
    tables += [read(path) for path in sorted((root / "etc/cron.d").glob("*"))]
    lines = (line.strip() for table in tables for line in table.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def names_path(text: str, path: Path) -> bool:
    """Whether `path` stands in the text as a whole word."""
    return re.search(rf"(?<![^\s=\"']){re.escape(str(path))}(?![^\s\"';&>])", text) is not None


def is_open_to_others(path: Path) -> bool:
    """Whether anyone but the owner may read or change the file; False if it is not there."""
    with contextlib.suppress(OSError):
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    return False


def user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
