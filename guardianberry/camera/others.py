"""Who else uses the camera on this machine."""

import itertools
import os
import re
from typing import NamedTuple

import psutil

from guardianberry.camera.process import PROGRAMS

# Programs of that name may be scripts: a stand-in, or a wrapper with a #! line.
_INTERPRETER = re.compile(r"(python[\d.]*|bash|dash|sh)$")


class RunningCamera(NamedTuple):
    pid: int
    name: str
    listens_on_port: int | None  # if started with --listen -o tcp://...

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def running_cameras() -> list[RunningCamera]:
    """Every camera program alive on this machine; zombies do not count."""
    found = []
    for process in psutil.process_iter(["name"]):
        process_name = process.info["name"] or ""
        if process_name not in PROGRAMS and not _INTERPRETER.match(process_name):
            continue  # most processes: their command lines need not be read
        try:
            details = process.as_dict(["cmdline", "status"])
        except psutil.NoSuchProcess:
            continue
        arguments = details["cmdline"] or []
        name = process_name if process_name in PROGRAMS else _script_name(arguments)
        if name in PROGRAMS and details["status"] != psutil.STATUS_ZOMBIE:
            found.append(RunningCamera(process.pid, name, _listening_port(arguments)))
    return found


def _script_name(arguments: list[str]) -> str:
    return next((os.path.basename(argument) for argument in arguments[1:] if not argument.startswith("-")), "")


def _listening_port(arguments: list[str]) -> int | None:
    if not {"--listen", "--listen=1", "-l"} & set(arguments):
        return None
    outputs = [value for flag, value in itertools.pairwise(arguments) if flag in ("-o", "--output")]
    outputs += [argument.partition("=")[2] for argument in arguments if argument.startswith("--output=")]
    matches = [re.match(r"tcp://[^/]*:(\d+)", output) for output in outputs]
    return next((int(match[1]) for match in matches if match), None)
