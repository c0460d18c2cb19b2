"""When an open loop's requests are due."""

from __future__ import annotations

import itertools
import statistics

import pytest

from preprocessor.traffic.schedule import due_times


def test_even_ones_do_not_drift() -> None:
    due = list(due_times(3, 1000))
    assert len(due) == 3000
    assert due[2999] == 2999 / 3


@pytest.mark.parametrize(("rate", "seconds", "count"), [(10, 1, 10), (0.5, 3, 2), (0.1, 1, 1), (7, 0, 0)])
def test_none_is_due_at_the_end_or_later(rate: float, seconds: float, count: int) -> None:
    assert len(list(due_times(rate, seconds))) == count


def test_poisson_arrivals_have_the_asked_rate_and_exponential_gaps() -> None:
    due = list(due_times(50, 400, arrivals_seed=1))
    gaps = [later - earlier for earlier, later in itertools.pairwise(due)]
    assert len(due) == pytest.approx(20_000, rel=0.02)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
    assert due == sorted(due)
    assert due[-1] < 400


def test_the_same_seed_gives_the_same_arrivals_and_another_gives_others() -> None:
    assert list(due_times(5, 20, arrivals_seed=1)) == list(due_times(5, 20, arrivals_seed=1))
    assert list(due_times(5, 20, arrivals_seed=1)) != list(due_times(5, 20, arrivals_seed=2))
