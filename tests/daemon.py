"""The real daemon as a process, in a folder of its own, with its constants edited as an owner would edit them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from guardianberry.detection.weights import BUNDLED

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("GUARDIANBERRY_SHARED", ROOT.parent / "shared"))
CLIPS = SHARED / "clips"
OFFICIAL_WEIGHTS = SHARED / "weights" / "yolov5n.pt"
OFFICIAL_AT_HAND = OFFICIAL_WEIGHTS.exists() or (ROOT / "models" / OFFICIAL_WEIGHTS.name).exists()
WEIGHTS = OFFICIAL_WEIGHTS.name if OFFICIAL_AT_HAND else BUNDLED  # what tests detect with: nothing is downloaded
SCENE = ROOT / "demo" / "scene.mp4"
# A third of the computing of an inference, for tests of something else: people in scene.mp4 are large enough for it.
SMALL_INPUT = {"DETECTOR_INPUT_WIDTH_PX": 224}

STAND_IN_PATH = os.pathsep.join([str(Path(sys.executable).parent), str(ROOT / "demo"), "/usr/bin", "/bin"])


_IMPORTED_CONSTANTS = {"CLOCK_WAIT_S"}  # of the package, not for owners: the script imports them
_MAKES_CAMERA = "    return Camera(\n"
_SEES_ONE_PROCESS = """    from guardianberry.camera import supervisor as module
    everybody = module.running_cameras
    module.running_cameras = lambda: [other for other in everybody() if other.pid == {pid}]
"""


def launch_stamp(folder: Path) -> Path:
    """The file that launch.sh leaves in `folder`/env when its set-up is done."""
    version = subprocess.check_output(
        ["python3", "-c", "import sys; print(*sys.version_info[:2])"], env={"PATH": "/usr/bin:/bin"}
    )
    made_from = version + (folder / "requirements.txt").read_bytes()
    return folder / "env" / f".made-from-{hashlib.sha256(made_from).hexdigest()[:16]}"


def install(
    folder: Path, *, heeded_pid: int | None = None, clock_sync_file: Path | None = None, **constants: object
) -> Path:
    """Put the program into `folder`, with these constants at the top of the script changed; the script's path.

    With `clock_sync_file` the machine's clock counts as synchronised once that file exists.

    On one machine there is one camera, and a daemon waits while another program has it. Tests run side by side, each
    with a camera of its own, so that is left out, but for the process `heeded_pid`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = (ROOT / "detect_and_upload.py").read_text(encoding="utf-8")
    assert "wait_for_other_users=not demo" in script
    assert _MAKES_CAMERA in script
    if heeded_pid is None:
        script = script.replace("wait_for_other_users=not demo", "wait_for_other_users=False")
    else:
        script = script.replace(_MAKES_CAMERA, _SEES_ONE_PROCESS.format(pid=heeded_pid) + _MAKES_CAMERA)
    changes = ""
    if clock_sync_file is not None:
        changes = f"system_clock_is_synchronised = Path({str(clock_sync_file)!r}).exists\n"
    for name, value in {"WEIGHTS": WEIGHTS, **constants}.items():
        if name in _IMPORTED_CONSTANTS:
            changes += f"{name} = {value!r}\n"
            continue
        script, changed = re.subn(
            rf"^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v!r}", script, flags=re.MULTILINE
        )
        assert changed == 1, f"{name} is no constant of the script"
    assert "\nHERE = " in script
    script = script.replace("\nHERE = ", f"\n{changes}HERE = ")
    path = folder / "detect_and_upload.py"
    path.write_text(script, encoding="utf-8")
    for name in ("guardianberry", "demo", "viewer"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)
    return path


def install_models(models: Path) -> Path:
    """The bundled models, and the official one where it is at hand, in a folder that may be written to."""
    models.mkdir(parents=True)
    for path in (ROOT / "models").glob("*.*"):
        if path.suffix in {".xml", ".bin", ".sha256", ".npz"}:
            shutil.copy(path, models)
    for official in (OFFICIAL_WEIGHTS, ROOT / "models" / OFFICIAL_WEIGHTS.name):
        if official.exists():
            shutil.copyfile(official, models / official.name)
    return models


class Daemon:
    """`with Daemon(folder, models) as daemon:` runs the real process; it is killed at the end if it still runs."""

    def __init__(
        self,
        folder: Path,
        models: Path,
        *,
        env: dict[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
        heeded_pid: int | None = None,
        clock_sync_file: Path | None = None,
        **constants: object,
    ) -> None:
        self.folder = folder
        self.script = install(folder, heeded_pid=heeded_pid, clock_sync_file=clock_sync_file, **constants)
        if not (folder / "models").exists():
            (folder / "models").symlink_to(models)
        self.log_path = folder / "daemon.log"
        self._command = [*prefix, sys.executable, str(self.script), *arguments]
        self._env = {"PATH": STAND_IN_PATH, "HOME": str(folder), "LANG": "C.UTF-8", **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd="/", env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def __enter__(self) -> Daemon:
        return self if self.process else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def pending(self) -> list[str]:
        """The files of the queue, whatever their state."""
        folders = (self.folder / "images", self.folder / "videos")
        return sorted(
            f"{folder.name}/{path.name}" for folder in folders if folder.is_dir() for path in folder.iterdir()
        )

    def wait_for_log(self, pattern: str, *, timeout_s: float = 60, count: int = 1) -> list[str]:
        """Until `pattern` stands in the log `count` times; what matched."""
        give_up_s = time.monotonic() + timeout_s
        while len(found := re.findall(pattern, self.log)) < count:
            self._give_up(f"no {pattern!r} x{count} in the log", give_up_s)
        return found

    def wait_until(self, condition, what: str, *, timeout_s: float = 60) -> None:
        give_up_s = time.monotonic() + timeout_s
        while not condition():
            self._give_up(what, give_up_s)

    def _give_up(self, what: str, give_up_s: float) -> None:
        assert self.process is not None
        story = "\n".join(line for line in self.log.splitlines() if " DEBUG " not in line)
        assert time.monotonic() < give_up_s, f"{what}; the log:\n{story}"
        assert self.process.poll() is None, f"{what}; the daemon ended with {self.process.returncode}; log:\n{story}"
        time.sleep(0.05)

    def terminate(self, timeout_s: float = 10) -> tuple[int, float]:
        """SIGTERM; the exit code and how long it took."""
        assert self.process is not None
        asked_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        return code, time.monotonic() - asked_s

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
