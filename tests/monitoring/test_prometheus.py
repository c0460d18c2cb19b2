"""A real Prometheus scrapes a real service and answers the dashboard's queries."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
import yaml

from preprocessor.models.family import Model
from tests.monitoring.documented import dashboard_queries
from tests.monitoring.prometheus import ROOT, Prometheus, scraping
from tests.monitoring.traffic import TRACE_ID, call_everything, observed_service

_TARGET = 'job="preprocessor"'


@dataclass(frozen=True, slots=True)
class Watched:
    prometheus: Prometheus
    instance: str


@pytest_asyncio.fixture(scope="module")
async def watched(model: Model, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """A service that has been called once in each way between two scrapes."""
    async with (
        observed_service(model) as caller,
        scraping(tmp_path_factory.mktemp("prometheus"), caller.server.http_address) as prometheus,
    ):
        await prometheus.until(f"preprocessor_ready{{{_TARGET}}} == 1")  # so rates have a zero to begin at
        await call_everything(caller)
        await prometheus.until(f'preprocessor_requests_total{{{_TARGET}, method="GetModel", code="OK"}} == 1')
        # Series that begin with their first event have a rate from their second sample on.
        await prometheus.until(f"count_over_time(preprocessor_fetched_bytes_total{{{_TARGET}}}[10m]) >= 2")
        yield Watched(prometheus, caller.server.http_address)


@pytest.mark.parametrize("title", dashboard_queries())
async def test_the_dashboard_s_query_is_answered(watched: Watched, title: str) -> None:
    series = await watched.prometheus.query(dashboard_queries()[title])
    assert series, dashboard_queries()[title]


async def test_the_adapter_s_query_gives_each_pod_its_load(watched: Watched) -> None:
    (rule,) = yaml.safe_load((ROOT / "deploy/prometheus/adapter/config.yaml").read_text())["rules"]
    query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
    query = query.replace("<<.LabelMatchers>>", 'namespace="vlm",pod=~"preprocessor-0"').replace("<<.GroupBy>>", "pod")
    [load] = await watched.prometheus.query(query)
    assert load["metric"] == {"pod": "preprocessor-0"}
    assert float(load["value"][1]) >= 0


async def test_rates_and_quantiles_have_values(watched: Watched) -> None:
    ask = watched.prometheus.query
    [calls] = await ask(f'increase(preprocessor_requests_total{{{_TARGET}, method="Prepare", code="OK"}}[10m])')
    assert float(calls["value"][1]) > 0
    quantile = 'histogram_quantile(0.5, rate(preprocessor_stage_duration_seconds_bucket{stage="decode"}[10m]))'
    [decode] = await ask(quantile)
    assert math.isfinite(float(decode["value"][1]))


async def test_histogram_buckets_have_exemplars_with_trace_ids(watched: Watched) -> None:
    now = time.time_ns() / 1e9
    found = await watched.prometheus.get(
        "query_exemplars",
        query="preprocessor_request_duration_seconds_bucket",
        start=str(now - 600),
        end=str(now + 600),
    )
    assert TRACE_ID in {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}


async def test_the_alerts_are_evaluated_without_error_and_a_healthy_service_raises_none(watched: Watched) -> None:
    await watched.prometheus.until(f"up{{{_TARGET}}}")
    rules = (await watched.prometheus.get("rules"))["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}  # not evaluated yet is unknown
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set()
