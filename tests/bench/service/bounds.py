"""What a cache could have kept at best, had it known the requests that were to come.

With entries of one size Belady's rule, drop what is needed furthest in the future, gives the most hits. With entries of
different sizes the best choice is NP-hard to find, so two figures enclose it: what no cache can exceed, and what one that knows
the future reaches.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

_Name = TypeVar("_Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that can be cached.

    Attributes:
        worth: What a hit saves: 1 to count hits, or CPU seconds.
    """

    size_bytes: int
    worth: float = 1.0


def most_saved(requests: Sequence[_Name], entries: Mapping[_Name, Entry], capacity_bytes: int) -> float:
    """No cache saves more in this sequence.

    The bound PFOO-L of Berger, Beckmann and Harchol-Balter ("Practical Bounds on Optimal Caching with Variable Object Sizes",
    2018): a hit needs the entry's bytes from its last request to this one. The byte-steps of all hits together are at most
    the capacity times the steps, whichever order they are taken in, so the hits that are worth most a byte-step are taken.
    """
    last_seen: dict[_Name, int] = {}
    hits: list[tuple[float, float]] = []  # byte-steps, worth
    for step, name in enumerate(requests):
        if name in last_seen and entries[name].size_bytes <= capacity_bytes:
            hits.append((entries[name].size_bytes * (step - last_seen[name]), entries[name].worth))
        last_seen[name] = step
    left, saved = float(capacity_bytes) * len(requests), 0.0
    for byte_steps, worth in sorted(hits, key=lambda hit: hit[0] / hit[1]):
        share = min(1.0, left / byte_steps)
        left -= share * byte_steps
        saved += share * worth
    return saved


def saved_by_belady(requests: Sequence[_Name], entries: Mapping[_Name, Entry], capacity_bytes: int) -> float:
    """What a cache saves that drops the entry with the most byte-steps until its next request, by what that saves.

    With one size and worth that is Belady's rule, and nothing saves more. An entry may be the one that is dropped as soon as
    it has been made.
    """
    never = 2 * len(requests)
    next_use: list[int] = [never] * len(requests)
    seen: dict[_Name, int] = {}
    for step in range(len(requests) - 1, -1, -1):
        next_use[step] = seen.get(requests[step], never)
        seen[requests[step]] = step
    cached: dict[_Name, int] = {}  # by name, the step of its next request
    used_bytes, saved = 0, 0.0
    for step, name in enumerate(requests):
        if name in cached:
            saved += entries[name].worth
        else:
            used_bytes += entries[name].size_bytes
        cached[name] = next_use[step]
        while used_bytes > capacity_bytes:
            worst = max(cached, key=lambda one: (cached[one] - step) * entries[one].size_bytes / entries[one].worth)
            used_bytes -= entries[worst].size_bytes
            del cached[worst]
    return saved
