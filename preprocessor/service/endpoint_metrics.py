"""Metrics of each engine endpoint, read from what `engine_client` knows of it when they are scraped.

Labels are bounded: `endpoint` is an address of `--engine`, `outcome` and `standing` are of the lists here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine_client import EndpointHealth, EndpointState

_OUTCOMES: Mapping[str, Callable[[EndpointState], int]] = {
    "answered": lambda state: state.success_count,
    "failed": lambda state: state.failure_count,
    "rejected": lambda state: state.rejected_count,
    "left": lambda state: state.left_count,
}


class EndpointMetrics(Collector):
    """Register it once.

    Args:
        states: `Endpoints.states`.
    """

    def __init__(self, states: Callable[[], Sequence[EndpointState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """One family after another, each with every endpoint."""
        states = self._states()
        standing = GaugeMetricFamily(
            "preprocessor_engine_standing",
            "1 for what an endpoint may get: healthy any request, trial one at a time, ejected none",
            labels=("endpoint", "standing"),
        )
        in_flight = GaugeMetricFamily(
            "preprocessor_engine_requests_in_flight", "Requests at an endpoint now", labels=("endpoint",)
        )
        requests = CounterMetricFamily(
            "preprocessor_engine_requests",
            "Requests that an endpoint answered to the end, failed, rejected as wrong, or whose caller left (a deadline or a "
            "stop string too)",
            labels=("endpoint", "outcome"),
        )
        retries = CounterMetricFamily(
            "preprocessor_engine_retries", "Requests that came after another endpoint failed them", labels=("endpoint",)
        )
        ejections = CounterMetricFamily(
            "preprocessor_engine_ejections", "Times that an endpoint was taken out", labels=("endpoint",)
        )
        for state in states:
            for each in EndpointHealth:
                standing.add_metric((state.name, each.value), float(state.health is each))
            in_flight.add_metric((state.name,), state.in_flight_count)
            for outcome, count_of in _OUTCOMES.items():
                requests.add_metric((state.name, outcome), count_of(state))
            retries.add_metric((state.name,), state.retry_count)
            ejections.add_metric((state.name,), state.ejection_count)
        yield from (standing, in_flight, requests, retries, ejections)
