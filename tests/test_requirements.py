"""The list with hashes agrees with the list that people edit, and lacks nothing that a package needs."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.daemon import ROOT

PI = {"platform_machine": "aarch64", "sys_platform": "linux", "platform_system": "Linux", "extra": ""}


def pins() -> dict[str, str]:
    """Name to version of what requirements.txt asks for on a Pi."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    wanted = [Requirement(line.partition("#")[0]) for line in text.splitlines() if line.partition("#")[0].strip()]
    on_a_pi = [want for want in wanted if want.marker is None or want.marker.evaluate(PI)]
    return {canonicalize_name(want.name): str(want.specifier).removeprefix("==") for want in on_a_pi}


def locked() -> dict[str, tuple[str, list[str]]]:
    """Name to version and hashes."""
    text = (ROOT / "requirements-aarch64.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    entries = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    found = {}
    for pin, *hashes in entries:
        name, version = pin.split("==")
        found[canonicalize_name(name)] = (version, hashes)
    return found


def test_the_hashed_list_has_the_versions_of_the_list_that_is_edited() -> None:
    assert {name: locked().get(name, ("missing", []))[0] for name in pins()} == pins()


def test_each_package_has_a_hash_and_none_for_nobody() -> None:
    """One where one wheel serves both Pythons."""
    for name, (_, hashes) in locked().items():
        assert hashes, name
        assert len(hashes) <= 2, f"{name}: a third wheel is for nobody"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in hashes), name


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_the_hashed_list_is_complete(python: str) -> None:
    """By the word of the packages as they are installed here; torch is another version on a Pi."""
    machine = PI | {"python_version": python, "python_full_version": f"{python}.0"}
    for name in set(locked()) - {"torch", "setuptools"}:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{name} is locked and not installed: nobody needs it any more?")
        needs = [Requirement(text) for text in distribution.requires or []]
        for need in needs:
            if need.marker is None or need.marker.evaluate(machine):
                version = locked().get(canonicalize_name(need.name), ("missing", []))[0]
                assert version in need.specifier, f"{name} needs {need}, the list has {version}"
