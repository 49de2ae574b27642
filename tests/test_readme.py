"""The README cannot rot: its constants, commands, links and the tests it names are those of the repository."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.daemon import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "detect_and_upload.py").read_text(encoding="utf-8")
NOT_FOR_OWNERS = {"HERE", "LOOP_TICK_S", "LOOP_STALL_S", "DEMO_GAP_S", "EXIT_CANNOT_RUN", "EXIT_NEEDS_EDITING"}


def constants_table() -> str:
    """The README's table as the script's constants and their comments make it."""
    rows = ["| constant | default | why, and what it does |", "|---|---|---|"]
    lines = SCRIPT.splitlines()
    for node in ast.parse(SCRIPT).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name.isupper() and name not in NOT_FOR_OWNERS:
                comment = lines[node.lineno - 1].partition("  # ")[2]
                assert comment, f"{name} has no comment on its line, or the formatter has broken the line"
                rows.append(f"| `{name}` | `{ast.unparse(node.value)}` | {comment} |")
    return "\n".join(rows)


def test_the_table_of_constants_is_the_scripts():
    assert constants_table() in README, "the table should be:\n" + constants_table()


def test_the_two_commands_head_the_readme_and_ci_calls_the_second():
    commands = re.findall(r"^\s+(\./launch\.sh --demo|tests/run)\b", README[:3000], re.MULTILINE)
    assert commands == ["./launch.sh --demo", "tests/run"]
    assert re.search(r"^tests/run$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "document",
    [
        *("README.md", "SECURITY.md", "aws/README.md", "docs/check.md", "docs/design.md", "docs/performance.md"),
        *("bench/README.md", "training/README.md", "models/README.md", "viewer/README.md"),
    ],
)
def test_links_lead_somewhere_and_named_tests_exist(document):
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / target).exists(), f"{document} links to {target}"
    tests = "\n".join(p.read_text(encoding="utf-8") for p in Path(ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert (ROOT / "tests" / f"{name}.py").exists() or f"def {name}(" in tests, f"{document} names {name}"


def test_the_script_is_still_a_front_door():
    """One screen or two for the loop, three levels deep at most."""
    tree = ast.parse(SCRIPT)
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    loop = next(node for node in run.body if isinstance(node, ast.While))
    assert loop.end_lineno - loop.lineno < 80

    def depth(node: ast.AST) -> int:
        inside = max((depth(child) for child in ast.iter_child_nodes(node)), default=0)
        return inside + isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try)

    assert depth(loop) - 1 <= 3
