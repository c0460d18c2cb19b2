"""The Grafana dashboard asks only for what there is. That a Prometheus answers it, `test_prometheus` shows."""

from __future__ import annotations

import json
import re

import pytest

from tests.monitoring.documented import dashboard_queries, documented, names_in, variable_queries
from tests.monitoring.prometheus import DASHBOARD

# What Prometheus adds to each series, and a histogram to its buckets.
_ADDED_LABELS = {"job", "instance", "le"}


@pytest.mark.parametrize("title", dashboard_queries())
def test_a_query_names_metrics_and_labels_that_exist(title: str) -> None:
    query = dashboard_queries()[title]
    names = names_in(query)
    assert names, f"{query} asks for nothing"
    assert names <= documented().keys()
    known = _ADDED_LABELS.union(*(documented()[name].labels for name in names))
    grouped = {label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in group.split(",")}
    selected = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', query))
    assert grouped | selected <= known


def test_menus_are_filled_from_a_metric_that_exists() -> None:
    for query in variable_queries():
        assert names_in(query) == {"preprocessor_build_info"}


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
