"""--check of who can change the program: another user who can would have his code run as the daemon's user."""

import contextlib
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from guardianberry.doctor.page import Finding, fail, ok

_EXAMPLES = 3


def check_permissions(folder: Path, env: Path) -> Iterator[Finding]:
    """The program in `folder`, its `env`, and the folders that they are in: nobody else may write there.

    Nor to ~/.aws: its `config` can name a program that boto3 starts (credential_process).
    """
    configuration = Path(os.environ.get("HOME", "/"), ".aws")
    roots = {folder, *(path.resolve() for path in (folder, env, folder / "models", configuration) if path.exists())}
    inside = [path for root in sorted(roots) for path in _tree(root)]
    targets = {Path(os.path.realpath(path)) for path in inside if path.is_symlink()}  # env/bin/python, say
    parents = {parent for path in roots | targets for parent in path.parents}
    found = [path for path in sorted(parents) if is_writable_by_others(path, sticky_is_safe=True)]
    found += [path for path in (*inside, *sorted(targets)) if is_writable_by_others(path)]
    found = list(dict.fromkeys(found))
    if not found:
        yield ok("permissions", "nobody else can change the program")
        return
    more = f" and {len(found) - _EXAMPLES} more" if len(found) > _EXAMPLES else ""
    commands = list(_commands(found, sorted(roots)))
    text = f"other users can write to {', '.join(map(str, found[:_EXAMPLES]))}{more}, and so run code as you"
    yield fail(
        "permissions", text, "\n".join(["Run this, and clone the program anew if you do not trust them:", *commands])
    )


def _commands(found: list[Path], roots: list[Path]) -> Iterator[str]:
    """For each path, or for the folder that holds them where many are in one of `roots`. `roots`: outer ones first."""
    groups: dict[Path | None, list[Path]] = {}
    for path in found:
        groups.setdefault(next((root for root in roots if path.is_relative_to(root)), None), []).append(path)
    for root, paths in groups.items():
        if root and len(paths) > _EXAMPLES:
            holder = Path(os.path.realpath(os.path.commonpath(paths)))
            yield from _commands_that_close(holder, "-R ", is_of_another=any(map(_is_of_another, paths)))
        else:
            for path in paths[:_EXAMPLES]:
                yield from _commands_that_close(path, "", is_of_another=_is_of_another(path))


def _commands_that_close(path: Path, option: str, *, is_of_another: bool) -> Iterator[str]:
    name = shlex.quote(str(path))
    if is_of_another:
        yield f"sudo chown {option}{os.geteuid()} {name}"
    yield f"sudo chmod {option}go-w {name}"


def _is_of_another(path: Path) -> bool:
    return path.lstat().st_uid not in (0, os.geteuid())


def is_writable_by_others(path: Path, *, sticky_is_safe: bool = False) -> bool:
    """By anybody but root and this user. `sticky_is_safe`: in /tmp others can add files, but not replace ours."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if stat.S_ISLNK(status.st_mode):
        return False  # its target is what counts, and it cannot be changed where its folder cannot
    if status.st_uid not in (0, os.geteuid()):
        return True
    if sticky_is_safe and status.st_mode & stat.S_ISVTX:
        return False
    by_group = status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_gid)
    return bool(status.st_mode & stat.S_IWOTH or by_group)


def _is_private_group(number: int) -> bool:
    """Whether nobody but root and this user is in the group."""
    me = {0, os.geteuid()}
    members = {entry.pw_uid for entry in pwd.getpwall() if entry.pw_gid == number}
    with contextlib.suppress(KeyError):
        for name in grp.getgrgid(number).gr_mem:
            with contextlib.suppress(KeyError):
                members.add(pwd.getpwnam(name).pw_uid)
    return members <= me


def _tree(root: Path) -> Iterator[Path]:
    """The folder and all in it, but what is in folders closed to others, and the files of events."""
    yield root
    for name, folders, files in os.walk(root):
        folder = Path(name)
        if not folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
            folders.clear()
            continue
        if folder == root:
            folders[:] = [one for one in folders if one not in ("videos", "images", "demo-output")]
        yield from (folder / one for one in (*folders, *files))
