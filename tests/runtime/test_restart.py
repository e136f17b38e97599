"""Restart policies decide by what they are told of time and chance, and by nothing else."""

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from streamactors.config import Restart
from streamactors.runtime.restart import RestartPolicy

SECOND = dt.timedelta(seconds=1)
CHANCE = st.floats(0, 1, exclude_max=True)
GAPS = st.lists(st.integers(0, 200), max_size=40)


def test_none_gives_up_at_once() -> None:
    assert RestartPolicy.of(Restart.none()).delay_after_failure(0.0, 0.5) is None


@given(st.integers(1, 20))
def test_fixed_restarts_exactly_as_often_as_it_says(attempts: int) -> None:
    policy = RestartPolicy.of(Restart.fixed(3 * SECOND, attempts))
    delays = [policy.delay_after_failure(float(at), 0.5) for at in range(attempts + 2)]
    assert delays == [3.0] * attempts + [None, None]


def test_exponential_doubles_up_to_its_maximum() -> None:
    policy = RestartPolicy.of(Restart.exponential(SECOND, 10 * SECOND, jitter=0))
    assert [policy.delay_after_failure(0.0, 0.9) for _ in range(6)] == [1, 2, 4, 8, 10, 10]


@given(CHANCE, st.floats(0, 1))
def test_jitter_stays_within_its_share_and_under_the_maximum(random: float, jitter: float) -> None:
    policy = RestartPolicy.of(Restart.exponential(SECOND, 8 * SECOND, jitter=jitter))
    for unjittered in (1.0, 2.0, 4.0, 8.0, 8.0):
        delay = policy.delay_after_failure(0.0, random)
        assert delay is not None
        assert max(0.0, unjittered * (1 - jitter)) - 1e-9 <= delay <= min(8.0, unjittered * (1 + jitter)) + 1e-9


def test_jitter_spreads_by_the_chance_that_is_passed_in() -> None:
    def delay(random: float) -> float | None:
        return RestartPolicy.of(Restart.exponential(SECOND, 8 * SECOND, jitter=0.5)).delay_after_failure(0.0, random)

    assert [delay(0.0), delay(0.5), delay(0.75)] == [0.5, 1.0, 1.25]


def test_exponential_begins_again_after_an_attempt_that_ran_long_enough() -> None:
    policy = RestartPolicy.of(Restart.exponential(SECOND, 60 * SECOND, jitter=0, reset_after=100 * SECOND))
    assert policy.delay_after_failure(0.0, 0.5) == 1
    assert policy.delay_after_failure(1.0, 0.5) == 2  # the attempt began at 1.0 and failed at once
    assert policy.delay_after_failure(3.0 + 99.9, 0.5) == 4
    began = 3.0 + 99.9 + 4
    assert policy.delay_after_failure(began + 100, 0.5) == 1


def test_the_wait_itself_does_not_count_as_running() -> None:
    policy = RestartPolicy.of(Restart.exponential(50 * SECOND, 400 * SECOND, jitter=0, reset_after=60 * SECOND))
    policy.delay_after_failure(0.0, 0.5)
    assert policy.delay_after_failure(70.0, 0.5) == 100  # 70 s since the failure, 20 s of them running


@given(GAPS, st.integers(1, 5), st.integers(1, 300))
def test_failure_rate_gives_up_exactly_when_too_many_fall_into_one_window(
    gaps: list[int], failures: int, per: int
) -> None:
    policy = RestartPolicy.of(Restart.failure_rate(failures, per * SECOND, 2 * SECOND))
    now, failed_at = 0, []
    for gap in gaps:
        now += gap
        failed_at.append(now)
        within = [at for at in failed_at if now - at < per]
        assert policy.delay_after_failure(float(now), 0.5) == (2.0 if len(within) <= failures else None)


@given(st.lists(st.tuples(st.integers(0, 10_000), CHANCE), max_size=30))
def test_the_same_failures_give_the_same_delays(failures: list[tuple[int, float]]) -> None:
    def delays() -> list[float | None]:
        policy, now, given = RestartPolicy.of(Restart.exponential()), 0.0, []
        for gap, random in failures:
            now += gap
            given.append(policy.delay_after_failure(now, random))
        return given

    assert delays() == delays()
