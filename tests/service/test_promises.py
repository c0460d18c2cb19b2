"""deploy/OPERATIONS.md names tests for every guarantee about faults: those tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "deploy/OPERATIONS.md").read_text()


def table_after(heading: str) -> list[str]:
    """Rows of the first table below a heading."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def test_every_guarantee_about_faults_names_existing_tests() -> None:
    there = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    rows = table_after("What happens if")
    assert len(rows) > 10
    for row in rows:
        fault, promise, shown_by = (cell.strip() for cell in row.strip("|").split("|"))
        named = re.findall(r"`(\w+)`", shown_by)
        assert fault and promise and named, row
        assert set(named) <= there, f"{fault}: {set(named) - there}"
