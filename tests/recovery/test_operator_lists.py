"""List state without a key in whole jobs: over crashes and rescales, every item is where it belongs, once."""

import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.manifest import OPERATOR_LISTS, Manifest
from streamactors.checkpoint.restorable import list_checkpoints
from tests.recovery.flows import config, dropped, flip_byte, until
from tests.runtime.feeds import Feed

pytestmark = pytest.mark.slow


class Reading(msgspec.Struct):
    number: int
    notes: list[str] = []


class Operators:
    """The live operators of the latest attempt by subtask, and what each had found when it opened."""

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.held: dict[int, list[int]] = {}
        self.known: dict[int, list[str]] = {}
        self.closed: list[int] = []

    def opened(self, ctx: sa.OperatorContext, operator: Any) -> None:
        self.live[ctx.subtask] = operator
        self.held[ctx.subtask] = numbers(operator)
        self.known[ctx.subtask] = list(operator.known)

    def now(self) -> list[list[int]]:
        """What each has."""
        return [numbers(operator) for _, operator in sorted(self.live.items())]


def numbers(operator: Any) -> list[int]:
    return [reading.number for reading in operator.held]


def holding(base: Any, operators: Operators) -> Any:
    class Holding(base):  # type: ignore[misc]
        """Keeps every reading, and the names of all subtasks."""

        held = sa.OperatorListState(Reading)
        known = sa.UnionListState(str)

        def open(self, ctx: sa.OperatorContext, /) -> None:
            operators.opened(ctx, self)
            self.known.clear()
            self.known.append(f"{ctx.subtask} of {ctx.parallelism}")

        def process(self, value: int, ctx: sa.Context[Any, int], /) -> None:
            self.held.append(Reading(value))
            ctx.emit(value)

        def close(self) -> None:
            operators.closed.append(len(self.held))

    return Holding


def flow_of(feed: Feed, operator: Any, sink: Any, parallelism: int, *, keyed: bool = False) -> sa.Dataflow:
    flow = sa.Dataflow("lists")
    values: Any = flow.source("numbers", feed, parallelism=1)
    spread = values.key_by(lambda value: value % 17) if keyed else values.rebalance()
    spread.process("hold", operator, parallelism=parallelism).sink("out", sink)
    return flow


def entries(job: sa.JobHandle, state: str) -> list[int]:
    """How many items each subtask has."""
    subtasks = [subtask["nodes"] for subtask in job.metrics()["subtasks"].values()]
    return [nodes["hold"]["entries"][state] for nodes in subtasks if "hold" in nodes]


async def latest(storage: Path) -> Manifest:
    (found, *_) = await list_checkpoints(str(storage))
    assert found.manifest is not None
    return found.manifest


# ------------------------------------------------------------------------------------------------------------- rescales
@pytest.mark.parametrize("rescales", [[1, 3], [3, 1], [2, 2], [4, 3, 5]], ids=str)
@pytest.mark.parametrize("base", [sa.Operator, sa.KeyedOperator])
async def test_are_dealt_out_and_united(tmp_path: Path, rescales: list[int], base: Any) -> None:
    feed, before = Feed(), Operators()
    stored: list[list[int]] = []
    for round, parallelism in enumerate(rescales):
        operators = Operators()
        flow = flow_of(feed, holding(base, operators), ListSink[int](), parallelism, keyed=base is sa.KeyedOperator)
        async with dropped(flow, config(tmp_path / "storage")) as job:
            await until(lambda job=job: job.status == "running")  # type: ignore[misc]
            found = [operators.held[subtask] for subtask in range(parallelism)]
            assert [item for own in found for item in own] == [item for own in stored for item in own]
            if len(stored) == parallelism:
                assert found == stored
            else:
                assert max(map(len, found)) - min(map(len, found)) <= 1
            names = [f"{subtask} of {len(before.live)}" for subtask in sorted(before.live)]
            assert operators.known == dict.fromkeys(range(parallelism), names)
            feed.put(*range(round * 100, round * 100 + 50))
            await until(lambda job=job, round=round: sum(entries(job, "held")) == 50 * (round + 1))  # type: ignore[misc]
            assert entries(job, "known") == [1] * parallelism
            await job.checkpoint()
            stored, before = operators.now(), operators
            feed.put(-1)  # which that checkpoint does not hold
            await until(lambda ops=operators: any(-1 in own for own in ops.now()))  # type: ignore[misc]
        feed.values[0].pop()
        assert sum(operators.closed) == sum(map(len, stored)) + 1, "close can still read them"
        assert OPERATOR_LISTS in (await latest(tmp_path / "storage")).requires
    assert sorted(item for own in stored for item in own) == sorted(feed.values[0])


