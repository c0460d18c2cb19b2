"""The metrics documented in deploy/prometheus/README.md, and the metric names in a query."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.monitoring.prometheus import DASHBOARD, METRIC_TABLE

_ROW = re.compile(r"\| `(?P<name>\w+)` \| (?P<type>counter|gauge|histogram) \|(?P<labels>[^|]*)\| [^|]+ \|")
_PARTS_OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")
_NAME = re.compile(r"\b(?:preprocessor|process)_\w+")


@dataclass(frozen=True, slots=True)
class Documented:
    """One row of the table."""

    kind: str
    labels: frozenset[str]


def documented() -> Mapping[str, Documented]:
    """Every metric by its name."""
    rows = _ROW.finditer(METRIC_TABLE.read_text())
    return {row["name"]: Documented(row["type"], frozenset(re.findall(r"`(\w+)`", row["labels"]))) for row in rows}


def metric_of(series: str) -> str:
    """The metric that a series belongs to: a histogram has three kinds of them."""
    for part in _PARTS_OF_A_HISTOGRAM:
        name = series.removesuffix(part)
        if name != series and name in documented() and documented()[name].kind == "histogram":
            return name
    return series


def names_in(query: str) -> set[str]:
    """The metric names in a query, without text in quotes."""
    return {metric_of(name) for name in _NAME.findall(re.sub(r'"[^"]*"', '""', query))}


def dashboard_queries() -> Mapping[str, str]:
    """Title and letter → query, as Grafana would send it with everything selected."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    return {title: _filled(query) for title, query in queries.items()}


def variable_queries() -> list[str]:
    """The queries of the dashboard's variables."""
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    return [variable["definition"] for variable in variables if variable["type"] == "query"]


def _filled(query: str) -> str:
    filled = query.replace("$__rate_interval", "10m").replace("$job", ".*").replace("$pod", ".*")
    assert "$" not in filled, f"a variable that this test does not know: {filled}"
    return filled
