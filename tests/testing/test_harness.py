"""OperatorHarness: every kind of operator, on both backends; what it shows, and what it refuses."""

import asyncio
import datetime as dt
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from streamactors.testing import OperatorHarness, Windowing

pytestmark = pytest.mark.slow
BACKENDS = pytest.mark.parametrize("backend", ["heap", "rocksdb"])
LARGE = sa.OutputTag("large", int)
LATE = sa.OutputTag("late", int)
DEAD = sa.OutputTag("dead", sa.DeadLetter)


class Order(msgspec.Struct):
    customer: str
    amount: int


def customer(order: Order) -> str:
    return order.customer


class Total(sa.KeyedOperator[str, Order, int]):
    """Emits the running total, and -total half a second of event time, or a minute of the clock, later."""

    total = sa.ValueState(int, default=0)
    amounts = sa.ListState(int)

    def process(self, order: Order, ctx: sa.Context[str, int]) -> None:
        if order.amount < 0:
            raise ValueError("a negative amount")
        self.total.set(self.total.get() + order.amount)
        self.amounts.append(order.amount)
        if ctx.timestamp is not None:
            ctx.timers.event(ctx.timestamp + 500, "late")
        ctx.timers.processing(60_000)
        ctx.emit(self.total.get())
        if order.amount > 100:
            ctx.emit_to(LARGE, order.amount)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, int]) -> None:
        ctx.emit(-self.total.get())


@BACKENDS
async def test_records_state_side_outputs(backend: Any) -> None:
    async with OperatorHarness(Total, key=customer, backend=backend, tags=[LARGE]) as h:
        await h.push(Order("ann", 3), 1000)
        await h.push(Order("bob", 200), 1001)
        assert h.output == [3, 200]
        assert h.stamped == [(3, 1000), (200, 1001)]
        assert h.take() == [3, 200]
        assert h.output == []
        assert h.side(LARGE) == [200]
        assert h.read("total", "ann") == h.read(Total.total, "ann") == h.state("ann").total == 3
        assert h.read(Total.amounts, "bob") == [200]
        assert h.read("total", "nobody") == 0
        assert h.entries("total") == {"ann": 3, "bob": 200}


@BACKENDS
async def test_timers_of_both_kinds(backend: Any) -> None:
    async with OperatorHarness(Total, key=customer, backend=backend, now=59_000) as h:
        await h.push(Order("ann", 3), 1000)
        await h.push(Order("bob", 4))  # without a time-stamp
        assert await h.timers("ann") == [sa.Timer(1500, "event", "late"), sa.Timer(60_000, "processing")]
        assert await h.timers("bob") == [sa.Timer(60_000, "processing")]
        await h.watermark(1499)
        assert h.take() == [3, 4]
        await h.watermark(1500)
        assert h.take() == [-3]
        await h.advance(dt.timedelta(milliseconds=999))
        assert h.take() == []
        await h.advance(dt.timedelta(milliseconds=1))
        assert sorted(h.take()) == [-4, -3]
        assert (h.now, await h.timers("ann")) == (60_000, [])


@BACKENDS
async def test_snapshot_restore_and_rescale(backend: Any) -> None:
    async with OperatorHarness(Total, key=customer, backend=backend, parallelism=2, now=5) as h:
        for number in range(20):
            await h.push(Order(f"c{number}", number), 1000)
        await h.watermark(1200)
        snapshot = await h.snapshot()
        await h.push(Order("c1", 50), 1300)
        h.take()
        await h.rescale(3)
        assert h.read("total", "c1") == 51
        await h.restart()
        await h.watermark(1500)
        assert sorted(h.take()) == sorted([0, -51, *(-number for number in range(2, 20))])
        await h.push(Order("c1", 1), 1600)
        assert h.take() == [52]
        await h.watermark(1800)
        assert h.take() == [-52]  # what was set for 1300 + 500 is there still
    other = "rocksdb" if backend == "heap" else "heap"
    async with OperatorHarness.restore(Total, snapshot, key=customer, backend=other, parallelism=3) as h:
        assert (h.now, h.read("total", "c1"), h.read("amounts", "c7")) == (5, 1, [7])
        await h.push(Order("c1", 9), 1300)
        await h.watermark(1500)
        assert sorted(h.take()) == sorted([10, 0, -10, *(-number for number in range(2, 20))])


