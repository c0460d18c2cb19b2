"""How the memory of a container is divided: the budget, its parts, and what the service takes beside it."""

from __future__ import annotations

from preprocessor.config.declare import SettingError
from preprocessor.config.machine import available_memory_bytes, default_front_count
from preprocessor.config.values import format_bytes

FILE_SHARE = 4
"""1/4 of the memory budget holds files; the rest holds pixels, results and the working memory of tasks."""
MAX_CACHE_SHARE = 0.7
"""Of the memory budget, for pixels that stay after their request: nearly all of what does not hold files."""
LEAST_BUDGET_BYTES = 64 << 20
"""The decoding of one photo does not fit less."""
_MIB = 1 << 20
_GIB = 1 << 30

# What the service takes at most beside the budget, whatever callers do.
AT_REST_BYTES = 260 * _MIB  # measured: the service, its model and idle workers
UPLOAD_BYTES = 256 * _MIB  # `max_upload_count` messages of `max_message_bytes` being received
SINGLE_MESSAGE_BYTES = 64 * _MIB  # requests of unary methods being received, see `service.auth_interceptor`
DISCARDED_BYTES = 32 * _MIB  # uploads of refused callers that are read to their end, see `service.refused_uploads`
RESPONSE_BYTES = 64 * _MIB  # response messages being sent, once here and once in gRPC
WINDOW_BYTES = 64 * _MIB  # flow-control windows of `max_open_calls`
MAX_OPENAI_CONNECTIONS = 256
OPENAI_CONNECTION_BYTES = 640 << 10  # measured: 0.2 MB of a caller who waits to upload, 0.6 MB with TLS
INSPECTED_BYTES = 64 * _MIB  # pixels that a page of `/inspect` is made of, of which there is one at a time
INSPECTION_BYTES = 3 * INSPECTED_BYTES  # received rows, the arrays that they become, and the page
_SPARE_BYTES = 28 * _MIB
_SERVICE_BYTES = (
    AT_REST_BYTES + UPLOAD_BYTES + SINGLE_MESSAGE_BYTES + DISCARDED_BYTES + RESPONSE_BYTES + WINDOW_BYTES + _SPARE_BYTES
)
_RETAINED_SHARE = 8
FRONT_AT_REST_BYTES = 64 * _MIB  # measured: 54, of which 22 are the same pages in all fronts


def bytes_beside_budget(memory_budget_bytes: int) -> int:
    """The memory that a container needs beside the memory budget, whatever callers do."""
    return _GIB + max(0, memory_budget_bytes - 4 * _GIB) // _RETAINED_SHARE


def front_bytes(front_count: int, upload_bytes: int = UPLOAD_BYTES) -> int:
    """The memory that fronts take beside all else, whatever callers do; none if the service itself is the only one.

    Each sends messages of its own. A message being received is in memory once more, in a front, but only if the service has asked
    for it: over all fronts there are as many as without them.

    Args:
        upload_bytes: `max_upload_count` messages of `max_message_bytes`.
    """
    if front_count < 2:
        return 0
    return front_count * (FRONT_AT_REST_BYTES + RESPONSE_BYTES) + upload_bytes + SINGLE_MESSAGE_BYTES + DISCARDED_BYTES


def retained_bytes(memory_budget_bytes: int) -> int:
    """The freed memory that all workers together may retain between tasks.

    An eighth of the budget, or less where the container, sized by `bytes_beside_budget`, has less.
    """
    return min(memory_budget_bytes // _RETAINED_SHARE, bytes_beside_budget(memory_budget_bytes) - _SERVICE_BYTES)


def largest_budget(container_bytes: int) -> int:
    """The largest budget that fits a container of that size with `bytes_beside_budget`; 0 if none does."""
    above_4_gib = (container_bytes - _GIB + 4 * _GIB // _RETAINED_SHARE) * _RETAINED_SHARE // (_RETAINED_SHARE + 1)
    return max(0, min(container_bytes - _GIB, above_4_gib))


def require_memory(memory_budget_bytes: int, available_bytes: int, more_bytes: int = 0) -> None:
    """Check that the available memory holds the budget and what the service takes beside it.

    Args:
        available_bytes: As `machine.available_memory_bytes`.
        more_bytes: As `ServeSettings.more_bytes`.
    Raises:
        SettingError: The kernel would kill the service under a full load.
    """
    needed_bytes = memory_budget_bytes + bytes_beside_budget(memory_budget_bytes) + more_bytes
    if needed_bytes <= available_bytes:
        return
    largest_bytes = largest_budget(available_bytes - more_bytes) >> 20 << 20
    less = f"at most {format_bytes(largest_bytes)}, or " if largest_bytes >= LEAST_BUDGET_BYTES else ""
    raise SettingError(
        "--memory-budget",
        format_bytes(memory_budget_bytes),
        f"{less}more memory: it takes {needed_bytes >> 20} MiB with what the service needs beside it, and the cgroup or the "
        f"machine has {available_bytes >> 20} MiB",
    )


def default_budget() -> int:
    """Half of the memory, or less if that leaves too little beside it."""
    available_bytes = available_memory_bytes()
    largest_bytes = largest_budget(available_bytes - front_bytes(default_front_count()))
    return max(LEAST_BUDGET_BYTES, min(available_bytes // 2, largest_bytes))
