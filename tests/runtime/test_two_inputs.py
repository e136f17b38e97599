"""Whole jobs with two inputs, undisturbed: hooks, time, ends, drains, fairness and errors on both sides."""

import asyncio
from collections import defaultdict
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.runtime.feeds import PATIENCE, Feed, Gate, until

KEYS = 5
LATE = sa.OutputTag("late", int)
DEAD = sa.OutputTag("dead", sa.DeadLetter)


def key(value: int) -> int:
    return value % KEYS


class Ledger(sa.KeyedCoOperator[int, int, int, tuple[str, int, int, int]]):
    """Counts of both sides, per key, with each record."""

    left = sa.ValueState(int, default=0)
    right = sa.ListState(int)

    def process_left(self, value: int, ctx: sa.Context[int, tuple[str, int, int, int]]) -> None:
        self.left.set(self.left.get() + 1)
        ctx.emit(("left", value, self.left.get(), len(self.right)))

    async def process_right(self, value: int, ctx: sa.Context[int, tuple[str, int, int, int]]) -> None:
        self.right.append(value)
        assert ctx.key == key(value)
        ctx.emit(("right", value, self.left.get(), len(self.right)))


async def run(flow: sa.Dataflow, **options: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(**options))


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("how", ["keyed after", "keyed before", "with itself"])
async def test_records_of_both_sides_meet_by_key(how: str, parallelism: int) -> None:
    flow, sink = sa.Dataflow("ledger"), ListSink[Any]()
    left = flow.source("left", ListSource(list(range(500))), parallelism=1)
    right = left if how == "with itself" else flow.source("right", ListSource(list(range(500))), parallelism=1)
    both = (
        left.key_by(key).connect(right.key_by(key)) if how == "keyed before" else left.connect(right).key_by(key, key)
    )
    both.process("ledger", Ledger).sink("out", sink)
    await run(flow, parallelism=parallelism)
    for side, place in (("left", 2), ("right", 3)):
        found = defaultdict(list)
        for record in sink.values:
            if record[0] == side:
                found[key(record[1])].append((record[1], record[place]))
        assert found == {
            number: [(value, count) for count, value in enumerate(range(number, 500, KEYS), 1)]
            for number in range(KEYS)
        }
    last = {key(record[1]): record[2:] for record in sink.values}
    assert set(last.values()) == {(100, 100)}


class Sides(sa.CoOperator[int, str, str]):
    def process_left(self, value: int, ctx: sa.Context[None, str]) -> None:
        ctx.emit(f"left {value}")

    def process_right(self, value: str, ctx: sa.Context[None, str]) -> None:
        ctx.emit(f"right {value}")


async def test_without_keys_over_any_exchange() -> None:
    """Rebalanced on one side, broadcast on the other, whose records each subtask gets."""
    flow, sink = sa.Dataflow("sides"), ListSink[str]()
    numbers = flow.source("numbers", ListSource(list(range(30))), parallelism=2)
    words = flow.source("words", ListSource(["a", "b"]), parallelism=1)
    numbers.rebalance().connect(words.broadcast()).process("sides", Sides, parallelism=3).sink("out", sink)
    await run(flow)
    assert sorted(sink.values) == sorted([f"left {n}" for n in range(30)] + ["right a", "right b"] * 3)


async def test_side_outputs_and_errors_of_both_sides() -> None:
    class Choosy(sa.CoOperator[int, int, int]):
        def process_left(self, value: int, ctx: sa.Context[None, int]) -> None:
            if value % 2:
                raise ValueError("odd")
            ctx.emit_to(LATE, value)

        async def process_right(self, value: int, ctx: sa.Context[None, int]) -> None:
            if value % 2:
                raise ValueError("odd on the right")
            ctx.emit(value)

    flow, out, late, dead = sa.Dataflow("choosy"), ListSink[int](), ListSink[int](), ListSink[sa.DeadLetter]()
    left, right = (flow.source(uid, ListSource([1, 2, 3, 4])) for uid in ("left", "right"))
    chosen = left.connect(right).process("choosy", Choosy, on_error=DEAD)
    chosen.sink("out", out)
    chosen.side_output(LATE).sink("late", late)
    chosen.side_output(DEAD).sink("dead", dead)
    await run(flow)
    assert (sorted(out.values), sorted(late.values)) == ([2, 4], [2, 4])
    assert sorted((letter.value, letter.error) for letter in dead.values) == [
        (1, "ValueError: odd"),
        (1, "ValueError: odd on the right"),
        (3, "ValueError: odd"),
        (3, "ValueError: odd on the right"),
    ]


