"""The errors of requests that memory, time or processes do not suffice for."""

from __future__ import annotations

from preprocessor.errors import LimitExceeded, Overloaded, WorkerLost


def queue_full(pending_count: int, worker_count: int) -> Overloaded:
    """More requests wait than the deployment allows."""
    return Overloaded(
        f"{pending_count} requests already wait for {worker_count} workers; try again, or another replica",
        reason="QUEUE_FULL",
    )


def wait_exceeds_deadline(wait_seconds: float) -> Overloaded:
    """The deadline would pass before the tasks ahead of this one are done."""
    return Overloaded(
        f"this request would wait about {wait_seconds:.1f} s for those before it, which is more than its deadline leaves; "
        "try again later, or another replica",
        reason="WAIT_EXCEEDS_DEADLINE",
        retry_after_seconds=wait_seconds,
    )


def file_memory_full(size_bytes: int) -> Overloaded:
    """The files of other requests take all `size_bytes` of the memory for files."""
    return Overloaded(
        f"the files of other requests fill the {size_bytes >> 20} MiB of memory for files; try again, or another replica",
        reason="MEMORY_BUDGET_FULL",
    )


def shared_memory_full() -> Overloaded:
    """The memory budget has memory for the request, and /dev/shm has not."""
    return Overloaded(
        "/dev/shm has no space left for the request: others fill it, or it is smaller than --memory-budget; try again, or "
        "another replica",
        reason="SHARED_MEMORY_FULL",
    )


def system_resources_exhausted() -> Overloaded:
    """The operating system gives the service no descriptor, mapping or process for the request."""
    return Overloaded(
        "the service has no file descriptors, mappings or processes left for the request; try again, or another replica",
        reason="SYSTEM_RESOURCES_EXHAUSTED",
    )


def budget_exceeded(wanted_bytes: int, budget_bytes: int) -> LimitExceeded:
    """The request would not fit even into an idle pool."""
    return LimitExceeded(
        f"the request needs {wanted_bytes >> 20} MiB of memory, and this deployment gives one request at most "
        f"{budget_bytes >> 20} MiB; ask for fewer frames or a smaller max_pixels",
        reason="MEMORY_BUDGET_EXCEEDED",
    )


def worker_memory_exceeded() -> LimitExceeded:
    """The request needs more than the memory of a worker."""
    return LimitExceeded(
        "the request needs more memory than a worker may use; send a smaller file, or fewer pixels",
        reason="WORKER_MEMORY_EXCEEDED",
    )


def cpu_seconds_exceeded(cpu_seconds: float) -> LimitExceeded:
    """The request needs more CPU time than one request may use."""
    return LimitExceeded(
        f"the request needs more than the {cpu_seconds:g} CPU seconds that a request may use; ask for fewer frames, or send "
        "a smaller file",
        reason="CPU_SECONDS_EXCEEDED",
    )


def worker_violation() -> WorkerLost:
    """The worker of the request did what only a decoder that was taken over would do."""
    return WorkerLost(
        "the worker of this request tried what its sandbox does not allow, and was ended; a file of the request may be an attack",
        reason="WORKER_VIOLATION",
    )
