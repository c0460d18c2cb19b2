"""The report of a run, as Markdown and as JSON, and its place in RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.bench.section import CHECK_HEAD, Check, Section, markdown_table

BEGIN = "<!-- what follows is written by `make bench-full` -->"
END = "<!-- what `make bench-full` writes ends here -->"
LEAST_ROUNDS = 5


def markdown(sections: Sequence[Section], about: Mapping[str, Any], rounds: int) -> str:
    """The whole report, goals first."""
    checks = [check for section in sections for check in section.checks]
    lines = machine_lines(about)
    if rounds < LEAST_ROUNDS:
        lines += ["", f"**{rounds} rounds prove that this runs, and no figure: at least {LEAST_ROUNDS} are needed.**"]
    if checks:
        reached = sum(check.is_reached for check in checks)
        lines += ["", "### Goals", "", f"{reached} of {len(checks)} reached.", "", *_check_table(checks)]
    for section in sections:
        lines += ["", f"### {section.title}", "", section.notes]
        for name, shows in section.plots.items():
            lines += ["", f"![{shows}](plots/{name})"]
        for table in section.tables:
            lines += ["", *([table.title, ""] if table.title else [])]
            lines += markdown_table(table.head, table.rows, table.label_count)
    return "\n".join(lines)


def as_json(sections: Mapping[str, Section], about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Every sample, by section; what the plots are drawn from."""
    return {
        "machine": dict(about),
        "options": dict(options),
        "sections": {
            name: {
                "title": section.title,
                "figures": section.figures,
                "checks": [asdict(check) | {"is_reached": check.is_reached} for check in section.checks],
            }
            for name, section in sections.items()
        },
    }


def missed(sections: Sequence[Section]) -> list[str]:
    """A line for each goal that is not reached."""
    return [
        "{}: {}, goal {}".format(*check.cells())
        for section in sections
        for check in section.checks
        if not check.is_reached
    ]


def put_into(page: str, report: str) -> str:
    """The page with the report between its two marks.

    Raises:
        ValueError: The page lacks them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{report}\n\n{END}{after}"


def machine_lines(about: Mapping[str, Any]) -> list[str]:
    """Where a report's figures come from."""
    return [
        f"{about['date']}; {about['cpu']}, {about['cores_usable']} of {about['cores']} cores, {about['system']}, "
        f"TCP by {about['tcp']}  ",
        f"load average {about['load_average'][0]} at the start, {about['load_average_end'][0]} at the end  ",
        ", ".join(f"{name} {number}" for name, number in about["versions"].items()) + "  ",
        f"`{about['command']}`",
    ]


def _check_table(checks: Sequence[Check]) -> list[str]:
    return markdown_table(CHECK_HEAD, [check.cells() for check in checks])
