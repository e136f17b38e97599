"""Kinds of state that are more than a value: aggregates, state that expires, broadcast state, renamed state; and the
native files of RocksDB."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors import state_processor
from streamactors.checkpoint.manifest import NATIVE_FILES
from streamactors.clock import SystemClock
from streamactors.errors import IncompatibleState
from streamactors.state_processor import SavepointWriter
from tests.recovery.flows import dropped, until
from tests.runtime.feeds import Feed
from tests.state_processor.jobs import (
    Keeper,
    all_of,
    config,
    entries_of,
    keeping,
    last_of,
    numbers,
    opened,
    rows_of,
    sink,
    stored,
    total_of,
)

pytestmark = pytest.mark.slow

BACKENDS = pytest.mark.parametrize("backend", ["heap", "rocksdb"])


class Later(SystemClock):
    """So much later."""

    def __init__(self, by: dt.timedelta) -> None:
        self._by = round(by.total_seconds() * 1000)

    def time_ms(self) -> int:
        return super().time_ms() + self._by


# ----------------------------------------------------------------------------------------------------------- aggregates
class Folding(sa.KeyedOperator[str, int, Any]):
    most = sa.ReducingState(int, max)
    mean = sa.AggregatingState(sa.Avg[int](float))
    several = sa.AggregatingState(sa.Aggregates(count=sa.Count(), least=sa.Min(lambda number: number)))
    distinct = sa.AggregatingState(sa.Distinct[int](lambda number: number % 7))

    def process(self, number: int, ctx: sa.Context[str, Any], /) -> None:
        for state in (self.most, self.mean, self.several, self.distinct):
            state.add(number)
        ctx.emit((ctx.key, self.most.get(), self.mean.get(), self.several.get(), self.distinct.get()))


@BACKENDS
async def test_aggregates_as_results_and_as_accumulators(tmp_path: Path, backend: str) -> None:
    uri = await stored(keeping(numbers(), sink(), Folding), config(tmp_path, backend=backend))
    lists = all_of()
    assert dict(await rows_of(uri, "keep", "most")) == {k: max(v) for k, v in lists.items()}
    assert dict(await rows_of(uri, "keep", "mean")) == {k: (float(sum(v)), len(v)) for k, v in lists.items()}
    assert dict(await rows_of(uri, "keep", "mean", Folding)) == {k: sum(v) / len(v) for k, v in lists.items()}
    assert dict(await rows_of(uri, "keep", "several")) == {
        k: {"count": len(v), "least": min(v)} for k, v in lists.items()
    }
    assert dict(await rows_of(uri, "keep", "distinct", Folding)) == {
        k: len({number % 7 for number in v}) for k, v in lists.items()
    }
    async with opened(uri) as snapshot:
        table = await snapshot.state("keep", "mean", Folding).to_arrow()
        assert str(table.schema.field("value").type) == "double"
        assert snapshot.info("keep", "mean").kind == "aggregating"


@BACKENDS
async def test_aggregates_of_rows(tmp_path: Path, backend: str) -> None:
    first = await stored(keeping(numbers(120), sink(), Folding), config(tmp_path / "first"))
    states = {name: await entries_of(first, "keep", name, Folding) for name in ("most", "mean", "several", "distinct")}
    rows = [(key, {name: held[key] for name, held in states.items()}) for key in states["most"]]
    made = await SavepointWriter("keeping").with_keyed_state("keep", Folding, rows).write(str(tmp_path / "made"))
    out: ListSink[Any] = ListSink()
    settings = config(tmp_path / "next", backend=backend, parallelism=3)
    await sa.run(keeping(ListSource(range(120, 300)), out, Folding), settings, restore=made)
    whole: ListSink[Any] = ListSink()
    await sa.run(keeping(numbers(300), whole, Folding), config(tmp_path / "whole"))
    assert sorted(out.values) == sorted(value for value in whole.values if value[1] >= 120)
    async with opened(first) as snapshot:
        moved = await snapshot.transform().with_max_parallelism(9).write(str(tmp_path / "moved"))
    for name, held in states.items():
        assert await entries_of(moved, "keep", name, Folding) == held


# -------------------------------------------------------------------------------------------------- state that expires
AFTER = dt.timedelta(hours=1)


class Fading(sa.KeyedOperator[str, int, Any]):
    value = sa.ValueState(int, ttl=sa.Ttl(AFTER))
    items = sa.ListState(int, ttl=sa.Ttl(AFTER))
    entries = sa.MapState(int, str, ttl=sa.Ttl(AFTER, refresh_on="read-write"))

    def process(self, number: int, ctx: sa.Context[str, Any], /) -> None:
        self.value.set(number)
        self.items.append(number)
        self.entries[number] = str(number)
        ctx.emit((ctx.key, list(self.items)))


@BACKENDS
async def test_what_has_expired_is_not_shown(tmp_path: Path, backend: str) -> None:
    uri = await stored(keeping(numbers(), sink(), Fading), config(tmp_path, backend=backend))
    entries = {key: {number: str(number) for number in found} for key, found in all_of().items()}
    expected = {"value": last_of(), "items": all_of(), "entries": entries}
    for name, held in expected.items():
        assert await entries_of(uri, "keep", name) == await entries_of(uri, "keep", name, Fading) == held
    async with state_processor.open(uri, clock=Later(AFTER)) as snapshot:
        for name in expected:
            assert await snapshot.state("keep", name).count() == 0
            assert snapshot.info("keep", name).entries == 50, "stored all the same"
        state: Any = snapshot.state("keep", "items")
        assert await state.get("k1", "nothing") == "nothing"


async def test_times_are_carried_over_and_rows_are_new(tmp_path: Path) -> None:
    uri = await stored(keeping(numbers(), sink(), Fading), config(tmp_path / "job"))
    half = Later(AFTER / 2)
    async with state_processor.open(uri, clock=half) as snapshot:
        kept = await snapshot.transform().with_max_parallelism(5).write(str(tmp_path / "kept"))
        edited = await snapshot.transform().edit("keep", "value", lambda k, v: -v).write(str(tmp_path / "edited"))
    writer = SavepointWriter("keeping", clock=half)
    rows = [(key, {"value": 1, "items": [1, 2], "entries": {1: "a"}}) for key in all_of()]
    made = await writer.with_keyed_state("keep", Fading, rows).write(str(tmp_path / "made"))
    later = Later(AFTER * 5 / 4)
    for name in ("value", "items", "entries"):
        for found, count in ((kept, 0), (edited, 50 if name == "value" else 0), (made, 50)):
            async with state_processor.open(found, clock=later) as snapshot:
                rows_: Any = snapshot.state("keep", name)
                assert len([entry async for entry in rows_.entries()]) == count, (name, found)
    assert await entries_of(made, "keep", "items", Fading) == {key: [1, 2] for key in all_of()}


# ------------------------------------------------------------------------------------------------------ broadcast state
class Ruled(sa.KeyedBroadcastOperator[int, int, tuple[str, int], Any]):
    rules = sa.BroadcastState(str, int)
    seen = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, Any], /) -> None:
        self.seen.set(self.seen.get() + 1)
        ctx.emit((value, dict(self.rules)))

    def process_broadcast(self, rule: tuple[str, int], ctx: sa.Context[None, Any], /) -> None:
        self.rules[rule[0]] = rule[1]


def ruling(values: Any, rules: Any, out: Any) -> sa.Dataflow:
    flow = sa.Dataflow("ruling")
    keyed = flow.source("values", values, parallelism=1).key_by(lambda value: value % 5)
    keyed.connect_broadcast(flow.source("rules", rules, parallelism=1)).process("ruled", Ruled).sink("out", out)
    return flow


async def test_broadcast_state(tmp_path: Path) -> None:
    rules = [(f"r{number}", number) for number in range(20)]
    uri = await stored(
        ruling(ListSource(range(10)), ListSource(rules), sink()), config(tmp_path / "job", parallelism=3)
    )
    assert sorted(await rows_of(uri, "ruled", "rules")) == sorted(rules)
    assert sorted(await rows_of(uri, "ruled", "rules", Ruled)) == sorted(rules)
    async with opened(uri) as snapshot:
        info = snapshot.info("ruled", "rules")
        assert (info.kind, info.keyed, info.entries, info.subtasks) == ("broadcast", False, 60, {0: 20, 1: 20, 2: 20})
        assert info.type == "str → int"
        assert (await snapshot.state("ruled", "rules").to_arrow()).num_rows == 20
        copy = await snapshot.transform().rename_state("ruled", "rules", "laws").write(str(tmp_path / "copy"))
    assert sorted(await rows_of(copy, "ruled", "laws")) == sorted(rules)


async def test_broadcast_state_of_rows(tmp_path: Path) -> None:
    writer = SavepointWriter("ruling").with_operator_state("ruled", Ruled, {"rules": {"a": 1, "b": 2}})
    writer.with_keyed_state("ruled", Ruled, [(key, {"seen": 7}) for key in range(5)])
    made = await writer.write(str(tmp_path / "made"))
    out: ListSink[Any] = ListSink()
    settings = config(tmp_path / "job", parallelism=3)
    await sa.run(ruling(ListSource(range(10)), ListSource([]), out), settings, restore=made)
    assert sorted(out.values) == [(value, {"a": 1, "b": 2}) for value in range(10)]
    async with state_processor.open(str(tmp_path / "job")) as snapshot:
        assert dict([row async for row in snapshot.state("ruled", "seen")]) == dict.fromkeys(range(5), 9)


# -------------------------------------------------------------------------------------------- renamed and evolved state
class Renamed(sa.KeyedOperator[str, int, Any]):
    amount = sa.stored_as("plain", sa.ValueState(float, default=0.0))

    def process(self, number: int, ctx: sa.Context[str, Any], /) -> None:
        self.amount.set(self.amount.get() + number)
        ctx.emit((ctx.key, self.amount.get()))


async def test_state_stored_under_another_name(tmp_path: Path) -> None:
    writer = SavepointWriter("keeping").with_keyed_state("keep", Renamed, [("k1", {"amount": 5.0})])
    made = await writer.write(str(tmp_path / "made"))
    assert await rows_of(made, "keep", "plain", Renamed) == [("k1", 5.0)]
    out: ListSink[Any] = ListSink()
    await sa.run(keeping(ListSource([1]), out, Renamed), config(tmp_path / "job"), restore=made)
    assert out.values == [("k1", 6.0)]


class Grown(msgspec.Struct):
    """`Total`, later."""

    total: float
    count: float
    remark: str = "none"


@BACKENDS
@pytest.mark.parametrize("native", [False, True])
async def test_a_declaration_that_has_grown(tmp_path: Path, backend: str, native: bool) -> None:
    uri = await stored(keeping(numbers(), sink()), config(tmp_path / "job", backend=backend, incremental=native))
    declaration = sa.ValueState(Grown)
    expected = {key: Grown(number / 2, float(number)) for key, number in last_of().items()}
    assert await entries_of(uri, "keep", "total", declaration) == expected
    with pytest.raises(IncompatibleState, match="operator 'keep', state 'total'.*stored as"):
        await rows_of(uri, "keep", "total", types=int)
    with pytest.raises(IncompatibleState, match="stored as value state, now list state"):
        await rows_of(uri, "keep", "total", sa.ListState(int))
    async with opened(uri) as snapshot:
        change = snapshot.transform().with_types("keep", {"total": declaration})
        moved = await change.with_max_parallelism(3).write(str(tmp_path / "moved"))
        change = snapshot.transform().with_types("keep", {"total": declaration})
        kept = await change.drop_state("keep", "plain").write(str(tmp_path / "kept"))
        before = snapshot.info("keep", "total").schema
    assert await entries_of(moved, "keep", "total", declaration) == expected
    assert (await entries_of(moved, "keep", "total"))["k1"].keys() == {"total", "count", "remark"}
    async with opened(kept) as snapshot:
        assert snapshot.info("keep", "total").schema == before
    assert (await entries_of(kept, "keep", "total", Keeper))["k1"] == total_of(last_of()["k1"])


# --------------------------------------------------------------------------------------------------------- native files
async def test_native_files_of_rocksdb(tmp_path: Path) -> None:
    feed = Feed()
    feed.put(*range(300))
    async with dropped(keeping(feed, sink()), config(tmp_path / "job", backend="rocksdb", parallelism=3)) as job:
        await until(lambda: job.status == "running")
        async with asyncio.timeout(60):
            while await job.query("keep", "total", "k49") != total_of(299):
                await asyncio.sleep(0.005)
        uri = (await job.checkpoint()).uri
    async with opened(uri) as snapshot:
        assert NATIVE_FILES in snapshot.manifest.requires
        info = snapshot.info("keep", "numbers")
        assert info.entries == 50 and sum(size.entries for size in info.groups.values()) == 50
        assert snapshot.operator("keep").bytes > 0
        state: Any = snapshot.state("keep", "numbers")
        assert await state.get("k7") == all_of()["k7"]
    for name in ("total", "plain", "numbers", "totals", "anything"):
        canonical = await stored(keeping(numbers(), sink()), config(tmp_path / f"heap-{name}"))
        assert await entries_of(uri, "keep", name) == await entries_of(canonical, "keep", name)
        assert await entries_of(uri, "keep", name, Keeper) == await entries_of(canonical, "keep", name, Keeper)
    async with opened(uri) as snapshot:
        copy = (
            await snapshot.transform().edit("keep", "plain", lambda key, value: 2 * value).write(str(tmp_path / "copy"))
        )
        moved = await snapshot.transform().with_max_parallelism(7).write(str(tmp_path / "moved"))
    for made in (copy, moved):
        async with opened(made) as snapshot:
            assert NATIVE_FILES not in snapshot.manifest.requires
        assert await entries_of(made, "keep", "totals", Keeper) == await entries_of(uri, "keep", "totals", Keeper)
    feed.put(*range(300, 400))
    feed.end()
    after = await stored(keeping(feed, sink()), config(tmp_path / "next"), restore=moved)
    assert await entries_of(after, "keep", "numbers") == all_of(400)
