"""What every part of the benchmark makes: tables, unrounded figures, and each figure that has a goal beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One figure beside what it must reach.

    Attributes:
        sign: "≥" or "≤": the goal is a least or a most.
    """

    figure: str
    measured: float
    sign: str
    goal: float
    unit: str = ""

    def __post_init__(self) -> None:
        if self.sign not in ("≥", "≤"):
            raise ValueError(f"{self.sign!r} is no sign of a goal; ≥ and ≤ are")

    @property
    def is_reached(self) -> bool:
        """Unrounded: 1.249 does not reach 1.25. A figure that is no number reaches nothing."""
        return self.measured >= self.goal if self.sign == "≥" else self.measured <= self.goal

    def cells(self) -> list[str]:
        unit = f" {self.unit}" if self.unit else ""
        goal = f"{self.sign} {self.goal:g}{unit}"
        return [self.figure, f"{self.measured:.3g}{unit}", goal, "yes" if self.is_reached else "**no**"]


CHECK_HEAD = ("figure", "measured", "goal", "reached")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first `label_count` columns are text, the others figures."""

    head: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)
    label_count: int = 1
    title: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One part.

    Attributes:
        figures: The unrounded rows, for the plots and for whoever compares runs.
        plots: Those of `plots.draw` that show it: file name → what it shows.
    """

    title: str
    notes: str
    tables: list[Table] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)

    def add(self, cells: list[str], **figures: Any) -> None:
        """A row of the last table, with its figures."""
        self.tables[-1].rows.append(cells)
        self.figures.append(figures)

    def check(self, figure: str, measured: float, sign: str, goal: float, unit: str = "") -> None:
        self.checks.append(Check(figure, measured, sign, goal, unit))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], label_count: int = 1) -> list[str]:
    align = ["---"] * label_count + ["--:"] * (len(head) - label_count)
    return ["| " + " | ".join(cells) + " |" for cells in (head, align, *rows)]