async def test_a_snapshot_keeps_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with OperatorHarness(Total, key=customer) as h:
        await h.push(Order("ann", 1))
        snapshot = await h.snapshot()
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    assert "bytes" in repr(snapshot)
    with pytest.raises(sa.IncompatibleState, match="total"):
        async with OperatorHarness.restore(Renamed, snapshot, key=customer):
            raise AssertionError("it must not start")
    assert not list(tmp_path.iterdir())


class Renamed(sa.KeyedOperator[str, Order, int]):
    sum = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, int]) -> None:
        self.sum.set(order.amount)


# ------------------------------------------------------------------------------------------------------ what goes wrong
async def test_an_error_comes_out_as_in_a_job() -> None:
    async with OperatorHarness(Total, key=customer) as h:
        await h.push(Order("ann", 1))
        with pytest.raises(sa.RecordFailed, match="a negative amount") as caught:
            await h.push(Order("ann", -1))
        assert isinstance(caught.value.__cause__, ValueError)
        assert caught.value.key == "ann"
        with pytest.raises(sa.RecordFailed):
            await h.push(Order("ann", 1))


async def test_an_error_that_nobody_has_seen_is_raised_on_leaving() -> None:
    async def push_and_leave() -> None:
        async with OperatorHarness(Total, key=customer) as h:
            await h.push(Order("ann", -1), wait=False)
            while h._engine.handle.status == "running":
                await asyncio.sleep(0)

    with pytest.raises(sa.RecordFailed, match="a negative amount"):
        await push_and_leave()


async def test_a_tag_by_itself() -> None:
    async with OperatorHarness(Total, key=customer, tags=LARGE) as h:
        await h.push(Order("ann", 101))
        assert h.side(LARGE) == [101]


async def test_dead_letters() -> None:
    async with OperatorHarness(Total, key=customer, on_error=DEAD) as h:
        await h.push(Order("ann", -1))
        await h.push(Order("ann", 1))
        assert [letter.value for letter in h.side(DEAD)] == [Order("ann", -1)]
        assert h.take() == [1]


async def test_what_is_refused() -> None:
    with pytest.raises(sa.InvalidConfig, match="give key="):
        async with OperatorHarness(Total):
            raise AssertionError("it must not start")
    with pytest.raises(sa.InvalidDataflow, match="as an instance"):
        OperatorHarness(Total(), key=customer)  # type: ignore[arg-type]
    outside = OperatorHarness(Total, key=customer)
    with pytest.raises(sa.InvalidConfig, match="async with"):
        await outside.push(Order("ann", 1))
    async with OperatorHarness(Total, key=customer) as h:
        with pytest.raises(sa.InvalidConfig, match="one input"):
            await h.push_right(1)
        with pytest.raises(sa.InvalidConfig, match=r"tags=\[OutputTag\('late'\)\]"):
            h.side(LATE)
        with pytest.raises(sa.StateAccessError, match="no state 'sum'"):
            h.read("sum", "ann")
    async with OperatorHarness(Plain) as plain:
        with pytest.raises(sa.StateAccessError, match="no keyed state"):
            plain.read("total", "ann")
    async with OperatorHarness(Total, key=customer, watermarks=False) as timeless:
        with pytest.raises(sa.InvalidConfig, match="watermarks=False"):
            await timeless.watermark(1)
        with pytest.raises(sa.RecordFailed, match="would never fire"):
            await timeless.push(Order("ann", 1), 5)


async def test_one_that_never_ends_is_named() -> None:
    class Hanging(sa.Operator[int, int]):
        async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
            await asyncio.Event().wait()

    async with OperatorHarness(Hanging, timeout=0.05) as h:
        with pytest.raises(TimeoutError, match=r"something to do: .*operator.*wait=False"):
            await h.push(1)


