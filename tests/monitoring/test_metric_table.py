"""deploy/prometheus/README.md documents the metrics of a real service."""

from __future__ import annotations

from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from preprocessor.models.family import Model
from tests.monitoring.documented import Documented, documented
from tests.monitoring.traffic import call_everything, observed_service

# What parsers and the format add to a family's own labels.
_FORMAT_LABELS = {"le"}


async def test_every_metric_is_documented_with_its_type_and_labels_and_nothing_else_is(model: Model) -> None:
    async with observed_service(model) as caller:
        await call_everything(caller)
        body, content_type = caller.server.metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    exposed = {}
    parse: Any = text_string_to_metric_families
    for family in parse(body.decode()):
        assert family.samples, f"{family.name} has no sample: the traffic of this test must make one"
        labels = frozenset(label for sample in family.samples for label in sample.labels) - _FORMAT_LABELS
        suffix, kind = {"counter": ("_total", "counter"), "info": ("_info", "gauge")}.get(
            family.type, ("", family.type)
        )
        exposed[family.name + suffix] = Documented(kind, labels)
        assert family.documentation, family.name
    assert exposed == dict(documented())


async def test_names_follow_prometheus_conventions() -> None:
    units = ("_seconds", "_bytes", "_ratio", "_total", "_info")
    for name, metric in documented().items():
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert not any(unit in name for unit in ("_ms", "_milliseconds", "_mb", "_percent")), name
        if metric.kind == "histogram":
            assert name.endswith(units), name
