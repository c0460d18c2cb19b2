"""The Grafana dashboard queries existing metrics. `test_prometheus` runs its queries."""

from __future__ import annotations

import json
import re

import pytest

from tests.monitoring.documented import dashboard_queries, documented, names_in, variable_queries
from tests.monitoring.prometheus import DASHBOARD
from tests.monitoring.test_alerts import rules

# What Prometheus adds to each series of a pod, and a histogram to its buckets.
_ADDED_LABELS = {"job", "pod", "le"}


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


def test_the_first_row_has_single_values_with_thresholds() -> None:
    row, *panels = json.loads(DASHBOARD.read_text())["panels"]
    figures = [panel for panel in panels if panel["gridPos"]["y"] == row["gridPos"]["h"]]
    assert [panel["type"] for panel in figures] == ["stat"] * 6
    steps = {panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"] for panel in figures}
    assert [title for title, of_title in steps.items() if len(of_title) == 1] == ["Successful calls per second"]


def test_thresholds_equal_those_of_the_alerts() -> None:
    """By the last number of an alert's rule, for panels that name one."""
    limits = {
        rule["alert"]: float(re.findall(r"> ([\d.]+)", rule["expr"])[-1]) for rule in rules() if ">" in rule["expr"]
    }
    named = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if " fires" in panel.get("description", "")]
    assert len(named) >= 4
    for panel in named:
        alert = re.search(r"Preprocessor\w+", panel["description"])
        assert alert is not None
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == limits[alert[0]], panel["title"]


def test_every_panel_is_annotated_with_alerts() -> None:
    (annotation,) = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    assert annotation["expr"].startswith('ALERTS{alertname=~"Preprocessor.*",alertstate="firing"')
    assert all(rule["alert"].startswith("Preprocessor") for rule in rules())


def test_legends_name_pods_and_not_their_addresses() -> None:
    assert "instance" not in DASHBOARD.read_text()


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
