"""The daemon while its weights are converted: it guards with the bundled model, whatever becomes of the conversion."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from guardianberry.detection.weights import BUNDLED, find_graph
from tests.daemon import ROOT, SCENE, Daemon

pytestmark = pytest.mark.slow
CANNOT_UPLOAD = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, converted, and a checkpoint that is not."""
    pytest.importorskip("torch", reason="the conversion needs torch")
    from tests.networks import network, save_official

    models = tmp_path_factory.mktemp("prepared")
    for suffix in (".xml", ".bin"):
        shutil.copy((ROOT / "models" / BUNDLED).with_suffix(suffix), models)
    find_graph(BUNDLED, models)
    save_official(network(nc=1), models / "tiny.pt")
    return models


@contextmanager
def running(folder: Path, models: Path) -> Iterator[Daemon]:
    env = CANNOT_UPLOAD | {"STAND_IN_VIDEO": str(SCENE)}
    daemon = Daemon(folder, models, env=env, WEIGHTS="tiny.pt").start()
    try:
        yield daemon
    finally:
        daemon.terminate()


def conversion(daemon: Daemon) -> psutil.Process:
    """The running conversion of tiny.pt."""
    assert daemon.process is not None
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        for child in psutil.Process(daemon.process.pid).children():
            command = " ".join(child.cmdline())
            if "guardianberry.convert" in command and "tiny.pt" in command:
                return child
        time.sleep(0.02)
    raise AssertionError(f"nothing is converted: {daemon.log}")


def test_the_guard_starts_at_once_and_takes_the_weights_when_they_are_ready(tmp_path: Path, prepared: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(prepared, models)
    with running(tmp_path / "home", models) as daemon:
        child = conversion(daemon)
        os.kill(child.pid, signal.SIGSTOP)
        daemon.wait_for_log(f"tiny.pt is not ready yet; the bundled {BUNDLED} is used", timeout_s=30)
        daemon.wait_for_log("camera: video", timeout_s=30)
        assert "tiny.pt is ready for" not in daemon.log
        os.kill(child.pid, signal.SIGCONT)
        daemon.wait_for_log("tiny.pt is ready for", timeout_s=60)
        assert daemon.process is not None
        assert daemon.process.poll() is None
    assert "ERROR" not in daemon.log


def test_a_conversion_killed_for_memory_is_not_tried_at_the_next_start(tmp_path: Path, prepared: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(prepared, models)
    with running(tmp_path / "home", models) as daemon:
        conversion(daemon).kill()  # as the kernel does
        daemon.wait_for_log("camera: video", timeout_s=30)
        daemon.wait_for_log("WARNING .*tiny.pt was killed by SIGKILL, perhaps for lack of memory", timeout_s=30)
    with running(tmp_path / "home again", models) as daemon:
        daemon.wait_for_log("camera: video", timeout_s=30)
        daemon.wait_for_log(r"WARNING .*tiny.pt was killed by SIGKILL.*, on \d{4}-\d\d-\d\d\. It is tried again when")
    assert "is being converted" not in daemon.log
