"""Metrics of each engine endpoint, read from `engine_client` when they are scraped.

Label values are bounded: `endpoint` is an address of `--engine`; `outcome` and `standing` come from the lists here.
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
    """A collector for one registry.

    Args:
        states: `Endpoints.states`.
    """

    def __init__(self, states: Callable[[], Sequence[EndpointState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Each metric family, with a sample for every endpoint."""
        states = self._states()
        standing = GaugeMetricFamily(
            "preprocessor_engine_standing",
            "1 for the state of an endpoint: healthy (gets any request), trial (one at a time), ejected (none)",
            labels=("endpoint", "standing"),
        )
        in_flight = GaugeMetricFamily(
            "preprocessor_engine_requests_in_flight", "Requests in flight at an endpoint", labels=("endpoint",)
        )
        requests = CounterMetricFamily(
            "preprocessor_engine_requests",
            "Requests by outcome: answered, failed, rejected as invalid, or left (cancelled, deadline exceeded, or ended by a "
            "stop string)",
            labels=("endpoint", "outcome"),
        )
        retries = CounterMetricFamily(
            "preprocessor_engine_retries", "Requests retried here after another endpoint failed", labels=("endpoint",)
        )
        ejections = CounterMetricFamily(
            "preprocessor_engine_ejections", "Times an endpoint was ejected", labels=("endpoint",)
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
