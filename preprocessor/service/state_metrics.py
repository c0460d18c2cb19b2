"""Prometheus metrics of what is: work, workers, memory, readiness; read from those who know when they are scraped.

So no request pays for them, and they cannot be out of date.
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
    """Register it once."""

    def __init__(self, pool: WorkerPool, health: Health) -> None:
        self._pool = pool
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """One family after another."""
        pool, health = self._pool, self._health
        cores = pool.settings.worker_count
        yield _gauge("preprocessor_queued_requests", "Work waiting for a worker or for memory", pool.queued_count)
        yield _gauge("preprocessor_running_work", "Work that workers do now", pool.running_count)
        yield _gauge("preprocessor_workers", "Cores to work on", cores)
        yield _gauge("preprocessor_worker_processes", "Worker processes alive", pool.worker_set.count)
        yield _gauge(
            "preprocessor_load_ratio",
            "Core-seconds that all work here, waiting or running, is expected to take, over the cores: to scale by",
            pool.expected_seconds / cores,
        )
        yield _gauge("preprocessor_budget_bytes", "Memory for all requests", pool.settings.memory_budget_bytes)
        yield _gauge("preprocessor_budget_used_bytes", "Memory they hold", pool.used_bytes)
        yield _gauge(
            "preprocessor_budget_full_ratio", "Part taken of memory for files or for pixels, the fuller", pool.fullness
        )
        yield _gauge("preprocessor_memory_limit_bytes", "What all processes here may take", available_memory_bytes())
        yield _gauge(
            "preprocessor_memory_used_bytes", "What they take of it, idle pages of files apart", used_memory_bytes()
        )
        yield _by_label(
            CounterMetricFamily(
                "preprocessor_abandoned_work", "Work whose caller went away, by where it was", labels=("state",)
            ),
            pool.abandoned_counts,
        )
        causes = health.causes
        yield _gauge("preprocessor_ready", "1 while this replica should get work", not health.causes_of())
        yield _by_label(
            GaugeMetricFamily(
                "preprocessor_method_ready", "1 while it should get calls of a method", labels=("method",)
            ),
            {method: not health.causes_of(method) for method in METHODS},
        )
        yield _by_label(
            GaugeMetricFamily(
                "preprocessor_unready",
                "1 for each cause why it should get none, or none of some method",
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
