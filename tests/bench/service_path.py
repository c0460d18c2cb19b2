"""The workload through a real server on loopback, as one more path of a contest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from preprocessor import pipeline
from preprocessor.client import Client, Prompt
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.models.family import Model
from preprocessor.traffic.load import Ask, ask_prepare
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.contest import Disagreement, Runner, Sample
from tests.bench.service.asks import request_of
from tests.bench.service.watched import WatchedServer

OPTIONS = ("--workers", "1", "--memory-budget", "2GiB", "--cache-share", "0")
_PAUSE_SECONDS = 0.02  # until what a request leaves to do is done, so that it is counted as its own
_TIMEOUT_SECONDS = 300.0


class ServicePath:
    """A server with one worker; as a context manager.

    Args:
        options: More of its own.
        under: A command that becomes the server.
    """

    def __init__(self, *options: str, under: Sequence[str] = ()) -> None:
        self._options = options
        self._under = under

    def __enter__(self) -> Self:
        self.server = WatchedServer(*OPTIONS, *self._options, under=self._under).__enter__()
        self._channel = grpc.insecure_channel(self.server.address, options=CHANNEL_OPTIONS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self.server.__exit__()

    def runner(self, model: Model, spec: pb.PrepareSpec, files: Mapping[str, bytes], count: int) -> Runner:
        """Asks `count` times one after another; what the sample says is one request's.

        Raises:
            Disagreement: A tensor of the first answer is not the pipeline's.
        """
        ask = ask_prepare("bench", Prompt(spec, files))
        self._compare(model, ask, spec, files)

        def run() -> Sample:
            stages: Counter[str] = Counter()
            used_seconds, wall_ms = self.server.cpu_seconds(), 0.0
            for _ in range(count):
                began = time.perf_counter()
                report = self._ask(ask)
                wall_ms += (time.perf_counter() - began) * 1e3
                stages.update({stage.stage: stage.cpu_ms for stage in report.stages if stage.cpu_ms})
                time.sleep(_PAUSE_SECONDS)
            cpu_ms = (self.server.cpu_seconds() - used_seconds) * 1e3
            return Sample(wall_ms / count, cpu_ms / count, {name: ms / count for name, ms in stages.items()})

        return run

    def peak_pss_bytes(self, spec: pb.PrepareSpec, files: Mapping[str, bytes]) -> int:
        """Memory of the whole tree while it answers, idle memory included."""
        with self.server.watched_pss(every_seconds=0.02) as samples:
            self._ask(ask_prepare("bench", Prompt(spec, files)))
        return max(samples)

    def _ask(self, ask: Ask) -> pb.Report:
        """The answer's bytes are taken and not looked at, but for the report."""
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(ask.method)
        last = b""
        for message in call(iter(ask.messages), timeout=_TIMEOUT_SECONDS):
            last = message
        return pb.PrepareResponse.FromString(last).report

    def _compare(self, model: Model, ask: Ask, spec: pb.PrepareSpec, files: Mapping[str, bytes]) -> None:
        expected = pipeline.prepare(model, request_of(ask)).tensors
        with Client(self.server.address) as client:
            answered = client.prepare(Prompt(spec, files), timeout_seconds=_TIMEOUT_SECONDS).tensors
        if answered.keys() != expected.keys():
            raise Disagreement(f"the service sends {sorted(answered)}, the pipeline makes {sorted(expected)}")
        for name, array in expected.items():
            if not np.array_equal(answered[name], array):
                raise Disagreement(f"{name} through the service is not the pipeline's")
