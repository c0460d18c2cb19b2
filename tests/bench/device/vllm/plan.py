"""Which cells are measured, in which order: what the goals need first, so that a run that is cut short tells most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.device.vllm.servers import GRPC, HTTP_1, HTTP_8
from tests.bench.device.vllm.systems import Workload

BOUND_BYTES, BOUND_SHARED = "bound, bytes", "bound, shared memory"
OURS_BYTES, OURS_SHARED = "service, bytes", "service, shared memory"
SERVE_8, SERVE_1 = "vllm serve, 8 API servers", "vllm serve, 1 API server"

SERVER_OF = {
    BOUND_SHARED: GRPC,
    OURS_SHARED: GRPC,
    BOUND_BYTES: GRPC,
    OURS_BYTES: GRPC,
    SERVE_8: HTTP_8,
    SERVE_1: HTTP_1,
}
"""Each system → the kind of vLLM server behind it."""
FIRST_SERVERS, LAST_SERVERS = (GRPC, HTTP_8), (HTTP_1,)
"""Up at the same time, since memory of the GPU is enough for two; those of the second group after those of the first."""

_FIRST = (BOUND_SHARED, OURS_SHARED, BOUND_BYTES, OURS_BYTES, SERVE_8)


@dataclass(frozen=True, slots=True)
class Cell:
    """So many callers, who each ask that question of that system again and again."""

    system: str
    callers: int
    workload: Workload


def cells(fps: tuple[float, ...], callers: tuple[int, ...], long_tokens: int) -> Iterator[Cell]:
    """All of them.

    Args:
        callers: The most telling number first.
        long_tokens: Tokens of a long answer, measured with the first number of callers.
    """
    for systems in (_FIRST, (SERVE_1,)):
        for count in callers[:2]:
            yield from (Cell(system, count, Workload(rate, 1)) for rate in fps for system in systems)
        yield from (Cell(system, callers[0], Workload(rate, long_tokens)) for rate in fps for system in systems)
        for count in callers[2:]:
            yield from (Cell(system, count, Workload(rate, 1)) for rate in fps for system in systems)
