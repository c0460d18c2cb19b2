"""When the requests of an open loop are due."""

from __future__ import annotations

import random
from collections.abc import Iterator


def due_times(rate_per_second: float, seconds: float, *, arrivals_seed: int | None = None) -> Iterator[float]:
    """Seconds from the start at which a request is due, ascending, all below `seconds`.

    Args:
        rate_per_second: Requests a second, above 0.
        arrivals_seed: None spaces them evenly. With a seed they form a Poisson process, like requests of independent callers:
            gaps are exponentially distributed with the same mean.
    """
    if arrivals_seed is None:
        index = 0
        while (
            due := index / rate_per_second
        ) < seconds:  # computed from the start: adding gaps would accumulate errors
            yield due
            index += 1
        return
    gaps, due = random.Random(arrivals_seed), 0.0
    while (due := due + gaps.expovariate(rate_per_second)) < seconds:
        yield due