# ------------------------------------------------------------------------------------------- changed without being set
class Careless(sa.KeyedOperator[str, str, int]):
    value = sa.ValueState(list[int], default_factory=list)
    items = sa.ListState(list[int])
    entries = sa.MapState(str, list[int])
    most = sa.ReducingState(list[int], max)

    def process(self, what: str, ctx: sa.Context[str, int]) -> None:
        match what:
            case "set":
                self.value.set([1])
                self.items.append([1])
                self.entries["a"] = [1]
                self.most.add([1])
            case "set anew":
                changed = self.value.get()
                changed.append(2)
                self.value.set(changed)
                self.items.extend([[2], [3]])
                self.entries["a"] = [*self.entries["a"], 2]
                self.entries["b"] = [5]
                del self.entries["b"]
                self.most.add([7])
            case "clear":
                self.value.clear()
                self.items.clear()
                self.entries.clear()
                self.most.clear()
            case _:
                self.change(what)

    def change(self, what: str) -> None:
        held = {
            "value": self.value.get(),
            "items": next(iter(self.items)),
            "entries": self.entries["a"],
            "most": self.most.get(),
        }
        held[what].append(4)  # type: ignore[union-attr]


@pytest.mark.parametrize("state", ["value", "items", "entries", "most"])
@BACKENDS
async def test_a_value_changed_in_place_is_found(backend: Any, state: str) -> None:
    async with OperatorHarness(Careless, key=lambda _: "ann", backend=backend) as h:
        for calm in ("set", "set anew", "set", "clear", "set"):
            await h.push(calm)
        snapshot = await h.snapshot()
        with pytest.raises(sa.StateAccessError, match=f"state '{state}': what key 'ann' holds was changed in place"):
            await h.push(state)
        await h.push("set anew")
    async with OperatorHarness.restore(Careless, snapshot, key=lambda _: "ann", backend=backend) as h:
        with pytest.raises(sa.StateAccessError, match=f"state '{state}'"):
            await h.push(state)  # also of a value that was restored


class Shared(sa.Aggregate[int, list[int], list[int]]):
    """Gives out what it gathers in."""

    accumulator = list[int]

    def create(self) -> list[int]:
        return []

    def add(self, accumulator: list[int], value: int) -> list[int]:
        return [*accumulator, value]

    def merge(self, left: list[int], right: list[int]) -> list[int]:
        return [*left, *right]

    def result(self, accumulator: list[int]) -> list[int]:
        return accumulator


TTL = sa.Ttl(dt.timedelta(seconds=10))
READ_TTL = sa.Ttl(dt.timedelta(seconds=10), refresh_on="read-write")


def careless(ttl: sa.Ttl | None) -> type[sa.KeyedOperator[str, str, int]]:
    class CarelessInAllKinds(sa.KeyedOperator[str, str, int]):
        value = sa.ValueState(list[int], default_factory=list, ttl=ttl)
        items = sa.ListState(list[int], ttl=ttl)
        entries = sa.MapState(str, list[int], ttl=ttl)
        most = sa.ReducingState(list[int], max, ttl=ttl)
        shared = sa.AggregatingState(Shared(), ttl=ttl)

        def process(self, what: str, ctx: sa.Context[str, int]) -> None:
            match what:
                case "set":
                    self.value.set([1])
                    self.items.append([1])
                    self.items.extend([[2], [3]])
                    self.entries["a"] = [1]
                    self.most.add([1])
                    self.shared.add(1)
                case "clear":
                    for each in (self.value, self.items, self.entries, self.most, self.shared):
                        each.clear()
                case "read" | "value" | "items" | "entries" | "most" | "shared":
                    self.read(what)

        def read(self, what: str) -> None:
            held: dict[str, list[list[int] | None]] = {
                "value": [self.value.get()],
                "items": [*self.items],
                "entries": [self.entries.get("a")],
                "most": [self.most.get()],
                "shared": [self.shared.get()],
            }
            if what in held and (changed := held[what][-1]) is not None:
                changed.append(4)

    return CarelessInAllKinds


