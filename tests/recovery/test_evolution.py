"""A flow whose types have changed since its last checkpoint: what it stored is read as it was meant, or refused by name
before anything runs."""

import asyncio
import dataclasses
import datetime as dt
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

import streamactors as sa
from streamactors.checkpoint.manifest import Manifest
from streamactors.checkpoint.restorable import list_checkpoints
from tests.recovery.flows import Event, EventLog, PlainList, Sum, Sums, config, dropped, key_of, read, until
from tests.runtime.feeds import Feed

pytestmark = pytest.mark.slow

KEYS = [f"key-{number}" for number in range(7)]


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "events.jsonl")
    log.add(*((KEYS[number % 7], number) for number in range(60)))
    return log


# ---------------------------------------------------------------------------------------------------- types that change
class Line(msgspec.Struct):
    sku: str
    count: int
    gone: str = "x"


@dataclasses.dataclass
class Basket:
    lines: list[Line]
    amount: int


class NewBasket(msgspec.Struct):
    lines: list["TodaysLine"]
    total: Annotated[float, sa.Alias("amount")]
    paid: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TodaysLine:
    sku: str
    number: Annotated[float, sa.Alias("count")]
    note: str = "-"


LONG = sa.Ttl(dt.timedelta(days=1000))


class Shop(sa.KeyedOperator[str, int, str]):
    """One of each kind of state."""

    value = sa.ValueState(Basket)
    items = sa.ListState(Line)
    entries = sa.MapState(str, Line)
    large = sa.MapState(int, Line)
    total = sa.ValueState(int, default=0)
    anything = sa.ValueState[Any](Any, default=None)
    greatest = sa.ReducingState(int, max)
    living = sa.MapState(str, Line, ttl=LONG)
    mortal = sa.ListState(Line)
    undying = sa.MapState(int, Line, ttl=LONG)
    own = sa.OperatorListState(Line)
    every = sa.UnionListState(Line)

    def process(self, value: int, ctx: sa.Context[str, str], /) -> None:
        line = Line(f"sku-{value}", value)
        basket = self.value.get() or Basket([], 0)
        self.value.set(Basket([*basket.lines, line], basket.amount + value))
        self.items.append(line)
        self.entries[line.sku] = line
        for number in range(value % 2 * 100):  # in RocksDB, a large map is spread over rows
            self.large[number] = Line("large", number)
        self.total.set(self.total.get() + value)
        self.anything.set((line, value))
        self.greatest.add(value)
        self.mortal.append(line)
        self.living[line.sku] = self.undying[value] = line
        self.own.append(line)
        self.every.append(line)
        ctx.emit("stored")


class NewShop(sa.KeyedOperator[str, int, str]):
    """Tells what it finds, after adding to it."""

    value = sa.ValueState(NewBasket)
    items = sa.ListState(TodaysLine)
    entries = sa.MapState(str, TodaysLine)
    large = sa.MapState(int, TodaysLine)
    sum = sa.stored_as("total", sa.ValueState(float, default=0.0))
    anything = sa.ValueState[Any](Any, default=None)
    greatest = sa.ReducingState(float, max)
    living = sa.MapState(str, TodaysLine, ttl=LONG)
    mortal = sa.ListState(TodaysLine, ttl=LONG)
    undying = sa.MapState(int, TodaysLine)
    own = sa.OperatorListState(TodaysLine)
    every = sa.UnionListState(TodaysLine)

    def process(self, value: int, ctx: sa.Context[str, str], /) -> None:
        self.items.append(TodaysLine("new", 0.5))
        maps = dict(sorted(self.entries.items())), sorted(self.large.items())
        living = sorted(self.living.items()), list(self.mortal), sorted(self.undying.items()), self.greatest.get()
        ctx.emit(repr((self.value.get(), list(self.items), *maps, self.sum.get(), self.anything.get(), *living)))
        ctx.emit(repr(sorted(line.sku for line in self.own)) + repr(sorted(map(repr, self.every))))


def expected(values: list[int], more: int) -> str:
    lines = [TodaysLine(f"sku-{value}", float(value)) for value in values]
    spread = any(value % 2 for value in values)
    large = [(number, TodaysLine("large", float(number))) for number in range(100)] if spread else []
    anything = (Line(f"sku-{values[-1]}", values[-1]), values[-1])
    items = [*lines, *[TodaysLine("new", 0.5)] * more]
    entries = {line.sku: line for line in sorted(lines, key=lambda line: line.sku)}
    total = float(sum(values))
    living = sorted(entries.items()), lines, list(zip(values, lines, strict=True)), float(max(values))
    return repr((NewBasket(lines, total), items, entries, large, total, anything, *living))


