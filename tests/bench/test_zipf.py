"""The Zipf workload, so small that it shows only that everything runs and that what it says is right."""

from __future__ import annotations

import pytest

from tests.bench.service import zipf


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cache_finds_what_was_asked_for_before_and_keeps_to_its_memory() -> None:
    options = "--clips 40 --requests 120 --cache 64 --workers 1 --callers 4 --rounds 1 --round-requests 10"
    result = zipf.main(options.split())
    with_cache, without = result["zipf"]["with"], result["zipf"]["without"]
    assert 0.3 < result["zipf"]["hit_rate"] <= result["zipf"]["hit_rate_bound"]
    assert result["zipf"]["hit_rate_knowing_the_future"] <= result["zipf"]["hit_rate_bound"]
    assert result["zipf"]["working_set_bytes"] > result["zipf"]["cache_bytes"] > with_cache["most"]["cache_bytes"] * 0.9
    assert with_cache["is_memory_within_budget"] and without["is_memory_within_budget"]
    assert with_cache["evictions"]["share"] > 0 < with_cache["saved_cpu_seconds"]
    assert without["items"] == {"hit": 0, "joined": 0, "miss": 0}
    assert with_cache["cpu_ms"] < without["cpu_ms"]
    assert len(result["without_repeats"]["rounds"]["with"]) == 1
