"""Fixtures for the tests that run the real process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import install_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models folder shared by the session, so that the official checkpoint is converted once."""
    yield install_models(tmp_path_factory.mktemp("installed") / "models")