def shop(feed: Feed, operator: Any, sink: Any, parallelism: int) -> sa.Dataflow:
    flow = sa.Dataflow("shop")
    values: Any = flow.source("numbers", feed, parallelism=1)
    keyed = values.key_by(lambda value: KEYS[value % 7])
    keyed.process("shop", operator, parallelism=parallelism).sink("out", sink)
    return flow


@pytest.mark.parametrize("rescale", [2, 3], ids=["same parallelism", "rescaled"])
@pytest.mark.parametrize("incremental", [True, False], ids=["native", "canonical"])
@pytest.mark.parametrize("before", ["heap", "rocksdb"])
@pytest.mark.parametrize("after", ["heap", "rocksdb"])
async def test_every_kind_of_state_is_read_as_its_type_is_now(
    tmp_path: Path, before: Any, after: Any, incremental: bool, rescale: int
) -> None:
    storage, feed = tmp_path / "storage", Feed()
    values = list(range(30))
    seen, found = PlainList[str](), PlainList[str]()
    old = dataclasses.replace(config(storage, incremental=incremental), state_backend=before)
    new = dataclasses.replace(config(storage, incremental=incremental), state_backend=after)
    async with dropped(shop(feed, Shop, seen, 2), old) as job:
        feed.put(*values)
        await until(lambda: len(seen.values) == len(values))
        await job.checkpoint()
    for round in (1, 2):  # again from what the new types have written
        found.values.clear()
        async with dropped(shop(feed, NewShop, found, rescale), new) as job:
            feed.put(*range(7))
            await until(lambda: len(found.values) == 14)
            await job.checkpoint()
        told = [each for each in found.values if each.startswith("(NewBasket")]
        held = [[value for value in values if value % 7 == key] for key in range(7)]
        assert sorted(told) == sorted(expected(own, round) for own in held)
        every = repr(sorted(repr(TodaysLine(f"sku-{value}", float(value))) for value in values))
        if round == 1:
            assert all(each.endswith(every) for each in found.values if not each.startswith("("))


# ---------------------------------------------------------------------------------------------------- records in flight
def order_class(fields: list[Any]) -> Any:
    """The latest is what a program has after it was changed."""
    return msgspec.defstruct("FlyingOrder", fields, module=__name__)


COUNT = 500
OLD_FIELDS: list[Any] = [("key", str), ("amount", int), ("gone", str, "x")]


class Gate:
    """One record for each permit."""

    def __init__(self, permits: int) -> None:
        self.permits = asyncio.Semaphore(permits)
        self.entered = 0

    async def enter(self) -> None:
        self.entered += 1
        await self.permits.acquire()


class Gated(sa.KeyedOperator[str, Any, str]):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def process(self, value: Any, ctx: sa.Context[str, str], /) -> None:
        await self.gate.enter()
        ctx.emit(repr(value))


def orders(feed: Feed, gate: Gate, sink: Any) -> sa.Dataflow:
    flow = sa.Dataflow("orders")
    values: Any = flow.source("orders", feed, parallelism=1)
    values.key_by(lambda order: order.key).process("gated", lambda: Gated(gate), parallelism=1).sink("out", sink)
    return flow


async def leave_in_flight(storage: Path, records: list[Any]) -> list[str]:
    """A checkpoint in which most records are in flight, and what came out before it."""
    feed, gate, out = Feed(), Gate(0), PlainList[str]()
    async with dropped(orders(feed, gate, out), config(storage, alignment="unaligned")) as job:
        feed.put(*records)
        await until(lambda: gate.entered > 0)
        checkpoint = asyncio.create_task(job.checkpoint())
        while not checkpoint.done():
            gate.permits.release()  # a barrier overtakes records between two of them, never within one
            await asyncio.sleep(0.005)
        await checkpoint
    (found, *_) = await list_checkpoints(str(storage))
    assert isinstance(found.manifest, Manifest)
    assert found.manifest.in_flight_records > 0
    return out.values[: len(records) - found.manifest.in_flight_records]


async def go_on(storage: Path, count: int) -> list[str]:
    gate, out = Gate(1_000_000), PlainList[str]()
    feed = Feed()
    feed.values[0] += [None] * count
    async with dropped(orders(feed, gate, out), config(storage, alignment="unaligned")) as job:
        await until(lambda: len(out.values) == count or job.status == "failed")
        if job.status == "failed":
            await job.wait()
    return out.values


