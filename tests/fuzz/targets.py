"""The services that are fuzzed: real ones, with worker processes, watched from outside."""

from __future__ import annotations

import re
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service.watched import WatchedServer

MAX_CPU_SECONDS = 20.0
_OPTIONS = (
    *("--workers", "2", "--memory-budget", "1GiB", "--max-queued", "64"),
    *("--max-cpu-seconds", str(MAX_CPU_SECONDS), "--max-file-cpu-seconds", "10"),
    # A header that is turned into a large one costs a second of honest work, and finds nothing that a smaller one does not.
    *("--max-image-pixels", "8000000", "--max-frame-pixels", "2000000", "--max-pixel-bytes", "64MiB"),
)
_DEATH = re.compile(r"a worker process ended \((\w[\w ]*)\)")
_FAULT = re.compile(r"Traceback|ERROR|CRITICAL")


class WatchedLog(deque[str]):
    """The last lines of a log, and what of all of it counts: deaths of workers, and faults."""

    def __init__(self) -> None:
        super().__init__(maxlen=400)
        self.deaths: Counter[str] = Counter()
        self.faults: list[str] = []

    def append(self, line: str) -> None:
        super().append(line)
        if found := _DEATH.search(line):
            self.deaths[found.group(1)] += 1
        if _FAULT.search(line) and len(self.faults) < 100:
            self.faults.append(line)


class Target:
    """One service under fire.

    Attributes:
        log: Its own words.
    """

    def __init__(self, server: WatchedServer, log: WatchedLog) -> None:
        self.server = server
        self.log = log


@contextmanager
def targets(video_decoder: str) -> Iterator[Mapping[int, Target]]:
    """Modality → the service for it: one of the fast path, and a tiny model that listens, for sounds."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-model-"))) / "qwen2_audio"
        _save_listening_model(folder)
        seeing = stack.enter_context(_serving("qwen3-vl", "--video-decoder", video_decoder))
        listening = stack.enter_context(_serving(str(folder)))
        yield {pb.MODALITY_IMAGE: seeing, pb.MODALITY_VIDEO: seeing, pb.MODALITY_AUDIO: listening}


@contextmanager
def _serving(model: str, *options: str) -> Iterator[Target]:
    server, log = WatchedServer("--model", model, *_OPTIONS, *options), WatchedLog()
    server.log = log
    with server:
        yield Target(server, log)


def _save_listening_model(folder: Path) -> None:
    from tests.golden import oracle  # noqa: F401  # makes torchvision importable, before transformers looks for it
    from tests.tiny_processors import save_qwen2_audio

    save_qwen2_audio(folder)
