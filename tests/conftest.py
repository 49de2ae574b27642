"""Fixtures for the tests that run the real process."""

from __future__ import annotations

from pathlib import Path

import pytest

import detect_and_upload as script
from guardianberry.weights import WeightsError, find_graph
from tests.daemon import install_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder shared by the session, with the default model converted already."""
    folder = install_models(tmp_path_factory.mktemp("installed") / "models")
    try:
        find_graph(script.WEIGHTS, folder)
    except WeightsError as error:
        pytest.skip(f"no weights to detect people with: {error}")
    return folder
