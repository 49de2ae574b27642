"""Fixtures for the tests that run the real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardianberry.detection.weights import find_graph
from tests.daemon import ROOT, WEIGHTS, install_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder shared by the session, with the model for tests converted already."""
    folder = install_models(tmp_path_factory.mktemp("installed") / "models")
    find_graph(WEIGHTS, folder)
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that fork in a pytest of their own: this one has threads by now, and a fork could hang on a lock."""
    if not pyfuncitem.get_closest_marker("own_process") or "TEST_HAS_ITS_OWN_PROCESS" in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    env = os.environ | {"TEST_HAS_ITS_OWN_PROCESS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout
    if " skipped" in ran.stdout:
        pytest.skip(ran.stdout)
    return True
