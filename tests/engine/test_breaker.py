"""When an endpoint leaves and returns: every rule, on a clock of the test's own."""

from __future__ import annotations

import random

import pytest

from engine_client.breaker import Breaker, EndpointHealth, EndpointPolicy, RetryBudget

POLICY = EndpointPolicy(max_failures=3, min_backoff_seconds=1.0, max_backoff_seconds=4.0, backoff_jitter=0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(POLICY, clock, random.Random(0))


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(), "boom")


def succeed(breaker: Breaker) -> None:
    attempt = breaker.begin()
    breaker.saw_step(attempt)
    breaker.completed(attempt)


def eject(breaker: Breaker) -> None:
    fail(breaker, POLICY.max_failures)
    assert breaker.health is EndpointHealth.EJECTED


def put_on_trial(breaker: Breaker, clock: Clock) -> None:
    clock.now += breaker.seconds_to_return
    breaker.probe_succeeded()
    assert breaker.health is EndpointHealth.TRIAL


def test_failures_in_a_row_eject(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.is_open
    fail(breaker)
    assert not breaker.is_open
    assert (breaker.health, breaker.last_error, breaker.ejection_count) == (EndpointHealth.EJECTED, "boom", 1)


def test_a_whole_answer_between_failures_keeps_it_in(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker, 2)
        succeed(breaker)
    assert breaker.health is EndpointHealth.HEALTHY


def test_a_first_token_alone_does_not_excuse_failures(breaker: Breaker) -> None:
    for _ in range(3):  # each answer starts and breaks off
        attempt = breaker.begin()
        breaker.saw_step(attempt)
        breaker.failed(attempt, "broke off")
    assert breaker.health is EndpointHealth.EJECTED


def test_a_successful_probe_does_not_excuse_failed_requests(breaker: Breaker) -> None:
    for _ in range(3):
        fail(breaker)
        breaker.probe_succeeded()
    assert breaker.health is EndpointHealth.EJECTED


def test_probes_that_fail_in_a_row_eject_and_one_that_succeeds_between_does_not(breaker: Breaker) -> None:
    for outcome in ("fail", "fail", "succeed", "fail", "fail"):
        if outcome == "fail":
            breaker.probe_failed("not ready")
        else:
            breaker.probe_succeeded()
    assert breaker.health is EndpointHealth.HEALTHY
    assert not breaker.is_ready
    breaker.probe_failed("not ready")
    assert breaker.health is EndpointHealth.EJECTED


def test_what_every_request_would_meet_ejects_at_once(breaker: Breaker) -> None:
    breaker.failed(breaker.begin(), "another model", is_final=True)
    assert breaker.health is EndpointHealth.EJECTED


def test_what_every_probe_would_meet_ejects_at_once(breaker: Breaker) -> None:
    breaker.probe_failed("another model", is_final=True)
    assert breaker.health is EndpointHealth.EJECTED


def test_a_failure_that_may_not_eject_is_counted(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.failed(breaker.begin(), "boom", may_eject=False)
    assert breaker.health is EndpointHealth.HEALTHY
    fail(breaker)
    assert breaker.health is EndpointHealth.EJECTED


def test_a_full_endpoint_stays_in(breaker: Breaker) -> None:
    for _ in range(10):
        attempt = breaker.begin()
        breaker.refused("full")
        breaker.released(attempt)
    assert breaker.health is EndpointHealth.HEALTHY


def test_it_returns_only_when_its_time_is_over_and_a_probe_succeeds(breaker: Breaker, clock: Clock) -> None:
    eject(breaker)
    clock.now = 0.9
    assert not breaker.needs_probe
    breaker.probe_succeeded()
    assert breaker.health is EndpointHealth.EJECTED
    clock.now = 1.0
    assert breaker.needs_probe
    breaker.probe_succeeded()
    assert breaker.health is EndpointHealth.TRIAL


def test_on_trial_one_request_at_a_time_is_sent_until_a_token_comes(breaker: Breaker, clock: Clock) -> None:
    eject(breaker)
    put_on_trial(breaker, clock)
    attempt = breaker.begin()
    assert not breaker.is_open
    breaker.saw_step(attempt)
    assert breaker.is_open
    assert breaker.health is EndpointHealth.HEALTHY


def test_a_trial_that_says_nothing_about_the_endpoint_makes_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    eject(breaker)
    put_on_trial(breaker, clock)
    breaker.released(breaker.begin())
    assert breaker.health is EndpointHealth.TRIAL
    assert breaker.is_open


def test_each_ejection_without_a_whole_answer_between_lasts_longer_up_to_a_bound(
    breaker: Breaker, clock: Clock
) -> None:
    eject(breaker)
    lengths = [breaker.seconds_to_return]
    for _ in range(3):
        put_on_trial(breaker, clock)
        fail(breaker)
        lengths.append(breaker.seconds_to_return)
    assert lengths == [1.0, 2.0, 4.0, 4.0]


def test_failed_probes_of_an_ejected_endpoint_lengthen_its_time_too(breaker: Breaker, clock: Clock) -> None:
    eject(breaker)
    clock.now = 1.0
    breaker.probe_failed("still down")
    assert (breaker.seconds_to_return, breaker.last_error) == (2.0, "still down")


def test_a_whole_answer_makes_the_next_ejection_short_again(breaker: Breaker, clock: Clock) -> None:
    eject(breaker)
    put_on_trial(breaker, clock)
    fail(breaker)
    put_on_trial(breaker, clock)
    succeed(breaker)
    eject(breaker)
    assert breaker.seconds_to_return == 1.0


def test_a_night_of_failures_does_not_overflow(breaker: Breaker, clock: Clock) -> None:
    eject(breaker)
    for _ in range(2000):
        clock.now += breaker.seconds_to_return
        breaker.probe_failed("down")
    assert breaker.seconds_to_return == 4.0


def test_jitter_shortens_by_its_part_at_most_and_repeats_with_the_seed(clock: Clock) -> None:
    policy = EndpointPolicy(max_failures=1, min_backoff_seconds=1.0, backoff_jitter=0.5)

    def lengths(seed: int) -> list[float]:
        chance, found = random.Random(seed), []
        for _ in range(20):
            breaker = Breaker(policy, clock, chance)
            fail(breaker)
            found.append(breaker.seconds_to_return)
        return found

    assert lengths(1) == lengths(1) != lengths(2)
    assert all(0.5 <= length <= 1.0 for length in lengths(1))
    assert len(set(lengths(1))) == 20


def test_answers_begun_before_the_ejection_say_nothing_about_the_trial(breaker: Breaker, clock: Clock) -> None:
    stale = [breaker.begin() for _ in range(POLICY.max_failures)]
    eject(breaker)
    put_on_trial(breaker, clock)
    for attempt in stale:
        breaker.saw_step(attempt)
        breaker.failed(attempt, "broke off")
    assert breaker.health is EndpointHealth.TRIAL
    assert breaker.is_open


def test_callers_who_leave_after_a_long_silence_eject(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        attempt = breaker.begin()
        clock.now += POLICY.min_silence_seconds
        breaker.abandoned(attempt, "left")
    assert breaker.health is EndpointHealth.EJECTED


def test_callers_who_leave_soon_do_not(breaker: Breaker, clock: Clock) -> None:
    for _ in range(10):
        attempt = breaker.begin()
        clock.now += POLICY.min_silence_seconds / 2
        breaker.abandoned(attempt, "left")
    assert breaker.health is EndpointHealth.HEALTHY


def test_silence_is_no_fault_while_others_are_answered_there(breaker: Breaker, clock: Clock) -> None:
    other = breaker.begin()
    for _ in range(10):
        attempt = breaker.begin()
        clock.now += POLICY.min_silence_seconds
        breaker.saw_step(other)
        breaker.abandoned(attempt, "left")
    assert breaker.health is EndpointHealth.HEALTHY


def test_a_trial_that_is_left_after_a_long_silence_has_failed(breaker: Breaker, clock: Clock) -> None:
    eject(breaker)
    put_on_trial(breaker, clock)
    attempt = breaker.begin()
    clock.now += POLICY.min_silence_seconds
    breaker.abandoned(attempt, "left")
    assert breaker.health is EndpointHealth.EJECTED


def test_retries_run_out_and_whole_answers_earn_new_ones() -> None:
    budget = RetryBudget(EndpointPolicy(retry_reserve=2, retries_per_success=0.5))
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


def test_the_reserve_of_retries_is_bounded() -> None:
    budget = RetryBudget(EndpointPolicy(retry_reserve=2, retries_per_success=1))
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("probe_period_seconds", 0.0),
        ("probe_timeout_seconds", float("inf")),
        ("max_failures", 0),
        ("min_backoff_seconds", -1.0),
        ("max_backoff_seconds", 0.5),
        ("backoff_jitter", 1.5),
        ("min_silence_seconds", float("nan")),
        ("max_attempts", 0),
        ("retry_reserve", -1),
        ("retries_per_success", -0.1),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_its_settings_name(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting} is {value}; it must be"):
        EndpointPolicy(**{setting: value})  # type: ignore[arg-type]
