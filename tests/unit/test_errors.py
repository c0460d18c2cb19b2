"""Errors cross process borders whole."""

from __future__ import annotations

import pickle
import re

import pytest

from preprocessor import errors

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PreprocessorError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind: type[errors.PreprocessorError]) -> None:
    original = kind("a frame is broken", reason="SOME_REASON", media_key="clip")
    original.trace = "somewhere"
    copy = pickle.loads(pickle.dumps(original))
    assert (type(copy), copy.message, copy.reason, copy.metadata, str(copy), copy.trace) == (
        kind,
        "a frame is broken",
        "SOME_REASON",
        {"media_key": "clip"},
        "a frame is broken",
        "somewhere",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_without_a_reason_has_its_classes_own(kind: type[errors.PreprocessorError]) -> None:
    assert kind("text").reason == kind.default_reason


def test_the_tree_in_the_docstring_has_every_class() -> None:
    drawn = re.findall(r"── (\w+)  ", errors.__doc__ or "")
    assert drawn == [kind.__name__ for kind in KINDS if kind is not errors.PreprocessorError]


def test_no_two_classes_share_a_reason() -> None:
    reasons = [kind.default_reason for kind in KINDS]
    assert len(set(reasons)) == len(reasons)
