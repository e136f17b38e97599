"""When which key group is swept, and what becomes of the task that does it."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Iterator

import pytest

from streamactors.actors.governor import Governor
from streamactors.clock import SystemClock
from streamactors.errors import StorageFailed
from streamactors.runtime.sweeping import Sweeper
from streamactors.state.descriptors import MapState, Ttl, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange

GROUPS = KeyGroupRange(4, 12)


class JumpingClock(SystemClock):
    """Whoever sleeps finds that the time has passed at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def random(self) -> float:
        return 0.3

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Watched(HeapBackend):
    """Notes when what is swept. `takes`: seconds for a key group."""

    takes = 0.0

    def __init__(self, clock: JumpingClock) -> None:
        super().__init__(GROUPS, 16, clock=clock)
        self.time = clock
        self.swept: list[tuple[float, str, int]] = []
        self.enough = asyncio.Event()

    async def sweep(self, name: str, group: int, turn: Callable[[], Awaitable[None]]) -> None:
        await super().sweep(name, group, turn)
        self.time.now += self.takes
        self.swept.append((self.time.now, name, group))
        if len(self.swept) >= 64:
            self.enough.set()
            await asyncio.Event().wait()


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
async def swept(failures: list[Exception]) -> Callable[..., Awaitable[Watched]]:
    async def run(*lifetimes: dt.timedelta, takes: float = 0.0) -> Watched:
        clock = JumpingClock()
        backend = Watched(clock)
        backend.takes = takes
        for number, lifetime in enumerate(lifetimes):
            backend.bind(f"s{number}", ValueState(int, ttl=Ttl(lifetime)))
        backend.bind("lasting", MapState(int, int))
        sweeper = Sweeper([backend], clock, Governor.of_running_loop(), failures.append)
        sweeper.start("test")
        await asyncio.wait_for(backend.enough.wait(), 60)
        await sweeper.close()
        return backend

    return run


def rounds(backend: Watched, state: str) -> Iterator[list[tuple[float, int]]]:
    mine = [(time, group) for time, name, group in backend.swept if name == state]
    return (mine[at : at + len(GROUPS)] for at in range(0, len(mine) - len(GROUPS) + 1, len(GROUPS)))


async def test_every_group_comes_once_in_a_lifetime(
    swept: Callable[..., Awaitable[Watched]], failures: list[Exception]
) -> None:
    backend = await swept(dt.timedelta(seconds=8), dt.timedelta(seconds=80))
    assert len(list(rounds(backend, "s0"))) >= 6
    for number, each in enumerate(rounds(backend, "s0")):
        assert sorted(group for _, group in each) == list(GROUPS)
        assert each[-1][0] == pytest.approx(8 * (number + 1))
    assert {name for _, name, _ in backend.swept} == {"s0", "s1"}
    assert backend.swept[0][2] == GROUPS.start + 2  # not always the first
    assert failures == []


async def test_a_short_lifetime_wakes_it_up_ten_times_a_second_at_most(
    swept: Callable[..., Awaitable[Watched]],
) -> None:
    backend = await swept(dt.timedelta(milliseconds=200))
    times = sorted({round(time, 6) for time, _, _ in backend.swept})
    assert times[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [group for _, group in next(rounds(backend, "s0"))] == [6, 7, 8, 9, 10, 11, 4, 5]


async def test_a_long_lifetime_comes_around_in_an_hour(swept: Callable[..., Awaitable[Watched]]) -> None:
    backend = await swept(dt.timedelta(days=30))
    assert next(rounds(backend, "s0"))[-1][0] == pytest.approx(3600)


async def test_it_takes_half_of_the_time_at_most(swept: Callable[..., Awaitable[Watched]]) -> None:
    backend = await swept(dt.timedelta(seconds=8), takes=5.0)
    assert backend.swept[-1][0] == pytest.approx(64 * 10, abs=10)


async def test_nothing_runs_where_nothing_expires() -> None:
    clock = JumpingClock()
    backend = HeapBackend(GROUPS, 16, clock=clock)
    backend.bind("lasting", ValueState(int))
    before = asyncio.all_tasks()
    sweeper = Sweeper([backend], clock, Governor.of_running_loop(), lambda _: None)
    sweeper.start("test")
    assert asyncio.all_tasks() == before
    await sweeper.close()


async def test_a_failure_is_told(failures: list[Exception]) -> None:
    class Broken(HeapBackend):
        async def sweep(self, name: str, group: int, turn: Callable[[], Awaitable[None]]) -> None:
            raise StorageFailed("disk full")

    told = asyncio.Event()

    def failed(error: Exception) -> None:
        failures.append(error)
        told.set()

    clock = JumpingClock()
    backend = Broken(GROUPS, 16, clock=clock)
    backend.bind("fleeting", ValueState(int, ttl=Ttl(dt.timedelta(seconds=1))))
    sweeper = Sweeper([backend], clock, Governor.of_running_loop(), failed)
    sweeper.start("test")
    await asyncio.wait_for(told.wait(), 60)
    assert [str(error) for error in failures] == ["disk full"]
    await sweeper.close()


async def test_it_ends_by_itself_when_the_backend_is_closed(failures: list[Exception]) -> None:
    clock = JumpingClock()
    backend = HeapBackend(GROUPS, 16, clock=clock)
    backend.bind("fleeting", ValueState(int, ttl=Ttl(dt.timedelta(seconds=1))))
    before = asyncio.all_tasks()
    sweeper = Sweeper([backend], clock, Governor.of_running_loop(), failures.append)
    sweeper.start("test")
    (task,) = asyncio.all_tasks() - before
    backend.close()
    await asyncio.wait_for(task, 60)
    assert failures == []
    await sweeper.close()
