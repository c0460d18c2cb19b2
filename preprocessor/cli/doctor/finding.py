"""The result of a check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """The service runs, but slower than it could or with a risk."""
    FAILED = "failed"
    """The service would not start, or would not work as its settings say."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result.

    Attributes:
        name: Of the check, stable; several findings may share it, as of several engines.
        found: What was found, with the values that were compared.
        fix: What to do; empty if the verdict is OK.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, Verdict.OK, found)


def warning(name: str, found: str, fix: str) -> Finding:
    return Finding(name, Verdict.WARNING, found, fix)


def failed(name: str, found: str, fix: str) -> Finding:
    return Finding(name, Verdict.FAILED, found, fix)


def worst(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict; OK if there are no findings."""
    gravity = list(Verdict)
    return max((finding.verdict for finding in findings), key=gravity.index, default=Verdict.OK)
