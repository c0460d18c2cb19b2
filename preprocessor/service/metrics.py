"""Prometheus metrics of what happens: calls, stages, media, bytes, tokens. What is, `state_metrics` reads when it is asked.

The parent process alone counts. A label never holds an id, nor anything else that a caller or a worker may choose: its values
are of a list, or there are at most so many. deploy/prometheus/README.md tells them all; a test compares.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import platform
import time
from collections.abc import Iterator, Mapping

import av
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from preprocessor import __version__
from preprocessor.errors import PreprocessorError
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.versions import library_versions
from preprocessor.types.plan import ItemPlan, Plan
from preprocessor.types.request import Modality
from preprocessor.types.source import ClipInfo
from preprocessor.types.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb

METHODS = tuple(pb.DESCRIPTOR.services_by_name["Preprocessor"].methods_by_name)
# The stages of workers come first: only theirs is CPU time of one request alone.
_WORK_STAGES = ("plan", "tokenize", "decode", "resize", "patch", "normalize", "process", "convert")
STAGES = (*_WORK_STAGES, "receive", "fetch", "queue", "send", "first_token", "between_tokens", "generate")
_OTHER = "other"

# From a short prompt's tokens to a ten-minute video.
_SECONDS_BUCKETS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
_LOOP_LOOK_SECONDS = 0.1
_MAX_REASON_COUNT = 128  # protos/README.md lists about 110

Exemplar = Mapping[str, str]


class Metrics:
    """One registry a server, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.build = self._info("preprocessor_build", "Versions, and the model that is served")

        self.requests = self._counter("preprocessor_requests", "Calls ended, by method and gRPC code", "method", "code")
        self.errors = self._counter(
            "preprocessor_errors", "Calls ended with an error, by method and stable reason", "method", "reason"
        )
        self.in_flight = self._gauge("preprocessor_requests_in_flight", "Calls open now", "method")
        self.request_seconds = self._histogram(
            "preprocessor_request_duration_seconds", "Time from the start of a call to its end", "method"
        )
        self.stage_seconds = self._histogram("preprocessor_stage_duration_seconds", "Wall time of a stage", "stage")
        self.stage_cpu_seconds = self._counter(
            "preprocessor_stage_cpu_seconds", "CPU time of a stage that workers do", "stage"
        )

        self.media = self._counter("preprocessor_media", "Images, videos and sounds planned", "modality")
        self.frames = self._counter("preprocessor_frames_used", "Video frames used")
        self.frames_decoded = self._counter("preprocessor_frames_decoded", "Video frames decoded, used or not")
        self.frames_skipped = self._counter("preprocessor_frames_skipped", "Video frames that never had to be decoded")
        self.pixels = self._counter("preprocessor_pixels", "Pixels made, of images and frames as resized", "modality")
        self.pixel_bytes = self._counter("preprocessor_pixel_bytes", "Pixel bytes made")
        self.prompt_tokens = self._counter("preprocessor_prompt_tokens", "Prompt tokens produced")
        self.answer_tokens = self._counter("preprocessor_answer_tokens", "Tokens the engine answered")
        self.received_bytes = self._counter("preprocessor_received_bytes", "Media bytes received")
        self.sent_bytes = self._counter("preprocessor_sent_bytes", "Tensor bytes handed on, by to whom", "to")

        self.fetch_seconds = self._histogram(
            "preprocessor_fetch_duration_seconds",
            "Time of fetching a file, by the URL's scheme and how it ended",
            "scheme",
            "outcome",
        )
        self.fetching = self._gauge("preprocessor_fetches_in_flight", "Files being fetched now")
        self.fetched_bytes = self._counter("preprocessor_fetched_bytes", "Bytes fetched", "scheme")
        self.loop_delay = self._histogram(
            "preprocessor_event_loop_delay_seconds", "How late the event loop turns to what is due"
        )
        self.worker_ends = self._counter("preprocessor_worker_ends", "Worker processes ended, by why", "reason")

        # A counter that begins at 1 has no rate for its first event, so those whose labels are known begin at 0.
        self._stages = {stage: self.stage_seconds.labels(stage) for stage in STAGES}
        self._cpu = {stage: self.stage_cpu_seconds.labels(stage) for stage in _WORK_STAGES}
        for method in METHODS:
            self.in_flight.labels(method)
            self.request_seconds.labels(method)
            for code in ("OK", "CANCELLED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"):
                self.requests.labels(method, code)
        for reason in ("lost", "killed", "recycled"):
            self.worker_ends.labels(reason)
        for receiver in ("caller", "engine"):
            self.sent_bytes.labels(receiver)
        self._reasons: set[str] = set()
        self.between_tokens = self._stages["between_tokens"]

    # -- what happens --------------------------------------------------------------------------------------------------

    def count_end(self, method: str, code: str, reason: str) -> None:
        """Count the end of a call, or a call that was turned away before it began.

        Args:
            reason: Of its error; empty where there is none.
        """
        self.requests.labels(method, code).inc()
        if reason:
            self.errors.labels(method, self._bounded(reason)).inc()

    def end_call(
        self,
        method: str,
        code: str,
        reason: str,
        seconds: float,
        timings: Timings,
        exemplar: Exemplar | None = None,
    ) -> None:
        """Count a call that has ended, with what it took.

        Args:
            exemplar: Labels that lead from a bucket to this call's trace, if it is kept.
        """
        self.count_end(method, code, reason)
        self.request_seconds.labels(method).observe(seconds, exemplar)  # type: ignore[arg-type]
        for stage, spent in timings.stages.items():
            if not (math.isfinite(spent.wall_ms) and math.isfinite(spent.cpu_ms)):
                continue  # a worker's word; a sum never recovers from it
            observed = self._stages.get(stage) or self.stage_seconds.labels(_OTHER)
            observed.observe(spent.wall_ms / 1e3, exemplar)  # type: ignore[arg-type]
            if stage in self._cpu and spent.cpu_ms > 0:
                self._cpu[stage].inc(spent.cpu_ms / 1e3)

    def open_call_count(self) -> int:
        """Calls that have begun and not ended, of every method."""
        return int(sum(sample.value for family in self.in_flight.collect() for sample in family.samples))

    def observe_plan(self, planned: Plan) -> None:
        for item in planned.items:
            self.media.labels(item.modality.name.lower()).inc()
            self.frames.inc(0 if item.frames is None else len(item.frames.indices))
        self.prompt_tokens.inc(planned.token_count)

    def observe_pixels(self, planned: Plan, decoded_frame_count: int) -> None:
        """Count pixels that were made, and the frames that were decoded for them."""
        self.pixel_bytes.inc(planned.pixel_bytes)
        in_files = 0
        for item in planned.items:
            self.pixels.labels(item.modality.name.lower()).inc(_pixel_count(item))
            if item.modality is Modality.VIDEO and isinstance(item.source, ClipInfo):
                in_files += item.source.frame_count
        self.frames_decoded.inc(max(0, decoded_frame_count))
        # Parts of a clip cut in the midst of a group of pictures may decode a frame twice.
        self.frames_skipped.inc(max(0, in_files - decoded_frame_count))

    @contextlib.contextmanager
    def time_fetch(self, scheme: str) -> Iterator[None]:
        """Around the fetch of one file. Its outcome is "ok", "cancelled", "internal", or an error's reason in lower case."""
        started, outcome = time.perf_counter(), "internal"
        self.fetching.inc()
        try:
            yield
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except PreprocessorError as error:
            outcome = error.reason.lower()
            raise
        finally:
            self.fetching.dec()
            self.fetch_seconds.labels(scheme, outcome).observe(time.perf_counter() - started)

    def count_worker_end(self, reason: str) -> None:
        """See `WorkerPool`."""
        self.worker_ends.labels(reason).inc()

    async def watch_event_loop(self) -> None:
        """Until cancelled, see how late this task is woken: everything that the loop serves waits as long."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOP_LOOK_SECONDS
            await asyncio.sleep(_LOOP_LOOK_SECONDS)
            self.loop_delay.observe(max(0.0, loop.time() - due))

    # -- what is said of it --------------------------------------------------------------------------------------------

    def describe_build(self, model: LoadedModel) -> None:
        """Say once what runs here."""
        libraries = {name.replace("-", "_"): version for name, version in library_versions().items()}
        self.build.info(
            {
                "version": __version__,
                "model": model.name,
                "model_fingerprint": model.fingerprint,
                "ffmpeg": av.ffmpeg_version_info,
                "python": platform.python_version(),
                **libraries,
            }
        )

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that an HTTP `Accept` header asks for, and its content type.

        OpenMetrics, which Prometheus asks for, has exemplars; the plain text format, the default, has none.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _bounded(self, reason: str) -> str:
        """The reason, unless there are too many: errors come from workers, too, which have had strangers' files in hand."""
        if reason not in self._reasons:
            if len(self._reasons) >= _MAX_REASON_COUNT:
                return _OTHER
            self._reasons.add(reason)
        return reason

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=_SECONDS_BUCKETS, registry=self.registry)

    def _info(self, name: str, meaning: str) -> Info:
        return Info(name, meaning, registry=self.registry)


def _pixel_count(item: ItemPlan) -> int:
    return item.rows.width_px * item.rows.height_px * item.frame_count
