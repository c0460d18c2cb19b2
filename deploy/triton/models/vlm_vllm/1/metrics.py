"""vLLM's own figures among Triton's metrics, under vLLM's names and labels: a thread copies them, apart from all that answers.

vLLM keeps them in this process, in `prometheus_client`'s registry, unless `disable_log_stats` is among its arguments. Each value
that is set goes through Triton's process, so they are copied every second and not as they change.

Source: vLLM 0.32, v1/metrics/loggers.py, `PrometheusStatLogger`. It tells nothing of the encoder's cache; `vllm:mm_cache_*` are
of its cache of processed media, which has nothing to do here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import triton_python_backend_utils as pb_utils

from engine_client.triton.backend.answers import METRICS_LOCK

COPY_SECONDS = 1.0
GAUGES = {
    "vllm:num_requests_running": "Prompts that vLLM computes",
    "vllm:num_requests_waiting": "Prompts that wait in vLLM",
    "vllm:kv_cache_usage_perc": "Part of vLLM's KV cache that is in use; 1 is all",
}
COUNTERS = {
    "vllm:prompt_tokens_total": "Tokens of prompts, those found in a cache included",
    "vllm:generation_tokens_total": "Tokens of answers",
    "vllm:prefix_cache_queries_total": "Tokens of prompts that were looked up in the prefix cache",
    "vllm:prefix_cache_hits_total": "Tokens of prompts that were found in the prefix cache",
    "vllm:num_preemptions_total": "Times that a prompt lost its place in the KV cache",
}


class EngineMetrics:
    """Copies until it is closed.

    Args:
        model_name: The label `model`, as other metrics of the models here have it.
        registry: `prometheus_client.REGISTRY`.
    """

    def __init__(self, model_name: str, registry: Any) -> None:
        self._model_name = model_name
        self._registry = registry
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=description, kind=kind)
            for kind, described in ((pb_utils.MetricFamily.GAUGE, GAUGES), (pb_utils.MetricFamily.COUNTER, COUNTERS))
            for name, description in described.items()
        }
        self._metrics: dict[tuple[object, ...], Any] = {}
        self._values: dict[tuple[object, ...], float] = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """To be called before the model is gone: metrics that outlive it crash the process (server issue 8662)."""
        self._is_closed.set()
        self._thread.join()
        self._metrics.clear()
        self._families.clear()

    def _run(self) -> None:
        while not self._is_closed.wait(COPY_SECONDS):
            for name, labels, value in read_samples(self._registry.collect(), self._families):
                self._copy(name, labels, value)

    def _copy(self, name: str, labels: dict[str, str], value: float) -> None:
        key = (name, *sorted(labels.items()))
        before = self._values.get(key, 0.0)
        if value == before and key in self._metrics:
            return
        with METRICS_LOCK:
            if key not in self._metrics:
                self._metrics[key] = self._families[name].Metric(labels={"model": self._model_name, **labels})
            if name in GAUGES:
                self._metrics[key].set(value)
            elif value > before:
                self._metrics[key].increment(value - before)
        self._values[key] = value


def read_samples(families: Iterable[Any], names: Iterable[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Of all samples of a registry those with these names: name, labels, value."""
    wanted = set(names)
    for family in families:
        for sample in family.samples:
            if sample.name in wanted:
                yield sample.name, dict(sample.labels), float(sample.value)
