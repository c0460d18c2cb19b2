"""What to measure, and what every part of the benchmark shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from preprocessor.models.family import Model
from preprocessor.traffic.load import WRONG, Ask, Load
from tests.bench.service.asks import video_ask
from tests.bench.service.checksum import Checksum
from tests.bench.service.load import Clients, Traffic
from tests.bench.service.sender import SenderAlone
from tests.bench.service.watched import WatchedServer


class WrongAnswer(Exception):
    """An answer is not what the pipeline makes: nothing that was timed counts."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure.

    Attributes:
        rounds: Of things that run in turn.
        is_full: Whether other clips run at all of their rates.
        has_memory: Whether each path's peak memory is taken.
        fps: Of the seed workload.
        load_fps: Of the seed workload under load.
        load_rounds: Times that a series of loads runs.
        concurrencies: Callers of a load.
        worker_count: Of the server under load.
        seconds_each: How long a load lasts; what was begun by then is ended.
        scaling_worker_counts: Ascending.
        client_process_count: Processes of callers.
        connection_count: Connections of each.
        is_by_shared_memory: Whether rows of a load go to shared memory of the callers.
        image_count: Small images, one after another.
        start_count: Starts of a server.
    """

    rounds: int
    is_full: bool
    has_memory: bool
    fps: tuple[float, ...]
    load_fps: tuple[float, ...]
    load_rounds: int
    concurrencies: tuple[int, ...]
    worker_count: int
    seconds_each: float
    scaling_worker_counts: tuple[int, ...]
    client_process_count: int
    connection_count: int
    is_by_shared_memory: bool
    image_count: int
    start_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What the parts share.

    Attributes:
        clip: The seed clip.
    """

    model: Model
    clip: bytes
    clients: Clients
    options: Options

    def ask(self, fps: float) -> Ask:
        return video_ask(self.model, f"{fps:g} fps", self.clip, fps)

    def run(self, server: WatchedServer | SenderAlone, *asks: Ask, **load: Any) -> Traffic:
        """Put a load on a server.

        Raises:
            WrongAnswer: An answer that was read is not the pipeline's.
        """
        traffic = self.clients.run(server.address, Load(asks, check=Checksum, **load))
        if wrong := [end.ask.name for end in traffic.endings if end.outcome == WRONG]:
            raise WrongAnswer(f"{len(wrong)} answers to {wrong[0]} are not what the pipeline makes")
        return traffic

    def warm_up(self, server: WatchedServer, *asks: Ask) -> None:
        """A few requests, all of whose answers are checked."""
        count = len(asks) * (2 + int(server.metrics()["preprocessor_workers"]))
        traffic = self.run(server, *asks, concurrency=2, count=count, check_share=1)
        if refusals := traffic.refusals():
            raise WrongAnswer(f"refused on an idle server: {dict(refusals)}")
