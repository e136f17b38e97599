"""Operators with two inputs over crashes and rescales: each side's records once, in order per key, on its own side."""

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink
from streamactors.checkpoint.manifest import SECOND_INPUTS, Manifest
from streamactors.checkpoint.restorable import list_checkpoints
from tests.recovery.flows import config, dropped
from tests.runtime.feeds import PATIENCE, Feed, Gate, until

pytestmark = pytest.mark.slow

KEYS = 40


class Sale(msgspec.Struct, frozen=True):
    number: int


class Refund(msgspec.Struct, frozen=True):
    number: int


def key(value: Sale | Refund) -> int:
    return value.number % KEYS


class Ledger(sa.KeyedCoOperator[int, Any, Any, tuple[str, int, int]]):
    """Knows both sides of a key. A record on the wrong side, for the second time or out of its order is an error."""

    sold = sa.ValueState(int, default=-1)
    refunded = sa.MapState(str, list[int])

    def process_left(self, value: Any, ctx: sa.Context[int, tuple[str, int, int]]) -> None:
        if not isinstance(value, Sale) or value.number <= self.sold.get():
            raise ValueError(f"{value} on the left, after {self.sold.get()}")
        self.sold.set(value.number)
        ctx.emit(("sale", value.number, value.number // KEYS))

    async def process_right(self, value: Any, ctx: sa.Context[int, tuple[str, int, int]]) -> None:
        before = self.refunded.get("all", [])
        if not isinstance(value, Refund) or value.number in before:
            raise ValueError(f"{value} on the right, after {before}")
        self.refunded["all"] = [*before, value.number]
        ctx.emit(("refund", value.number, len(before)))


class Slow(sa.Operator[Any, Any]):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(await self.gate(value))


def slowed(stream: sa.Stream[Any], gate: Gate | None) -> sa.Stream[Any]:
    """Has a uid, so that what is in flight around it is found again in another flow."""
    return stream.process("gate", lambda: Slow(gate or Gate()), chain=False)


class Shop:
    """What is read, and what must come out of it."""

    def __init__(self) -> None:
        self.sales, self.refunds = Feed(chunk=16), Feed(chunk=16)
        self.sink = ListSink[Any]()

    def flow(self, gate: Gate | None = None, *, keyed: bool = True) -> sa.Dataflow:
        flow = sa.Dataflow("shop")
        sales = flow.source("sales", self.sales, parallelism=1)
        refunds = flow.source("refunds", self.refunds, parallelism=1)
        both: Any = sales.connect(refunds)
        found = both.key_by(key, key).process("ledger", Ledger) if keyed else both.process("ledger", Passing)
        slowed(found, gate).sink("out", self.sink)
        return flow

    def put(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.sales.put(Sale(number))
            self.refunds.put(Refund(number))

    def end(self) -> None:
        self.sales.end()
        self.refunds.end()

    def check(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        assert sorted(self.sink.values) == sorted(
            (side, number, number // KEYS) for side in ("sale", "refund") for number in numbers
        )
        per_key: dict[Any, list[int]] = defaultdict(list)
        for side, number, place in self.sink.values:
            per_key[side, number % KEYS].append(place)
        assert all(places == sorted(places) for places in per_key.values())


class Passing(sa.CoOperator[Any, Any, tuple[str, int, int]]):
    def process_left(self, value: Any, ctx: sa.Context[None, tuple[str, int, int]]) -> None:
        ctx.emit(("sale" if isinstance(value, Sale) else "wrong", value.number, value.number // KEYS))

    def process_right(self, value: Any, ctx: sa.Context[None, tuple[str, int, int]]) -> None:
        ctx.emit(("refund" if isinstance(value, Refund) else "wrong", value.number, value.number // KEYS))


def settings(folder: Path, leg: int, alignment: Any, **options: Any) -> sa.Config:
    """Every leg on the other backend, and at another parallelism."""
    made = config(folder / "storage", alignment=alignment, parallelism=(2, 3, 1)[leg], **options)
    small = sa.RocksDB(folder=str(folder), memory=8 << 20, cache=16)
    return sa.Config(
        checkpoints=made.checkpoints,
        restart=made.restart,
        parallelism=made.parallelism,
        mailbox_capacity=64,
        state_backend=small if leg % 2 else "heap",
    )


async def latest(storage: Path) -> Manifest:
    (found, *_) = await list_checkpoints(str(storage))
    assert found.manifest is not None
    return found.manifest


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
async def test_crashed_rescaled_and_restored_by_the_other_backend(tmp_path: Path, alignment: Any) -> None:
    shop, again = Shop(), sa.Restart.fixed(dt.timedelta(0), 5)
    for leg in range(3):
        given = settings(tmp_path, leg, alignment, restart=again)
        async with dropped(shop.flow(), given) as job:
            for part in range(4):
                start = leg * 800 + part * 200
                shop.put(range(start, start + 200))
                await job.checkpoint()  # in the middle of them, more or less
                if part == 2:
                    feed = shop.sales if leg % 2 else shop.refunds
                    feed.fail(OSError("connection lost"))
                    await until(lambda job=job: job.metrics()["restarts"] == 1)  # type: ignore[misc]
    shop.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(shop.flow(), settings(tmp_path, 0, alignment))
    shop.check(range(2400))


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("leg", [0, 1, 2])
async def test_what_is_in_flight_comes_back_on_its_side(tmp_path: Path, leg: int, keyed: bool) -> None:
    """Stuck with all mailboxes full, then restored at the same parallelism and at others."""
    shop, gate = Shop(), Gate(100)
    shop.put(range(3000))
    async with sa.start(shop.flow(gate, keyed=keyed), settings(tmp_path, 0, "unaligned")) as job:
        await until(lambda: gate.held)
        await until(lambda: all(job.metrics()["subtasks"][f"{uid}[0]"]["unsent"] for uid in ("sales", "refunds")))
        async with asyncio.timeout(PATIENCE):
            info = await job.checkpoint()
        await job.cancel()
    manifest = await latest(tmp_path / "storage")
    assert info.inflight_bytes > 0 and SECOND_INPUTS in manifest.requires
    stored = {
        (edge.key.upstream, edge.key.side) for _, edge, _ in manifest.in_flight() if edge.key.downstream == "ledger"
    }
    assert stored == {("sales", 0), ("refunds", 1)}
    shop.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(shop.flow(Gate(), keyed=keyed), settings(tmp_path, leg, "unaligned"))
    if keyed:
        shop.check(range(3000))
    else:
        assert sorted(shop.sink.values) == sorted(
            (side, number, number // KEYS) for side in ("sale", "refund") for number in range(3000)
        )


class Mirror(sa.KeyedCoOperator[int, int, int, tuple[str, int, int]]):
    left = sa.ValueState(int, default=0)
    right = sa.ValueState(int, default=0)

    def process_left(self, value: int, ctx: sa.Context[int, tuple[str, int, int]]) -> None:
        self.left.set(self.left.get() + 1)
        ctx.emit(("left", value, self.left.get()))

    def process_right(self, value: int, ctx: sa.Context[int, tuple[str, int, int]]) -> None:
        self.right.set(self.right.get() + 1)
        ctx.emit(("right", value, self.right.get()))


@pytest.mark.parametrize("leg", [0, 1, 2])
async def test_both_sides_of_one_stream(tmp_path: Path, leg: int) -> None:
    """Their edges differ by nothing but the side, and so do the records in flight on them."""
    feed, sink = Feed(chunk=16), ListSink[Any]()

    def flow(gate: Gate) -> sa.Dataflow:
        flow = sa.Dataflow("mirror")
        numbers = flow.source("numbers", feed, parallelism=1)
        both = numbers.connect(numbers).key_by(lambda v: v % KEYS, lambda v: v % KEYS).process("mirror", Mirror)
        slowed(both, gate).sink("out", sink)
        return flow

    feed.put(*range(3000))
    gate = Gate(100)
    async with sa.start(flow(gate), settings(tmp_path, 0, "unaligned")) as job:
        await until(lambda: gate.held and job.metrics()["subtasks"]["numbers[0]"]["unsent"])
        async with asyncio.timeout(PATIENCE):
            info = await job.checkpoint()
        await job.cancel()
    assert info.inflight_bytes > 0
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow(Gate()), settings(tmp_path, leg, "unaligned"))
    assert sorted(sink.values) == sorted(
        (side, number, number // KEYS + 1) for side in ("left", "right") for number in range(3000)
    )


async def test_an_end_on_one_side_is_kept_over_a_restart(tmp_path: Path) -> None:
    shop = Shop()
    shop.sales.put(*map(Sale, range(100)))
    shop.sales.end()
    async with dropped(shop.flow(), settings(tmp_path, 0, "aligned")) as job:
        await until(lambda: job.metrics()["subtasks"]["sales[0]"]["nodes"]["sales"]["records_out"] == 100)
        await job.checkpoint()
        shop.refunds.put(*map(Refund, range(50)))
        await job.checkpoint()
    shop.refunds.put(*map(Refund, range(50, 100)))
    shop.refunds.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(shop.flow(), settings(tmp_path, 1, "aligned"))
    shop.check(range(100))


class Single(sa.KeyedOperator[int, Sale, tuple[str, int, int]]):
    """What `Ledger` was before it got its second input."""

    sold = sa.ValueState(int, default=-1)

    def process(self, value: Sale, ctx: sa.Context[int, tuple[str, int, int]]) -> None:
        self.sold.set(value.number)
        ctx.emit(("sale", value.number, value.number // KEYS))


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
async def test_a_step_may_be_given_a_second_input(tmp_path: Path, alignment: Any) -> None:
    shop, gate = Shop(), Gate(100) if alignment == "unaligned" else Gate()
    flow = sa.Dataflow("shop")
    sales = flow.source("sales", shop.sales, parallelism=1)
    single = sales.key_by(key).process("ledger", Single)
    slowed(single, gate).sink("out", shop.sink)
    shop.sales.put(*map(Sale, range(1000)))
    async with dropped(flow, settings(tmp_path, 0, alignment)) as job:
        if alignment == "unaligned":
            await until(lambda: gate.held and job.metrics()["subtasks"]["sales[0]"]["unsent"])
        info = await job.checkpoint()
        assert (info.inflight_bytes > 0) is (alignment == "unaligned")
    shop.refunds.put(*map(Refund, range(1000)))
    shop.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(shop.flow(), settings(tmp_path, 0, alignment))
    shop.check(range(1000))