@pytest.mark.parametrize("ttl", [None, TTL, READ_TTL], ids=["no ttl", "ttl", "read ttl"])
@BACKENDS
async def test_in_all_kinds_of_state_with_and_without_a_ttl(backend: Any, ttl: sa.Ttl | None) -> None:
    operator = careless(ttl)
    async with OperatorHarness(operator, key=lambda _: "ann", backend=backend) as h:
        for state in ("value", "items", "entries", "most", "shared"):
            for calm in ("set", "read", "clear", "read", "set"):
                await h.push(calm)
            await h.advance(dt.timedelta(seconds=6))
            await h.push("set")
            await h.advance(dt.timedelta(seconds=5))
            await h.push("nothing")
            with pytest.raises(sa.StateAccessError, match=f"state '{state}': what key 'ann' holds was changed"):
                await h.push(state)


@pytest.mark.parametrize("ttl", [TTL, READ_TTL], ids=["ttl", "read ttl"])
@BACKENDS
async def test_what_expires_was_not_changed(backend: Any, ttl: sa.Ttl) -> None:
    async with OperatorHarness(careless(ttl), key=lambda _: "ann", backend=backend) as h:
        for seconds in (6, 6, 3, 9, 20, 0):
            await h.push("set")
            await h.push("read")
            await h.advance(dt.timedelta(seconds=seconds))
            await h.push("nothing")
            await h.push("read")
        await h.restart()
        await h.push("read")


@BACKENDS
async def test_watching_refreshes_nothing(backend: Any) -> None:
    async with OperatorHarness(careless(READ_TTL), key=lambda _: "ann", backend=backend) as h:
        await h.push("set")
        await h.advance(dt.timedelta(seconds=6))
        await h.push("set")
        await h.push("nothing")
        await h.advance(dt.timedelta(seconds=5))
        assert h.read("items", "ann") == [[1], [2], [3]]  # those of the second time
        await h.advance(dt.timedelta(seconds=5))
        assert h.entries("items") == h.entries("entries") == h.entries("shared") == {}


@pytest.mark.parametrize("ttl", [None, READ_TTL], ids=["no ttl", "read ttl"])
@BACKENDS
async def test_a_default_changed_without_set_is_found(backend: Any, ttl: sa.Ttl | None) -> None:
    class Defaults(sa.KeyedOperator[str, str, int]):
        seen = sa.ValueState(list[int], default_factory=list, ttl=ttl)

        def process(self, what: str, ctx: sa.Context[str, int]) -> None:
            changed = self.seen.get()
            changed.append(1)
            if what == "set":
                self.seen.set(changed)
            elif what == "clear":
                self.seen.clear()
            elif what == "read":
                changed.pop()

    async with OperatorHarness(Defaults, key=lambda _: "ann", backend=backend) as h:
        for calm in ("read", "clear", "read", "set", "clear", "read", "read"):
            await h.push(calm)
        with pytest.raises(sa.StateAccessError, match="'seen': the default that key 'ann' was given was changed"):
            await h.push("change")
        await h.push("set")
        assert h.read("seen", "ann") == [1]
        with pytest.raises(sa.StateAccessError, match="'seen': what key 'ann' holds was changed in place"):
            await h.push("change")


@BACKENDS
async def test_another_order_of_a_set_is_no_change(backend: Any) -> None:
    class Sets(sa.KeyedOperator[str, str, int]):
        value = sa.ValueState(set[int], default_factory=set)

        def process(self, what: str, ctx: sa.Context[str, int]) -> None:
            if what == "set":
                large = set(range(100))
                large -= set(range(100)) - {2, 65}  # its table is large still: a copy has another order
                self.value.set(large)
            elif what == "change":
                self.value.get().add(7)

    async with OperatorHarness(Sets, key=lambda _: "ann", backend=backend) as h:
        await h.push("set")
        await h.push("nothing")
        await h.restart()
        await h.push("nothing")
        with pytest.raises(sa.StateAccessError, match="in place"):
            await h.push("change")