async def test_records_in_flight_are_read_as_their_class_is_now(tmp_path: Path) -> None:
    old = order_class(OLD_FIELDS)
    before = await leave_in_flight(tmp_path / "storage", [old(KEYS[n % 7], n) for n in range(COUNT)])
    new = order_class([("total", Annotated[float, sa.Alias("amount")]), ("key", str), ("note", str, "-")])
    found = await go_on(tmp_path / "storage", COUNT - len(before))
    processed = sum("amount" in each for each in found)  # before the barrier, and in flight to the sink
    assert len(before) + processed < COUNT
    assert found[:processed] == [repr(old(KEYS[n % 7], n)) for n in range(len(before), len(before) + processed)]
    assert found[processed:] == [repr(new(float(n), KEYS[n % 7])) for n in range(len(before) + processed, COUNT)]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            [("key", str), ("amount", str)],
            r"'orders' → 'gated'.*FlyingOrder can't be read: field 'amount': stored as int, now str",
        ),
        (
            [*OLD_FIELDS[:1], ("more", str)],
            r"FlyingOrder can't be read: field 'more' of type str is new and has no def",
        ),
    ],
)
async def test_records_in_flight_that_fit_no_more_are_refused(tmp_path: Path, fields: Any, problem: str) -> None:
    old = order_class(OLD_FIELDS)
    await leave_in_flight(tmp_path / "storage", [old("a", n) for n in range(COUNT)])
    new = order_class(fields)
    with pytest.raises(sa.IncompatibleState, match=f"{problem}.*go on from a savepoint"):
        await go_on(tmp_path / "storage", COUNT)
    del new


# ------------------------------------------------------------------------------------------------------------- refusals
class Opened(sa.Operator[Event, Event]):
    opened = 0

    def open(self, ctx: sa.OperatorContext, /) -> None:
        type(self).opened += 1

    def process(self, event: Event, ctx: sa.Context[None, Event], /) -> None:
        ctx.emit(event)


class TextSums(sa.KeyedOperator[str, Event, Sum]):
    total = sa.ValueState(str, default="")

    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None: ...


async def test_what_does_not_fit_is_refused_before_any_operator_is_opened(tmp_path: Path, log: EventLog) -> None:
    def flow(operator: Any, *, follow: bool) -> sa.Dataflow:
        made = sa.Dataflow("sums")
        events = made.source("events", log.source(follow=follow)).process("before", Opened)
        events.key_by(key_of).process("sums", operator, parallelism=2).sink("out", PlainList[Sum]())
        return made

    async with dropped(flow(Sums, follow=True), config(tmp_path / "storage")) as job:
        await read(job, log)
        await job.checkpoint()
    before = Opened.opened
    assert before > 0
    with pytest.raises(sa.IncompatibleState, match=r"operator 'sums', state 'total': stored as int, now str"):
        await sa.run(flow(TextSums, follow=False), config(tmp_path / "storage"))
    assert Opened.opened == before


def declaring(**states: Any) -> Any:
    class Declaring(sa.KeyedOperator[str, int, str]):
        def process(self, value: int, ctx: sa.Context[str, str], /) -> None:
            raise AssertionError("it must not run")

    for name, state in states.items():
        state.__set_name__(Declaring, name)
        setattr(Declaring, name, state)
    return Declaring


class StrictLine(msgspec.Struct):
    sku: str
    count: int
    price: float


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"value": sa.ValueState(int)}, r"state 'value': stored as Basket, now int"),
    ({"items": sa.ListState(StrictLine)}, r"state 'items': field 'price' of type float is new and has no default"),
    ({"items": sa.ValueState(Line)}, r"state 'items': stored as list state, now value state"),
    ({"entries": sa.MapState(int, Line)}, r"state 'entries': key stored as str, now int"),
    ({"entries": sa.MapState(str, StrictLine)}, r"state 'entries': field 'price' of type float is new"),
    ({"own": sa.OperatorListState(StrictLine)}, r"state 'own': field 'price' of type float is new"),
    ({"own": sa.UnionListState(Line)}, r"state 'own': stored as operator list state, now union list state"),
    ({"every": sa.UnionListState(str)}, r"state 'every': stored as Line, now str"),
    ({"total": sa.ValueState(str, default="")}, r"state 'total': stored as int, now str"),
]


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_refused_by_operator_state_field_and_types(tmp_path: Path, backend: Any) -> None:
    storage, feed, seen = tmp_path / "storage", Feed(), PlainList[str]()
    settings = dataclasses.replace(config(storage), state_backend=backend)
    async with dropped(shop(feed, Shop, seen, 2), settings) as job:
        feed.put(1, 2, 3)
        await until(lambda: len(seen.values) == 3)
        await job.checkpoint()
    kept = {name: state for name, state in vars(Shop).items() if hasattr(state, "keyed")}
    for changed, problem in REFUSED:
        with pytest.raises(sa.IncompatibleState, match=f"operator 'shop', {problem}"):
            await sa.run(shop(feed, declaring(**(kept | changed)), seen, 2), settings)
    del kept["total"]
    with pytest.raises(sa.IncompatibleState, match="operator 'shop', state 'total': .* no longer declared"):
        await sa.run(shop(feed, declaring(**kept), seen, 2), settings)
    async with dropped(shop(feed, Shop, seen, 2), settings) as job:
        feed.put(4)
        await until(lambda: len(seen.values) == 4)
        assert await job.query("shop", "total", KEYS[1]) == 1
