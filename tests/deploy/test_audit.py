"""What `make audit` makes of pip-audit's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy import audit

GOOD = {"name": "good", "version": "1", "vulns": []}
FIXED = {"name": "bad", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1", "2"], "description": ""}]}
OPEN = {"name": "open", "version": "1", "vulns": [{"id": "CVE-2", "fix_versions": [], "description": ""}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("libraries", "fails", "fails_in_ci", "said"),
    [
        ([GOOD], False, False, "no known vulnerability"),
        ([GOOD, FIXED], True, True, "bad 1: CVE-1, fixed in 1.1, 2"),
        ([GOOD, OPEN], True, False, "open 1: CVE-2, not fixed"),
        ([GOOD, UNKNOWN], True, False, "not looked up: unknown"),
        ([UNKNOWN], True, False, "0 of 1 libraries were looked up"),
        ([UNKNOWN, FIXED], True, True, "CVE-1"),
    ],
)
def test_what_is_a_failure(libraries: list[dict[str, Any]], fails: bool, fails_in_ci: bool, said: str) -> None:
    for is_lenient, expected in ((False, fails), (True, fails_in_ci)):
        lines, is_bad = audit.verdict(libraries, is_lenient=is_lenient)
        assert is_bad is expected
        assert said in "\n".join(lines)
        assert ("no known vulnerability" in lines[-1]) == (not expected and GOOD in libraries)


@pytest.mark.parametrize("printed", ["", "no JSON", '{"dependencies": []}'])
def test_an_index_that_cannot_be_asked_fails_only_where_that_is_asked(
    tmp_path: Path, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\necho '{printed}'\necho 'no route' >&2\nexit 1\n")
    program.chmod(0o755)
    asked = (str(program), "installed.txt")
    assert audit.main([*asked, "--if-possible", "CVE-3"]) == 0
    if "{" not in printed:
        assert audit.main(asked) == 1
        assert "cannot be asked: no route" in capsys.readouterr().out
