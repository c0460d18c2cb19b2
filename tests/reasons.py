"""The reasons that protos/README.md documents: the one list that tests hold the service to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PAGE = Path(__file__).parents[1] / "protos/README.md"
_ROW = re.compile(r"^\| ([A-Z_]+)(?:, ([^|]*?))? \|(.+)\|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Documented:
    """One reason as the table has it.

    Attributes:
        code: Name of the gRPC status.
        about: What its row is about, such as "the file"; "" where the row does not say.
    """

    code: str
    reason: str
    about: str


@cache
def documented() -> frozenset[Documented]:
    """Every reason of the table."""
    return frozenset(_documented())


def _documented() -> Iterator[Documented]:
    section = _PAGE.read_text().split("## Reasons", 1)[1].split("\n## ", 1)[0]
    for code, about, reasons in _ROW.findall(section):
        for reason in re.findall(r"`([A-Z_0-9]+)`", reasons):
            yield Documented(code, reason, about)
