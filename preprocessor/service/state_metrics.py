"""Prometheus metrics of state: tasks, workers, memory, readiness. They are read at each scrape, so requests pay nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from preprocessor.config.machine import available_memory_bytes, used_memory_bytes
from preprocessor.service.health import Cause, Health
from preprocessor.service.metrics import METHODS
from preprocessor.workers.early_work import EarlyEnd
from preprocessor.workers.file_cache import FileCache
from preprocessor.workers.plan_cache import PlanCache
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.row_cache import Eviction, RowCache


class StateMetrics(Collector):
    """A collector for one registry."""

    def __init__(self, pool: WorkerPool, health: Health) -> None:
        self._pool = pool
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Each metric family."""
        pool, health = self._pool, self._health
        cores = pool.settings.worker_count
        yield _gauge("preprocessor_queued_requests", "Tasks waiting for a worker or for memory", pool.queued_count)
        yield _gauge("preprocessor_running_work", "Tasks running on workers", pool.running_count)
        yield _gauge("preprocessor_workers", "Workers per lane: the number of cores to use", cores)
        yield _gauge("preprocessor_worker_processes", "Live worker processes", pool.worker_set.count)
        yield _gauge(
            "preprocessor_load_ratio",
            "Expected core-seconds of all tasks, waiting and running, divided by the cores; for autoscaling",
            pool.expected_seconds / cores,
        )
        yield _gauge("preprocessor_budget_bytes", "Memory budget for all requests", pool.settings.memory_budget_bytes)
        yield _gauge("preprocessor_budget_used_bytes", "Memory held by requests", pool.used_bytes)
        yield _gauge(
            "preprocessor_budget_full_ratio",
            "Used fraction of the memory for files or for pixels, whichever is larger",
            pool.fullness,
        )
        yield from _cache_metrics(pool.cache)
        yield from _file_cache_metrics(pool.file_cache)
        yield from _plan_cache_metrics(pool.plan_cache)
        yield _gauge(
            "preprocessor_memory_limit_bytes", "Memory limit of the container or machine", available_memory_bytes()
        )
        yield _gauge(
            "preprocessor_memory_used_bytes",
            "Memory used of that limit, without inactive page cache",
            used_memory_bytes(),
        )
        yield _by_label(
            CounterMetricFamily(
                "preprocessor_abandoned_work", "Tasks whose caller left, by their state", labels=("state",)
            ),
            pool.counters.abandoned_counts,
        )
        yield _by_label(
            CounterMetricFamily(
                "preprocessor_early_requests",
                "Requests that workers began while their files were arriving, by what became of that",
                labels=("end",),
            ),
            {end.value: pool.counters.early_counts.get(end.value, 0) for end in EarlyEnd},
        )
        yield _by_label(
            CounterMetricFamily(
                "preprocessor_worker_violations", "What workers tried that they may not, by kind", labels=("kind",)
            ),
            pool.counters.violation_counts,
        )
        causes = health.causes
        yield _gauge("preprocessor_ready", "1 if this replica is ready", not health.causes_of())
        yield _by_label(
            GaugeMetricFamily(
                "preprocessor_method_ready", "1 if this replica is ready for a method", labels=("method",)
            ),
            {method: not health.causes_of(method) for method in METHODS},
        )
        yield _by_label(
            GaugeMetricFamily(
                "preprocessor_unready",
                "1 for each cause that makes this replica unready, for all methods or for some",
                labels=("cause",),
            ),
            {cause.value: cause in causes for cause in Cause},
        )
        yield _gauge("preprocessor_engine_ready", "1 if the engine is ready", health.is_engine_ready)


def _cache_metrics(cache: RowCache) -> Iterator[Metric]:
    yield _gauge(
        "preprocessor_cache_bytes", "Finished pixels that stay for requests with the same media", cache.size_bytes
    )
    yield _gauge("preprocessor_cache_entries", "Pixel tensors in the cache", len(cache))
    yield _by_label(
        CounterMetricFamily(
            "preprocessor_cache_items",
            "Items of requests: found in the cache, being made for another request already, or neither",
            labels=("result",),
        ),
        {"hit": cache.hit_count, "joined": cache.joined_count, "miss": cache.miss_count},
    )
    yield _by_label(
        CounterMetricFamily(
            "preprocessor_cache_evictions", "Pixel tensors dropped from the cache, by reason", labels=("reason",)
        ),
        {reason.value: cache.eviction_counts[reason] for reason in Eviction},
    )
    saved = CounterMetricFamily("preprocessor_cache_saved_seconds", "Expected CPU seconds that hits have saved")
    saved.add_metric((), cache.saved_seconds)
    yield saved


def _file_cache_metrics(cache: FileCache) -> Iterator[Metric]:
    yield _gauge("preprocessor_file_cache_bytes", "Files that stay for callers who name them", cache.size_bytes)
    yield _by_label(
        CounterMetricFamily(
            "preprocessor_file_cache_files", "Files that callers named by digest: found or not", labels=("result",)
        ),
        {"hit": cache.hit_count, "miss": cache.miss_count},
    )


def _plan_cache_metrics(cache: PlanCache) -> Iterator[Metric]:
    yield _gauge(
        "preprocessor_plan_cache_bytes", "Plans of items, and token ids, that stay, beside the budget", cache.size_bytes
    )
    yield _by_label(
        CounterMetricFamily(
            "preprocessor_plan_cache_items", "Items whose plan was known, or was not", labels=("result",)
        ),
        {"hit": cache.hit_count, "miss": cache.miss_count},
    )
    yield _by_label(
        CounterMetricFamily(
            "preprocessor_plan_cache_tokens",
            "Token ids of chats: of an earlier turn, or made anew",
            labels=("result",),
        ),
        {"hit": cache.reused_token_count, "miss": cache.encoded_token_count},
    )
    evictions = CounterMetricFamily("preprocessor_plan_cache_evictions", "Plans dropped for others")
    evictions.add_metric((), cache.eviction_count)
    yield evictions


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, float(value))


def _by_label(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric((label,), float(value))
    return family