async def test_a_timer_that_changes_a_value_in_place_is_found() -> None:
    class Late(Careless):
        def process(self, what: str, ctx: sa.Context[str, int]) -> None:
            super().process("set", ctx)
            ctx.timers.event(10)

        def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, int]) -> None:
            self.change("entries")

    async with OperatorHarness(Late, key=lambda _: "ann") as h:
        await h.push("set")
        with pytest.raises(sa.StateAccessError, match="state 'entries'"):
            await h.watermark(10)


# --------------------------------------------------------------------------------------------------- kinds of operators
class Plain(sa.Operator[int, int]):
    def open(self, ctx: sa.OperatorContext) -> None:
        self.factor = ctx.resources.get("factor", 1)

    async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        ctx.emit(value * self.factor)


async def test_an_operator_without_keys() -> None:
    async with OperatorHarness(Plain, resources={"factor": 3}, parallelism=2) as h:
        for number in (1, 2, 3):
            await h.push(number)
        assert sorted(h.take()) == [3, 6, 9]
        await h.finish()
        with pytest.raises(sa.JobNotRunning, match="not running any more: finished"):
            await h.push(1)
    async with OperatorHarness(functools.partial(Plain)) as made:
        await made.push(4)
        assert made.take() == [4]


class Both(sa.CoOperator[int, str, str]):
    def process_left(self, value: int, ctx: sa.Context[None, str]) -> None:
        ctx.emit(f"left {value}")

    def process_right(self, value: str, ctx: sa.Context[None, str]) -> None:
        ctx.emit(f"right {value} {ctx.watermark}")


async def test_two_inputs() -> None:
    async with OperatorHarness(Both) as h:
        await h.push_left(1)
        await h.watermark(7, only="right")
        await h.push_right("a")
        await h.watermark(5, only="left")
        await h.push_right("b")
        assert h.take() == ["left 1", f"right a {-(2**63)}", "right b 5"]


class Meeting(sa.KeyedCoOperator[int, int, str, str]):
    seen = sa.ListState(str)

    def process_left(self, value: int, ctx: sa.Context[int, str]) -> None:
        ctx.emit(",".join(self.seen))

    def process_right(self, value: str, ctx: sa.Context[int, str]) -> None:
        self.seen.append(value)


@BACKENDS
async def test_two_keyed_inputs(backend: Any) -> None:
    async with OperatorHarness(Meeting, key=abs, right_key=len, backend=backend, parallelism=2) as h:
        await h.push_right("ab")
        await h.push_right("xy")
        await h.rescale(1)
        await h.push_left(-2)
        assert h.take() == ["ab,xy"]
        assert h.read(Meeting.seen, 2) == ["ab", "xy"]


class Ruled(sa.KeyedBroadcastOperator[str, Order, int, int]):
    least = sa.BroadcastState(str, int)
    count = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, int]) -> None:
        if order.amount >= self.least.get("amount", 0):
            self.count.set(self.count.get() + 1)
            ctx.emit(self.count.get())

    def process_broadcast(self, rule: int, ctx: sa.Context[None, int]) -> None:
        self.least["amount"] = rule


async def test_broadcast() -> None:
    async with OperatorHarness(Ruled, key=customer, parallelism=2) as h:
        await h.push(Order("ann", 1))
        await h.push_broadcast(5)
        await h.push(Order("ann", 1))
        await h.rescale(3)
        await h.push(Order("ann", 9))
        assert h.take() == [1, 2]
        for state in (Ruled.least, "least"):
            with pytest.raises(sa.StateAccessError, match="'least': no keyed state; look at it in `operators`"):
                h.read(state, "amount")
        assert [dict(each.least) for each in h.operators if isinstance(each, Ruled)] == [{"amount": 5}] * 3


class Spread(sa.WindowOperator[str, Order, tuple[int, int]]):
    fired = sa.ValueState(int, default=0)

    def process(self, window: sa.Windowed[str, Iterable[Order]], ctx: sa.Context[str, tuple[int, int]]) -> None:
        self.fired.set(self.fired.get() + 1)
        ctx.emit((window.start, sum(order.amount for order in window.value)))


