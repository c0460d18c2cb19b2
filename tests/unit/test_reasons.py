"""The table of reasons in protos/README.md is complete: it has every reason that the code can give, and no other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import preprocessor
from engine_client import errors as engine_errors
from preprocessor import errors
from preprocessor.service.metrics import MAX_REASON_COUNT
from tests.reasons import documented

SOURCES = Path(preprocessor.__file__).parent
# Of calls that are cancelled nobody hears; two are roots of trees, which nobody raises; the others end a start of `serve`.
UNHEARD = {
    *("CANCELLED", "PREPROCESSOR_ERROR", "ENGINE_ERROR"),
    *("BAD_MODEL_DIRECTORY", "UNSUPPORTED_MODEL", "UNSUPPORTED_PROCESSOR", "UNKNOWN_DECODER"),
}
DEFAULTS_NEVER_USED = {"INVALID_REQUEST", "UNSUPPORTED_MEDIA", "FETCH_FAILED", "OVERLOADED"}


def test_every_reason_in_the_code_is_documented() -> None:
    said = (set(reasons_in_code()) | default_reasons()) - UNHEARD - DEFAULTS_NEVER_USED
    assert said - {one.reason for one in documented()} == set()


def test_every_documented_reason_is_in_the_code() -> None:
    known = {
        node.value for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Constant)
    } | default_reasons()
    assert {one.reason for one in documented()} - known == set()


def test_no_reason_stands_in_the_table_twice() -> None:
    assert len(documented()) == len({one.reason for one in documented()})


def test_every_documented_reason_has_a_label_in_the_metrics() -> None:
    assert len({one.reason for one in documented()}) < MAX_REASON_COUNT


def reasons_in_code() -> Iterator[str]:
    """What is given as `reason=` anywhere, be it chosen between two."""
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                for inner in ast.walk(node.value):
                    if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value.isupper():
                        yield inner.value


def trees() -> Iterator[ast.Module]:
    return (ast.parse(path.read_text()) for path in SOURCES.rglob("*.py"))


def default_reasons() -> set[str]:
    kinds = [kind for module in (errors, engine_errors) for kind in vars(module).values() if isinstance(kind, type)]
    found = {getattr(kind, name, "") for kind in kinds for name in ("default_reason", "reason")}
    return {reason for reason in found if isinstance(reason, str) and reason}
