"""Prometheus metrics. The parent process alone counts; a label never holds an id."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from preprocessor.models.generic import GenericPrepared
from preprocessor.timing import Timings
from preprocessor.types import Plan
from preprocessor.version import VERSION
from preprocessor.workers.pool import WorkerPool

# From a header probe to a ten-minute video.
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One registry a server, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "preprocessor_requests", "Calls ended, by method and gRPC code", ["method", "code"], registry=self.registry
        )
        self.in_flight = Gauge("preprocessor_requests_in_flight", "Calls open now", ["method"], registry=self.registry)
        self.queued = Gauge("preprocessor_queued_requests", "Work waiting for a worker", registry=self.registry)
        self.running = Gauge("preprocessor_running_work", "Work that workers do now", registry=self.registry)
        self.workers = Gauge("preprocessor_workers", "Cores to work on", registry=self.registry)
        self.worker_processes = Gauge("preprocessor_worker_processes", "Worker processes alive", registry=self.registry)
        self.worker_ends = Counter(
            "preprocessor_worker_ends", "Worker processes ended, by why", ["reason"], registry=self.registry
        )
        self.budget_bytes = Gauge("preprocessor_budget_bytes", "Memory for all requests", registry=self.registry)
        self.budget_used_bytes = Gauge("preprocessor_budget_used_bytes", "Memory they hold", registry=self.registry)
        self.stage_seconds = Histogram(
            "preprocessor_stage_duration_seconds",
            "Wall time of a stage",
            ["stage"],
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.media = Counter("preprocessor_media", "Images and videos planned", ["modality"], registry=self.registry)
        self.frames = Counter("preprocessor_frames_used", "Video frames used", registry=self.registry)
        self.prompt_tokens = Counter("preprocessor_prompt_tokens", "Prompt tokens produced", registry=self.registry)
        self.answer_tokens = Counter("preprocessor_answer_tokens", "Tokens the engine answered", registry=self.registry)
        self.received_bytes = Counter("preprocessor_received_bytes", "Media bytes received", registry=self.registry)
        self.pixel_bytes = Counter("preprocessor_pixel_bytes", "Pixel bytes made", registry=self.registry)
        self.engine_ready = Gauge("preprocessor_engine_ready", "1 while the engine answers", registry=self.registry)
        Info("preprocessor_build", "Version of this service", registry=self.registry).info({"version": VERSION})

    def open_call_count(self) -> int:
        """Calls that have begun and not ended, of every method."""
        return int(sum(sample.value for family in self.in_flight.collect() for sample in family.samples))

    def observe_plan(self, planned: Plan | GenericPrepared) -> None:
        for item in planned.items:
            self.media.labels(item.modality.name.lower()).inc()
            self.frames.inc(0 if item.frames is None else len(item.frames.indices))
        self.prompt_tokens.inc(planned.token_count)

    def observe_pool(self, pool: WorkerPool) -> None:
        """Take the gauges' values; to be called when they are read."""
        self.queued.set(pool.queued_count)
        self.running.set(pool.running_count)
        self.workers.set(pool.settings.worker_count)
        self.worker_processes.set(pool.crew.count)
        self.budget_bytes.set(pool.settings.memory_budget_bytes)
        self.budget_used_bytes.set(pool.used_bytes)

    def count_worker_end(self, reason: str) -> None:
        """See `WorkerPool`."""
        self.worker_ends.labels(reason).inc()

    def observe_stages(self, timings: Timings) -> None:
        for stage, spent in timings.stages.items():
            self.stage_seconds.labels(stage).observe(spent.wall_ms / 1e3)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