# --------------------------------------------------------------------------------------------------- ends and fairness
async def test_one_side_goes_on_when_the_other_has_ended() -> None:
    feeds, sink = (Feed(), Feed()), ListSink[Any]()
    flow = sa.Dataflow("ends")
    left, right = (flow.source(f"numbers-{side}", feed) for side, feed in enumerate(feeds))
    left.connect(right).key_by(key, key).process("ledger", Ledger).sink("out", sink)
    async with sa.start(flow, sa.Config(parallelism=2)) as job:
        feeds[0].put(*range(10))
        feeds[0].end()
        await until(lambda: len(sink.values) == 10)
        for value in range(10):
            feeds[1].put(value)
            await until(lambda value=value: len(sink.values) == 11 + value)  # type: ignore[misc]
        assert job.status == "running"
        feeds[1].end()
        await job.wait()
    assert [record for record in sink.values if record[0] == "right"] == [
        ("right", value, 2, value // KEYS + 1) for value in range(10)
    ]


async def test_a_busy_side_does_not_starve_the_other() -> None:
    feeds, seen = (Feed(chunk=256), Feed()), list[str]()

    class Seen(Sides):
        def process_right(self, value: str, ctx: sa.Context[None, str]) -> None:
            seen.append(value)

    flow, sink, gate = sa.Dataflow("fair"), ListSink[str](), Gate(100, 0.001)
    busy, quiet = (flow.source(f"numbers-{side}", feed) for side, feed in enumerate(feeds))
    busy.connect(quiet).process("seen", Seen).map(gate, chain=False).sink("out", sink)
    async with sa.start(flow, sa.Config(mailbox_capacity=64), on_exit="cancel") as job:
        feeds[0].put(*range(100_000))
        await until(lambda: gate.held)
        feeds[1].put("a", "b")
        await until(lambda: len(seen) == 2)
        assert job.metrics()["subtasks"]["numbers-0[0]"]["unsent"], "there was enough to starve it"


async def test_a_broadcast_record_that_turns_into_very_many_waits_for_room() -> None:
    class Flood(sa.KeyedBroadcastOperator[int, int, int, int]):
        known = sa.BroadcastState(int, int)

        def process(self, value: int, ctx: sa.Context[int, int]) -> None:
            ctx.emit(-1 - len(self.known))

        async def process_broadcast(self, value: int, ctx: sa.Context[None, int]) -> None:
            for number in range(3000):
                ctx.emit(number)
                if number % 50 == 0:
                    await ctx.drain()
                    self.known[number] = value  # still allowed behind it

    flow, sink = sa.Dataflow("flood"), ListSink[int]()
    numbers, floods = flow.source("numbers", ListSource([1, 2])), flow.source("floods", ListSource([0]), parallelism=1)
    flooded = numbers.key_by(key).connect_broadcast(floods).process("flood", Flood, parallelism=2)
    flooded.map(lambda value: value, chain=False).sink("out", sink)
    await run(flow, mailbox_capacity=64)
    assert sorted(value for value in sink.values if value >= 0) == sorted([*range(3000)] * 2)


class Tally(msgspec.Struct):
    name: str
    updates: int = 0


async def test_every_subtask_has_a_copy_of_its_own_though_all_get_one_record() -> None:
    found: list[dict[str, Tally]] = []

    class Tallies(sa.KeyedBroadcastOperator[int, int, Tally, int]):
        tallies = sa.BroadcastState(str, Tally)

        def process(self, value: int, ctx: sa.Context[int, int]) -> None: ...

        def process_broadcast(self, tally: Tally, ctx: sa.Context[None, int]) -> None:
            known = self.tallies.get(tally.name)
            if known is not None:
                known.updates += 1
            self.tallies[tally.name] = known or tally

        def close(self) -> None:
            found.append(dict(self.tallies))

    flow = sa.Dataflow("tallies")
    numbers = flow.source("numbers", ListSource([1]))
    tallies = flow.source("tallies", ListSource([Tally(name) for name in "aab"]), parallelism=1)
    numbers.key_by(key).connect_broadcast(tallies).process("tally", Tallies, parallelism=3)
    await run(flow)
    assert found == [{"a": Tally("a", 1), "b": Tally("b", 0)}] * 3


# ----------------------------------------------------------------------------------------------------------- event time
async def test_the_watermark_is_the_lower_one() -> None:
    found = [-(2**63)]

    class Times(sa.CoOperator[int, int, int]):
        def process_left(self, value: int, ctx: sa.Context[None, int]) -> None:
            self._see(ctx)

        def process_right(self, value: int, ctx: sa.Context[None, int]) -> None:
            self._see(ctx)

        def _see(self, ctx: sa.Context[None, int]) -> None:
            found.append(ctx.watermark)

    stamped = sa.Watermarks.monotonic(lambda value: value)
    feeds = Feed(), Feed()
    flow = sa.Dataflow("times")
    left, right = (flow.source(f"numbers-{side}", feed, watermarks=stamped) for side, feed in enumerate(feeds))
    left.connect(right).process("times", Times)

    async def look(side: int, value: int) -> int:
        before = len(found)
        feeds[side].put(value)
        await until(lambda: len(found) > before)
        return found[-1]

    async def settle(side: int, value: int, time: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while await look(side, value) != time:
                pass

    async with sa.start(flow, sa.Config()) as job:
        await look(0, 100)
        await settle(1, 50, 49)
        assert max(found) == 49
        await look(0, 200)
        await settle(1, 300, 199)
        assert max(found) == 199
        await look(1, 400)
        feeds[0].end()
        await settle(1, 400, 399)
        assert found == sorted(found)
        feeds[1].end()
        await job.wait()
