"""The pool of transactional ids, over all interleavings: none too early, never too few."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka.transactions import BROKER_MAXIMUM_MS, IdPool, Prepared, Session, slots_for, timeout_ms
from streamactors.errors import InvalidConfig


class Job:
    """A sink's life around its pool: checkpoints begin, complete in order or are aborted; a crash restores the last
    that completed. Every checkpoint that may be restored keeps the sessions that it lists."""

    def __init__(self, max_concurrent: int, tolerable_failures: int) -> None:
        self.max_concurrent = max_concurrent
        self.tolerable_failures = tolerable_failures
        self.checkpoint = 0
        self.completed: set[int] = set()
        self.last_completed = 0
        self.begin_attempt()

    def begin_attempt(self) -> None:
        self.pool = IdPool(slots_for(self.max_concurrent, self.tolerable_failures))
        for slot in self.completed:
            self.pool.occupy(slot)
        self.open: int | None = None
        self.listed: list[tuple[int, int]] = []
        self.in_flight: dict[int, set[int]] = {}
        self.failures = 0

    def run(self, *steps: str) -> None:
        for step in steps:
            getattr(self, step)()

    def write(self) -> None:
        if self.open is None:
            self.open = self.pool.take()
            assert self.open is not None, "ran out"
            assert self.open not in self.completed, "the last completed checkpoint still names its session"
            for state in self.in_flight.values():
                assert self.open not in state

    def prepare(self) -> None:
        if len(self.in_flight) < self.max_concurrent:
            self.checkpoint += 1
            if self.open is not None:
                self.listed.append((self.checkpoint, self.open))
                self.open = None
            state = {slot for _, slot in self.listed}
            self.pool.listed(state, self.checkpoint)
            self.in_flight[self.checkpoint] = state

    def complete(self) -> None:
        if self.in_flight:
            oldest = min(self.in_flight)
            self.completed = self.in_flight.pop(oldest)
            self.listed = [each for each in self.listed if each[0] > oldest]
            self.pool.completed(oldest)
            self.last_completed = oldest
            self.failures = 0

    def abort(self) -> None:
        if self.in_flight and self.failures < self.tolerable_failures:
            del self.in_flight[min(self.in_flight)]
            self.failures += 1

    def complete_again(self) -> None:
        """Told once more of what had completed, be it before a crash."""
        self.pool.completed(self.last_completed)


STEPS = st.sampled_from(["write", "prepare", "complete", "abort", "begin_attempt", "complete_again"])


@given(st.integers(1, 3), st.integers(0, 3), st.lists(STEPS, max_size=120))
@settings(max_examples=500, deadline=None)
def test_ids_come_back_in_time_and_not_before(max_concurrent: int, tolerable: int, steps: list[str]) -> None:
    job = Job(max_concurrent, tolerable)
    job.run(*steps)


def test_as_many_as_the_worst_run_needs() -> None:
    """Failures as often as tolerated, twice over, with records in between."""
    for max_concurrent in (1, 2, 3):
        for tolerable in range(5):
            job = Job(max_concurrent, tolerable)
            for _ in range(6):
                for _ in range(tolerable):
                    job.run("write", "prepare", "write", "abort")
                for _ in range(max_concurrent):
                    job.run("write", "prepare", "write")
                job.run("complete")
            assert job.pool.free >= 1


def test_the_default_is_four() -> None:
    assert slots_for(1, 0) == 6


def test_a_restored_id_waits_for_a_checkpoint_of_this_attempt() -> None:
    pool = IdPool(2)
    pool.occupy(0)
    pool.completed(99)
    assert pool.free == 1
    pool.listed([], 100)
    pool.completed(99)
    assert pool.free == 1
    pool.completed(100)
    assert pool.free == 2


def test_ids_are_used_in_turn() -> None:
    pool = IdPool(3)
    assert pool.take() == 0
    pool.listed([0], 1)
    pool.completed(1)
    pool.listed([], 2)
    pool.completed(2)
    assert [pool.take(), pool.take(), pool.take(), pool.take()] == [1, 2, 0, None]


def test_what_is_stored_comes_back() -> None:
    prepared = Prepared(Session("flow-out-0-1", 7, 3), 12, 0, 4, (("out", 0, 5, 9), ("out", 1, 0, 0)))
    assert Prepared.from_state(prepared.to_state()) == prepared


@pytest.mark.parametrize(
    ("given", "checkpoint_timeout", "expected"),
    [(None, 60.0, 420_000), (None, 600.0, BROKER_MAXIMUM_MS), (5_000, 1.0, 5_000), (3_600_000, 1_800.0, 3_600_000)],
)
def test_the_time_out_outlives_a_checkpoint(given: int | None, checkpoint_timeout: float, expected: int) -> None:
    assert timeout_ms(given, checkpoint_timeout) == expected


@pytest.mark.parametrize(("given", "checkpoint_timeout"), [(None, 900.0), (60_000, 60.0)])
def test_a_time_out_that_does_not_is_refused(given: int | None, checkpoint_timeout: float) -> None:
    with pytest.raises(InvalidConfig, match="does not exceed the checkpoint time-out"):
        timeout_ms(given, checkpoint_timeout)


def test_two_savepoints_each_followed_by_its_checkpoint_need_no_more_ids_than_there_are() -> None:
    """Default settings. Records flow all the time, so a transaction is open after every barrier."""
    pool = IdPool(slots_for(1, 0))
    prepared: list[int] = []
    for number, commits in enumerate([True, False, True, False, True], start=1):  # False: a savepoint
        slot = pool.take()
        assert slot is not None, f"before {number}: TransactionsExhausted"
        prepared.append(slot)
        pool.listed(prepared, number)
        opened = pool.take()  # records behind the barrier, before the checkpoint is complete
        assert opened is not None, f"TransactionsExhausted while {number} is in flight"
        pool._free.insert(0, opened)  # it is the same one that the next barrier prepares
        if commits:
            prepared.clear()
            pool.completed(number)
