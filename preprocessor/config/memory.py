"""How the memory of a container is divided: the budget, its parts, and what the service takes beside it."""

from __future__ import annotations

from preprocessor.config.declare import SettingError
from preprocessor.config.machine import available_memory_bytes
from preprocessor.config.values import format_bytes

FILE_SHARE = 4
"""1/4 of the memory budget holds files; the rest holds pixels, results and the working memory of tasks."""
KEPT_SHARE = 8
"""All workers together keep at most 1/8 of the memory budget between tasks."""
LEAST_BUDGET_BYTES = 64 << 20
"""The decoding of one photo does not fit less."""
COUNTED_UPLOAD_BYTES = 256 << 20
"""Of messages being received, as `bytes_beside_budget` counts them."""
_GIB = 1 << 30


def bytes_beside_budget(memory_budget_bytes: int) -> int:
    """What a container needs beside the memory budget, whatever callers do.

    Measured, in MiB: 260 for the service, its model and idle workers; 256 for `max_upload_count` messages being received, and
    64 for single messages and those of refused callers; 64 for answers being sent; 64 for the windows of `max_open_calls`; and
    what workers keep between tasks, up to 1/`KEPT_SHARE` of the budget, of which 512 fit in what is left of the first GiB.
    """
    return _GIB + max(0, memory_budget_bytes - 4 * _GIB) // KEPT_SHARE


def largest_budget(container_bytes: int) -> int:
    """The largest budget that fits a container of that size with `bytes_beside_budget`; 0 if none does."""
    above_4_gib = (container_bytes - _GIB + 4 * _GIB // KEPT_SHARE) * KEPT_SHARE // (KEPT_SHARE + 1)
    return max(0, min(container_bytes - _GIB, above_4_gib))


def require_memory(memory_budget_bytes: int, available_bytes: int, more_bytes: int = 0) -> None:
    """Check that the available memory holds the budget and what the service takes beside it.

    Args:
        available_bytes: As `machine.available_memory_bytes`.
        more_bytes: As `ServeSettings.more_incoming_bytes`.
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
    return max(LEAST_BUDGET_BYTES, min(available_bytes // 2, largest_budget(available_bytes)))
