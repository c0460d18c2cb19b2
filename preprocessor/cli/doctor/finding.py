"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """The service runs, with less than could be had or with a risk."""
    FAILED = "failed"
    """It would not start, or not do what it is set up for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result.

    Attributes:
        name: Of the check, stable; several findings may share it, as of several engines.
        found: What is, with the values compared.
        fix: What to do; empty where all is well.
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
    """The gravest verdict; OK where there is none."""
    gravity = list(Verdict)
    return max((finding.verdict for finding in findings), key=gravity.index, default=Verdict.OK)