class Batching(sa.Operator[int, list[int]]):
    """The textbook use: a buffer that is sent on when it is full."""

    buffer = sa.OperatorListState(int)

    async def process(self, value: int, ctx: sa.Context[None, list[int]], /) -> None:
        self.buffer.append(value)
        if len(self.buffer) >= 7:
            ctx.emit(list(self.buffer))
            self.buffer.clear()


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
async def test_nothing_of_a_buffer_is_lost_or_doubled_by_crashes_and_rescales(tmp_path: Path, alignment: Any) -> None:
    feed, sink = Feed(chunk=8), ListSink[list[int]]()
    once = sa.Restart.fixed(dt.timedelta(0), 5)
    for round, parallelism in enumerate([2, 5, 1, 3]):
        flow = flow_of(feed, Batching, sink, parallelism)
        settings = config(tmp_path / "storage", alignment=alignment, restart=once)
        async with dropped(flow, settings) as job:
            for part in range(4):
                feed.put(*range(round * 200 + part * 50, round * 200 + part * 50 + 50))
                await job.checkpoint()  # in the middle of them, more or less
                if part == 2:
                    feed.fail(OSError("connection lost"))
                    await until(lambda job=job: job.metrics()["restarts"] == 1)  # type: ignore[misc]
    operators = Operators()
    feed.end()
    await sa.run(flow_of(feed, Batching, sink, 2), config(tmp_path / "storage"))

    class Rest(Batching):
        def open(self, ctx: sa.OperatorContext, /) -> None:
            operators.held[ctx.subtask] = list(self.buffer)

    await sa.run(flow_of(feed, Rest, sink, 4), config(tmp_path / "storage"))
    seen = Counter(value for batch in sink.values for value in batch)
    seen.update(value for rest in operators.held.values() for value in rest)
    assert seen == Counter(range(800))


# ------------------------------------------------------------------------------------------------ what is refused
async def checkpointed(tmp_path: Path, operator: Any) -> None:
    feed = Feed()
    feed.put(*range(10))
    feed.end()
    await sa.run(flow_of(feed, operator, ListSink[Any](), 2), config(tmp_path))


class HeldAsText(sa.Operator[int, int]):
    held = sa.OperatorListState(str)
    known = sa.UnionListState(str)

    def process(self, value: int, ctx: sa.Context[None, int], /) -> None: ...


class HeldByAll(HeldAsText):
    held = sa.UnionListState(Reading)  # type: ignore[assignment]


class NotHeld(HeldAsText):
    held = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("operator", "problem"),
    [
        (HeldAsText, "stored as Reading, now str"),
        (HeldByAll, "stored as operator list state, now union list state"),
        (NotHeld, "stored in the checkpoint, but no longer declared"),
    ],
)
async def test_another_declaration(tmp_path: Path, operator: Any, problem: str) -> None:
    await checkpointed(tmp_path, holding(sa.Operator, Operators()))
    with pytest.raises(sa.IncompatibleState, match=f"operator 'hold', state 'held': {problem}"):
        await checkpointed(tmp_path, operator)


async def test_a_state_that_is_gone_can_be_given_up(tmp_path: Path) -> None:
    await checkpointed(tmp_path, holding(sa.Operator, Operators()))
    feed = Feed()
    feed.end()
    await sa.run(flow_of(feed, NotHeld, ListSink[Any](), 3), config(tmp_path), drop_state=["hold"])


async def test_damage_is_found(tmp_path: Path) -> None:
    await checkpointed(tmp_path, holding(sa.Operator, Operators()))
    lists = next(node.lists for _, node in (await latest(tmp_path)).nodes("hold") if node.lists is not None)
    flip_byte(tmp_path / "lists" / lists.file.path, lists.file.start + lists.blocks[0].length // 2)
    with pytest.raises(sa.CorruptCheckpoint, match=f"{lists.file.path} is altered"):
        await checkpointed(tmp_path, holding(sa.Operator, Operators()))


async def test_a_query_is_told_that_there_is_no_key(tmp_path: Path) -> None:
    flow = flow_of(Feed(), holding(sa.Operator, Operators()), ListSink[Any](), 2)
    async with dropped(flow, config(tmp_path)) as job:
        with pytest.raises(sa.StateAccessError, match="operator 'hold': state 'held' belongs to no key"):
            await job.query("hold", "held", "a")


async def test_an_item_that_does_not_fit_fails_the_job_at_its_checkpoint_by_name(tmp_path: Path) -> None:
    class Misfit(sa.Operator[int, int]):
        held = sa.OperatorListState(Reading)

        def process(self, value: int, ctx: sa.Context[None, int], /) -> None:
            self.held.append(Reading("one"))  # type: ignore[arg-type]

    with pytest.raises(sa.JobFailed) as failed:
        await checkpointed(tmp_path, Misfit)
    assert "operator 'hold', state 'held', item 0" in str(failed.value.__cause__)
