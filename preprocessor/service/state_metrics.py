"""Prometheus metrics of the present state: tasks, workers, memory, readiness.

Each is read from its owner when it is scraped. So they cost requests nothing, and are never out of date.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from preprocessor.config.machine import available_memory_bytes, used_memory_bytes
from preprocessor.service.health import Cause, Health
from preprocessor.service.metrics import METHODS
from preprocessor.workers.pool import WorkerPool


class StateMetrics(Collector):
    """Reads the state at each scrape. Register it once."""

    def __init__(self, pool: WorkerPool, health: Health) -> None:
        self._pool = pool
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """One metric family after another."""
        pool, health = self._pool, self._health
        cores = pool.settings.worker_count
        yield _gauge("preprocessor_queued_requests", "Tasks waiting for a worker or for memory", pool.queued_count)
        yield _gauge("preprocessor_running_work", "Tasks that workers run now", pool.running_count)
        yield _gauge("preprocessor_workers", "Cores that tasks may use", cores)
        yield _gauge("preprocessor_worker_processes", "Worker processes alive", pool.worker_set.count)
        yield _gauge(
            "preprocessor_load_ratio",
            "CPU seconds that all waiting and running tasks are expected to take, divided by the cores: the signal to scale by",
            pool.expected_seconds / cores,
        )
        yield _gauge("preprocessor_budget_bytes", "Memory budget of all requests", pool.settings.memory_budget_bytes)
        yield _gauge("preprocessor_budget_used_bytes", "Memory that requests hold", pool.used_bytes)
        yield _gauge(
            "preprocessor_budget_full_ratio",
            "Part taken, 0 to 1, of the memory for files or for pixels, whichever is fuller",
            pool.fullness,
        )
        yield _gauge(
            "preprocessor_memory_limit_bytes",
            "Memory that all processes of the replica may take",
            available_memory_bytes(),
        )
        yield _gauge(
            "preprocessor_memory_used_bytes", "Memory that they take, without idle pages of files", used_memory_bytes()
        )
        yield _by_label(
            CounterMetricFamily(
                "preprocessor_abandoned_work",
                "Tasks whose caller went away, by the state they were in",
                labels=("state",),
            ),
            pool.counters.abandoned_counts,
        )
        causes = health.causes
        yield _gauge("preprocessor_ready", "1 while this replica should get calls", not health.causes_of())
        yield _by_label(
            GaugeMetricFamily(
                "preprocessor_method_ready", "1 while it should get calls of a method", labels=("method",)
            ),
            {method: not health.causes_of(method) for method in METHODS},
        )
        yield _by_label(
            GaugeMetricFamily(
                "preprocessor_unready",
                "1 for each cause why it should get no calls, or none of some method",
                labels=("cause",),
            ),
            {cause.value: cause in causes for cause in Cause},
        )
        yield _gauge("preprocessor_engine_ready", "1 while the engine answers", health.is_engine_ready)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, float(value))


def _by_label(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric((label,), float(value))
    return family
