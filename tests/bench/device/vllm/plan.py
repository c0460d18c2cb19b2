"""Which cells are measured, in which order: what the goals need first, so that a run that is cut short tells most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.device.vllm.servers import GRPC, HTTP_1, HTTP_8, TRITON
from tests.bench.device.vllm.systems import Workload

BOUND_BYTES, BOUND_SHARED = "bound, bytes", "bound, shared memory"
OURS_BYTES, OURS_SHARED = "service, bytes", "service, shared memory"
TRITON_PIECES, TRITON_SHARED = "service, Triton, pieces", "service, Triton, shared memory"
SERVE_8, SERVE_1 = "vllm serve, 8 API servers", "vllm serve, 1 API server"

SERVER_OF = {
    BOUND_SHARED: GRPC,
    OURS_SHARED: GRPC,
    BOUND_BYTES: GRPC,
    OURS_BYTES: GRPC,
    TRITON_SHARED: TRITON,
    TRITON_PIECES: TRITON,
    SERVE_8: HTTP_8,
    SERVE_1: HTTP_1,
}
"""Each system → the kind of vLLM server behind it."""
GPU_OF = {GRPC: 0, TRITON: 0, HTTP_8: 1, HTTP_1: 1}
"""Where there are two GPUs."""

# The servers of each are up at the same time: memory of one GPU is enough for two.
_FIRST = (BOUND_SHARED, OURS_SHARED, BOUND_BYTES, OURS_BYTES, SERVE_8)
_LAST = (TRITON_SHARED, TRITON_PIECES, SERVE_1)


@dataclass(frozen=True, slots=True)
class Cell:
    """So many callers, who each ask that question of that system again and again."""

    system: str
    callers: int
    workload: Workload


def cells(systems: Sequence[str], fps: tuple[float, ...], callers: tuple[int, ...], long_tokens: int) -> Iterator[Cell]:
    """All of these systems.

    Args:
        callers: The most telling number first.
        long_tokens: Tokens of a long answer, measured with the first number of callers.
    """
    for count in callers[:2]:
        yield from (Cell(system, count, Workload(rate, 1)) for rate in fps for system in systems)
    yield from (Cell(system, callers[0], Workload(rate, long_tokens)) for rate in fps for system in systems)
    for count in callers[2:]:
        yield from (Cell(system, count, Workload(rate, 1)) for rate in fps for system in systems)


def groups(gpu_count: int, is_tiny: bool) -> list[tuple[str, ...]]:
    """Systems whose servers can be up at the same time; on a CPU one server at a time."""
    if is_tiny:
        return [
            tuple(system for system in SERVER_OF if SERVER_OF[system] == kind)
            for kind in (GRPC, TRITON, HTTP_8, HTTP_1)
        ]
    return [(*_FIRST, *_LAST)] if gpu_count > 1 else [_FIRST, _LAST]
