"""What the cache of finished rows keeps, beside what it would keep if it knew the requests to come."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from preprocessor.workers.arena import Arena
from preprocessor.workers.ranges import Ranges
from preprocessor.workers.row_cache import RowCache
from tests.bench.service.bounds import Entry, most_saved, saved_by_belady
from tests.unit.workers.test_row_cache import MIB, plan_of

SIZES_MIB = (2, 4, 8, 4)
SECONDS = (0.013, 0.023, 0.059, 0.037)


def zipf(count: int, of: int) -> list[int]:
    """Requests for clips of which the k-th is asked for 1/k times as often as the first."""
    clips = list(range(of))
    chance = random.Random(1)
    chance.shuffle(clips)
    return chance.choices(clips, [1 / rank for rank in range(1, of + 1)], k=count)


def conversations(count: int, at_once: int) -> list[int]:
    """Requests of conversations of 2 to 9 turns, each about a clip of its own, so many of them at once."""
    chance, requests, begun_count = random.Random(1), list[int](), 0
    turns_left: dict[int, int] = {}
    while len(requests) < count:
        if len(turns_left) < at_once or chance.random() < 0.2:
            turns_left[begun_count] = chance.randint(2, 9)
            begun_count += 1
        clip = chance.choice(list(turns_left))
        requests.append(clip)
        turns_left[clip] -= 1
        if not turns_left[clip]:
            del turns_left[clip]
    return requests


def hit_rate(requests: Sequence[int], capacity_mib: int) -> float:
    """Of the cache, in memory that has room for one more tensor."""
    size_bytes = (capacity_mib + max(SIZES_MIB)) * MIB
    arena = Arena.create(size_bytes)
    rows = Ranges(arena, 0, size_bytes, 0)
    cache = RowCache(rows, capacity_mib * MIB)
    for clip in requests:
        kind = clip % len(SIZES_MIB)
        plan = plan_of((str(clip), SIZES_MIB[kind]))
        if not cache.find("", plan):
            while (lease := rows.lease(plan.size_bytes)) is None:
                assert cache.give_way()
            cache.add("", plan, lease, SECONDS[kind], ())
            lease.release()
        assert cache.size_bytes <= capacity_mib * MIB
    cache.clear()
    assert rows.leased_bytes == 0
    arena.close()
    return cache.hit_count / len(requests)


@pytest.mark.parametrize(
    ("requests", "capacity_mib", "share_of_best"),
    [(zipf(3000, 400), 600, 0.85), (conversations(3000, 60), 1024, 0.9)],
    ids=["zipf", "conversations"],
)
def test_hits_come_near_those_of_a_cache_that_knows_the_future(
    requests: list[int], capacity_mib: int, share_of_best: float
) -> None:
    """A third of the Zipf workload's clips fit, and the conversations that go on."""
    entries = {clip: Entry(SIZES_MIB[clip % len(SIZES_MIB)] * MIB) for clip in requests}
    best = saved_by_belady(requests, entries, capacity_mib * MIB) / len(requests)
    found = hit_rate(requests, capacity_mib)
    print(f"{found:.3f} found, {best:.3f} by knowing the future")
    assert share_of_best * best <= found <= best


def test_no_cache_has_more_hits_than_the_bound() -> None:
    """Of which that of one who knows the future has nearly all."""
    requests = zipf(2000, 200)
    for capacity_mib in (32, 128, 512):
        entries = {clip: Entry(SIZES_MIB[clip % len(SIZES_MIB)] * MIB) for clip in requests}
        bound = most_saved(requests, entries, capacity_mib * MIB)
        best = saved_by_belady(requests, entries, capacity_mib * MIB)
        assert 0.9 * bound <= best <= bound


def test_bounds_of_sequences_that_can_be_worked_out_by_hand() -> None:
    entries = {"a": Entry(1), "b": Entry(1), "large": Entry(2), "dear": Entry(2, worth=10)}
    assert saved_by_belady("abab", entries, 2) == most_saved("abab", entries, 2) == 2
    assert saved_by_belady("abab", entries, 1) == 1
    assert saved_by_belady(["large", "a", "b", "large", "a", "b"], entries, 2) == 2
    assert saved_by_belady(["dear", "a", "b", "dear", "a", "b"], entries, 2) == 10
    assert saved_by_belady(["a", "b"], entries, 2) == most_saved(["a", "b"], entries, 2) == 0
    assert saved_by_belady(["large", "large"], entries, 1) == most_saved(["large", "large"], entries, 1) == 0
