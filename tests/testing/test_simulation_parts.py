"""The parts of the simulated world: the loop, the clock, the disk, the broker, the lotteries."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from streamactors.errors import Crashed
from streamactors.testing.simulation.broker import FENCED, INVALID_STATE, OK, UNKNOWN_ID, Broker, Session
from streamactors.testing.simulation.chance import Lottery, stream
from streamactors.testing.simulation.clock import SimulatedClock
from streamactors.testing.simulation.disk import File, Folder, VolatileDisk
from streamactors.testing.simulation.loop import Order, SimulationLoop, VirtualTime
from streamactors.testing.simulation.sink import SlotPool
from streamactors.testing.simulation.trace import Trace

MakeLoop = Callable[..., SimulationLoop]


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    made: list[SimulationLoop] = []

    def make(seed: int = 0, order: Order = "uniform", trace: Trace | None = None) -> SimulationLoop:
        time = VirtualTime(stream(seed, "time"), 0.0, 0.0001)
        made.append(SimulationLoop(stream(seed, "schedule"), trace or Trace(), time, order=order))
        return made[-1]

    yield make
    for loop in made:
        loop.bury()


def clock_of(loop: SimulationLoop) -> SimulatedClock:
    return SimulatedClock(loop._time, stream(0, "clock"))


# ----------------------------------------------------------------------------------------------------------------- loop
async def interleaved(order: list[int], tasks: int = 4, steps: int = 4) -> None:
    async def work(number: int) -> None:
        for _ in range(steps):
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(tasks)))


def order_of(make_loop: MakeLoop, seed: int, order: Order = "uniform") -> list[int]:
    found: list[int] = []
    make_loop(seed, order).run_until_complete(interleaved(found))
    return found


def test_the_seed_decides_what_runs_next(make_loop: MakeLoop) -> None:
    assert order_of(make_loop, 1) == order_of(make_loop, 1)
    assert len({tuple(order_of(make_loop, seed)) for seed in range(10)}) > 5
    assert order_of(make_loop, 1, "fifo") == [0, 1, 2, 3] * 4


def test_first_steps_and_callbacks_keep_their_order(make_loop: MakeLoop) -> None:
    """asyncio promises that, and programs rely on it."""
    for seed in range(20):
        assert order_of(make_loop, seed)[:1] == [0]
        found: list[str] = []

        async def main(found: list[str] = found) -> None:
            loop = asyncio.get_running_loop()
            for name in "abc":
                loop.call_soon(found.append, name)
            for _ in range(10):
                await asyncio.sleep(0)

        make_loop(seed).run_until_complete(main())
        assert found == ["a", "b", "c"]


@pytest.mark.parametrize("order", ["uniform", "priorities", "fifo"])
def test_nobody_is_starved_for_ever(make_loop: MakeLoop, order: Order) -> None:
    async def main() -> int:
        turns = 0
        done = asyncio.create_task(interleaved([], 1, 20))
        while not done.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert all(make_loop(seed, order).run_until_complete(main()) < 5000 for seed in range(20))


def test_time_jumps_when_nothing_is_ready(make_loop: MakeLoop) -> None:
    loop = make_loop()

    async def main() -> None:
        async with asyncio.timeout(7200):
            await asyncio.sleep(3600)

    loop.run_until_complete(main())
    assert 3600 <= loop.time() < 3601
    assert loop.steps < 50


def test_a_timer_that_is_cancelled_never_fires(make_loop: MakeLoop) -> None:
    async def main() -> list[str]:
        fired: list[str] = []
        asyncio.get_running_loop().call_later(1, fired.append, "cancelled").cancel()
        asyncio.get_running_loop().call_later(2, fired.append, "kept")
        await asyncio.sleep(3)
        return fired

    assert make_loop().run_until_complete(main()) == ["kept"]


def test_a_loop_with_nothing_to_wait_for_is_stuck(make_loop: MakeLoop) -> None:
    loop = make_loop()
    loop.create_task(asyncio.Event().wait())
    loop.run_forever()
    assert loop.stuck and len(loop.unfinished()) == 1


def test_sets_of_tasks_have_an_order_of_their_own(make_loop: MakeLoop) -> None:
    async def main() -> list[str]:
        ended: list[str] = []

        async def wait(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        tasks = {asyncio.create_task(wait(str(number))) for number in range(50)}
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return ended

    first, second = (make_loop(3, "fifo").run_until_complete(main()) for _ in range(2))
    assert first == second and len(first) == 50


def test_the_end_of_a_crashed_process_reaches_nobody(make_loop: MakeLoop) -> None:
    """Coroutines unwind when they are dropped; whatever they wait for on the way raises Crashed."""
    loop = make_loop()
    reached: list[str] = []
    caught: list[BaseException] = []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            caught.append(error)
            await asyncio.sleep(1)
            reached.append("slept")

    async def starts_another() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.create_task(noted())
            reached.append("waited")

    async def noted() -> None:
        reached.append("another")

    async def crash() -> None:
        await asyncio.sleep(1)
        loop.stop()

    for work in (stubborn(), starts_another(), crash()):
        loop.create_task(work)
    loop.run_forever()
    loop.bury()
    assert reached == [] and [type(error) for error in caught] == [Crashed]
    assert loop.unfinished() == [] and loop.complaints == []


def test_the_trace_tells_runs_apart(make_loop: MakeLoop) -> None:
    hashes = []
    for seed in (1, 1, 2):
        trace = Trace()
        make_loop(seed, trace=trace).run_until_complete(interleaved([]))
        hashes.append(trace.hash)
    assert hashes[0] == hashes[1] != hashes[2]


# ---------------------------------------------------------------------------------------------------------------- clock
def test_blocking_work_goes_on_when_whoever_waits_is_cancelled(make_loop: MakeLoop) -> None:
    loop = make_loop()
    clock = clock_of(loop)
    done: list[int] = []

    async def main() -> None:
        waiting = asyncio.create_task(clock.run_blocking(done.append, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled() and done == []
        await clock.sleep(1)

    loop.run_until_complete(main())
    assert done == [1]


def test_blocking_work_hands_back_results_and_errors(make_loop: MakeLoop) -> None:
    loop = make_loop()
    clock = clock_of(loop)

    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await clock.run_blocking(divmod, 1, 0)
        return await clock.run_blocking(max, 1, 2)

    assert loop.run_until_complete(main()) == 2
    assert clock.token() != clock.token() and 0 <= clock.random() < 1
    assert clock.time_ms() >= 1_700_000_000_000 and clock.monotonic() < clock.monotonic()


# ----------------------------------------------------------------------------------------------------------------- disk
def on_disk(make_loop: MakeLoop, work: Callable[[VolatileDisk], Coroutine[Any, Any, None]], root: Folder) -> None:
    make_loop().run_until_complete(work(VolatileDisk(root)))


async def write(disk: VolatileDisk, path: str, data: bytes, *, sync: bool) -> None:
    file = disk.file(path)
    await file.open()
    await file.write(data)
    if sync:
        await file.sync()
    await file.close()


def test_a_power_loss_keeps_what_was_made_durable_and_part_of_the_rest(make_loop: MakeLoop) -> None:
    kept, torn, unnamed = set(), set(), set()
    for seed in range(40):
        root = Folder()

        async def work(disk: VolatileDisk) -> None:
            await write(disk, "/kept", b"kept", sync=True)
            await write(disk, "/torn", b"torn", sync=False)
            await disk.sync_folder("/")
            await write(disk, "/unnamed", b"bytes are durable, the name is not", sync=True)

        on_disk(make_loop, work, root)
        root.lose(random.Random(seed))
        files = {name: bytes(node.content) for name, node in root.names.items() if isinstance(node, File)}
        kept.add(files["kept"])
        torn.add(files["torn"])
        unnamed.add(files.get("unnamed"))
    assert kept == {b"kept"}
    assert {b"", b"torn"} <= torn and len(torn) > 2
    assert unnamed == {None, b"bytes are durable, the name is not"}


def test_what_the_disk_refuses_it_refuses_like_a_real_one(make_loop: MakeLoop) -> None:
    async def work(disk: VolatileDisk) -> None:
        await disk.make_folder("/a")
        await write(disk, "/a/file", b"x", sync=False)
        for wrong in (
            disk.link("/a/none", "/a/new"),
            disk.rename("/a/none", "/a/new"),
            disk.unlink("/a/none"),
            disk.read("/a/none", [(0, -1)]),
            disk.scan("/none"),
        ):
            with pytest.raises(FileNotFoundError):
                await wrong
        with pytest.raises(FileExistsError):
            await disk.make_folder("/a")
        with pytest.raises(OSError, match="not empty"):
            await disk.remove_folder("/a")

    on_disk(make_loop, work, Folder())


# --------------------------------------------------------------------------------------------------------------- broker
def test_a_prepared_session_is_committed_by_whoever_holds_it() -> None:
    broker = Broker()
    session = broker.init_producer("id", 60, now=0)
    assert broker.append("out", [1, 2], session, now=1) == OK
    assert broker.read_committed("out") == [] and broker.undecided("out") == [1, 2]
    assert broker.end(Session(*session), commit=True, now=2) == OK
    assert broker.end(session, commit=True, now=3) == OK, "a second time is no error"
    assert broker.read_committed("out") == [1, 2]


def test_a_session_names_no_transaction() -> None:
    """The trap: a late commit of the first commits the second."""
    broker = Broker()
    session = broker.init_producer("id", 60, now=0)
    broker.append("out", [1], session, now=0)
    broker.end(session, commit=True, now=0)
    broker.append("out", [2], session, now=0)
    assert broker.end(session, commit=True, now=0) == OK
    assert broker.read_committed("out") == [1, 2]


def test_the_broker_refuses_by_code() -> None:
    broker = Broker()
    old = broker.init_producer("id", 60, now=0)
    assert broker.end(old, commit=True, now=0) == INVALID_STATE, "nothing is open"
    broker.append("out", [1], old, now=0)
    new = broker.init_producer("id", 60, now=0)
    assert broker.undecided("out") == [], "beginning anew aborts"
    assert broker.append("out", [2], old, now=0) == FENCED
    assert broker.end(old, commit=True, now=0) == FENCED
    assert broker.end(Session("other", 1, 0), commit=True, now=0) == UNKNOWN_ID
    broker.append("out", [3], new, now=0)
    assert broker.end(new, commit=False, now=0) == OK
    assert broker.end(new, commit=True, now=0) == INVALID_STATE, "it was aborted"
    assert broker.read_committed("out") == []


def test_a_transaction_that_is_open_for_too_long_is_aborted() -> None:
    broker = Broker()
    session = broker.init_producer("id", 60, now=0)
    broker.append("out", [1], session, now=0)
    assert broker.append("out", [2], session, now=60) == OK
    assert broker.end(session, commit=True, now=61) == FENCED
    assert broker.read_committed("out") == [] and broker.undecided("out") == []


def test_an_id_is_free_again_once_a_later_checkpoint_does_not_list_it() -> None:
    pool = SlotPool(3)
    taken = [pool.take(), pool.take(), pool.take()]
    assert taken == [0, 1, 2] and pool.take() is None
    pool.listed([0], 1)
    pool.listed([0, 1], 2)
    pool.completed(2)
    assert pool.take() is None, "the state of 2 lists it"
    pool.listed([1], 3)
    pool.completed(3)
    assert pool.take() == 0 and pool.take() is None


# -------------------------------------------------------------------------------------------------------------- chances
def test_a_lottery_strikes_no_more_than_it_may_and_not_always_at_once() -> None:
    moments: list[list[int]] = []
    for seed in range(200):
        lottery = Lottery(stream(seed, "lottery"), 3, 100)
        moments.append([moment for moment in range(1000) if lottery.strikes()])
    counts = {len(struck) for struck in moments}
    assert counts == {0, 1, 2, 3}
    first = [struck[0] for struck in moments if struck]
    assert min(first) < 3 and max(first) > 80
