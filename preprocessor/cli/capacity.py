"""From the cost of one request to the resources for a load of them. Pure arithmetic on what headers tell.

    cores       requests a second x core-seconds of one ÷ utilization
    pods        cores ÷ cores of a pod, or what the event loops of one hand on (`--fronts`), whichever makes more
    at once     requests a second x seconds that one is held (Little's law)
    memory      at once x bytes that one holds
    network     requests a second x bytes of one

Estimates within a factor of three, enough to order machines. A load test of one pod (`preprocessor bench`) tells more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from preprocessor.config import FILE_SHARE, bytes_beside_budget, front_bytes
from preprocessor.config.machine import default_front_count
from preprocessor.pipeline.cost import estimate
from preprocessor.types.plan import Plan
from preprocessor.types.request import Media

# What the service adds to the pipeline: tests/bench/RESULTS.md, "Cost", 13 MB and 74 MB of pixels by gRPC.
_SERVICE_SECONDS = 7e-3
_SERVICE_SECONDS_A_BYTE = 0.6e-9
_LOOP_BYTES_A_SECOND = 1.3e9  # tests/bench/device/RESULTS.md, "Load", 8 fps, 1 front: 18.2 answers of 74 MB
_BUDGET_STEP_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request takes.

    Attributes:
        core_seconds: On all processes of the service.
        received_bytes, sent_bytes: Over the network, where the engine is on another host.
        held_bytes: Of the memory budget, while it is worked on.
        file_bytes: The part of these that its files are.
    """

    core_seconds: float
    received_bytes: int
    sent_bytes: int
    held_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What a load takes.

    Attributes:
        requests_at_once: Held on all pods together.
        memory_budget_bytes, container_bytes: Of one pod: `--memory-budget`, and the container's limit.
    """

    cores: float
    pod_count: int
    requests_at_once: float
    memory_budget_bytes: int
    container_bytes: int
    received_bytes_a_second: float
    sent_bytes_a_second: float


def demand_of(planned: Plan, media: Sequence[Media], pipeline_seconds: float | None = None) -> Demand:
    """What a planned request takes of a service.

    Args:
        pipeline_seconds: Core-seconds of `pipeline.prepare`, where they were measured; otherwise they are estimated.
    """
    work = estimate(planned.pixels, media)
    file_bytes = sum(len(medium.data) for medium in media)
    tensor_bytes = sum(tensor.nbytes for tensor in planned.tensors.values()) + planned.pixel_bytes
    core_seconds = work.cpu_seconds if pipeline_seconds is None else pipeline_seconds
    return Demand(
        core_seconds=core_seconds + _SERVICE_SECONDS + _SERVICE_SECONDS_A_BYTE * tensor_bytes,
        received_bytes=file_bytes,
        sent_bytes=tensor_bytes,
        held_bytes=file_bytes + planned.pixel_bytes + work.working_bytes,
        file_bytes=file_bytes,
    )


def needs_of(demand: Demand, requests_a_second: float, cores_a_pod: int, utilization: float) -> Needs:
    """What pods of so many cores need for a steady load.

    Args:
        utilization: Share of the cores that the load may take, 0 < utilization < 1; the rest is what keeps waits short.
    """
    cores = requests_a_second * demand.core_seconds / utilization
    front_count = default_front_count(cores_a_pod)
    loops = requests_a_second * demand.sent_bytes / (front_count * _LOOP_BYTES_A_SECOND) / utilization
    pod_count = max(1, math.ceil(cores / cores_a_pod), math.ceil(loops))
    # As if there was one queue to one core, which overestimates: with several cores waits are shorter.
    held_seconds = demand.core_seconds / (1 - utilization)
    at_once = requests_a_second * held_seconds
    at_once_a_pod = max(math.ceil(at_once / pod_count), cores_a_pod)
    budget_bytes = max(at_once_a_pod * demand.held_bytes, at_once_a_pod * demand.file_bytes * FILE_SHARE)
    budget_bytes = math.ceil(budget_bytes / _BUDGET_STEP_BYTES) * _BUDGET_STEP_BYTES
    return Needs(
        cores=cores,
        pod_count=pod_count,
        requests_at_once=at_once,
        memory_budget_bytes=budget_bytes,
        container_bytes=budget_bytes + bytes_beside_budget(budget_bytes) + front_bytes(front_count),
        received_bytes_a_second=requests_a_second * demand.received_bytes,
        sent_bytes_a_second=requests_a_second * demand.sent_bytes,
    )