@BACKENDS
async def test_windows(backend: Any) -> None:
    tumbling = sa.Tumbling(dt.timedelta(milliseconds=100))
    late = sa.OutputTag("late", Order)
    async with OperatorHarness(
        Spread, key=customer, window=tumbling, windowing=Windowing(late=late), backend=backend
    ) as h:
        await h.push(Order("ann", 1), 10)
        await h.push(Order("ann", 2), 99)
        await h.watermark(98)
        assert h.take() == []
        await h.watermark(99)
        assert h.take() == [(0, 3)]
        assert h.read("fired", "ann") == 1
        await h.push(Order("ann", 2), 50)
        assert h.side(late) == [Order("ann", 2)]
    with pytest.raises(sa.InvalidConfig, match="give window="):
        async with OperatorHarness(Spread, key=customer):
            raise AssertionError("it must not start")


class Asking(sa.AsyncKeyedOperator[str, Order, int]):
    total = sa.ValueState(int, default=0)

    async def process(self, order: Order, ctx: sa.Context[str, int]) -> None:
        await GATE[order.customer].wait()
        self.total.set(self.total.get() + order.amount)
        ctx.emit(self.total.get())


GATE: dict[str, asyncio.Event] = {}


@BACKENDS
async def test_calls_in_flight(backend: Any) -> None:
    GATE.update({name: asyncio.Event() for name in ("ann", "bob")})
    async with OperatorHarness(Asking, key=customer, backend=backend) as h:
        await h.push(Order("ann", 1), wait=False)
        await h.push(Order("ann", 2), wait=False)
        await h.push(Order("bob", 5), wait=False)
        GATE["bob"].set()
        while not h.output:
            await asyncio.sleep(0)
        assert (h.take(), h.read("total", "ann")) == ([5], 0)
        GATE["ann"].set()
        await h.settle()
        assert (h.take(), h.read("total", "ann")) == ([1, 3], 3)
        await h.rescale(2)
        await h.push(Order("ann", 4))
        assert h.take() == [7]


@BACKENDS
async def test_a_snapshot_has_the_inputs_of_calls_that_have_not_returned(backend: Any) -> None:
    GATE.update({name: asyncio.Event() for name in ("ann", "bob")})
    async with OperatorHarness(Asking, key=customer, backend=backend, parallelism=2) as h:
        for number in range(1, 6):
            await h.push(Order("ann", number), wait=False)
        while sum(script.read for script in h._scripts) < 5:
            await asyncio.sleep(0)
        snapshot = await h.snapshot()
        GATE["ann"].set()
    async with OperatorHarness.restore(Asking, snapshot, key=customer, backend=backend, parallelism=3) as h:
        assert h.take() == [1, 3, 6, 10, 15]
        assert h.read(Asking.total, "ann") == 15


async def test_what_is_not_stored_is_gone() -> None:
    class Forgetful(sa.KeyedOperator[str, str, int]):
        def __init__(self) -> None:
            self.counts: dict[str, int] = {}

        def process(self, value: str, ctx: sa.Context[str, int]) -> None:
            self.counts[value] = self.counts.get(value, 0) + 1
            ctx.emit(self.counts[value])

    async with OperatorHarness(Forgetful, key=str) as h:
        await h.push("a")
        await h.restart()
        await h.push("a")
        assert h.take() == [1, 1]


async def test_time_to_live_by_its_clock() -> None:
    class Recent(sa.KeyedOperator[str, str, int]):
        count = sa.ValueState(int, default=0, ttl=sa.Ttl(dt.timedelta(hours=1)))

        def process(self, value: str, ctx: sa.Context[str, int]) -> None:
            self.count.set(self.count.get() + 1)
            ctx.emit(self.count.get())

    async with OperatorHarness(Recent, key=str) as h:
        await h.push("a")
        await h.advance(dt.timedelta(minutes=59))
        await h.push("a")
        await h.advance(dt.timedelta(minutes=61))
        await h.push("a")
        assert h.take() == [1, 2, 1]
