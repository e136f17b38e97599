"""Savepoints made of rows: a job goes on from them as from its own."""

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors import state_processor
from streamactors.errors import (
    IncompatibleState,
    InvalidConfig,
    InvalidDataflow,
    UnserialisableKey,
    UnserialisableValue,
)
from streamactors.state_processor import SavepointWriter
from tests.programs import ROOT
from tests.state_processor.jobs import (
    Keeper,
    all_of,
    config,
    entries_of,
    keeping,
    key_of,
    last_of,
    numbers,
    opened,
    rows_of,
    sink,
    stored,
    total_of,
)

pytestmark = pytest.mark.slow


def kept_rows(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `Keeper` has after the numbers below `count`."""
    for key, found in all_of(count).items():
        last = last_of(count)[key]
        yield (
            key,
            {
                "total": total_of(last),
                "plain": sum(found),
                "numbers": found,
                "totals": {number % 3: total_of(number) for number in found},
                "anything": (key, last, {last}),
            },
        )


async def all_states(uri: str) -> dict[str, dict[Any, Any]]:
    return {name: await entries_of(uri, "keep", name, Keeper) for name in vars(Keeper) if name in STATES}


STATES = ("total", "plain", "numbers", "totals", "anything")


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_a_job_goes_on_as_from_its_own(tmp_path: Path, backend: str, parallelism: int) -> None:
    whole = await stored(keeping(numbers(300), sink()), config(tmp_path / "whole"))
    first = await stored(keeping(numbers(120), sink()), config(tmp_path / "first"))
    writer = SavepointWriter("keeping").with_keyed_state("keep", Keeper, kept_rows(120))
    made = await writer.write(str(tmp_path / "made"))
    assert await all_states(made) == await all_states(first)

    settings = config(tmp_path / "rest", backend=backend, parallelism=parallelism)
    rest = await stored(keeping(ListSource(range(120, 300)), sink()), settings, restore=made)
    assert await all_states(rest) == await all_states(whole)


async def test_positions_and_lists(tmp_path: Path) -> None:
    class Holder(sa.Operator[int, int]):
        held = sa.OperatorListState(int)
        known = sa.UnionListState(str)

        def process(self, value: int, ctx: sa.Context[None, int], /) -> None:
            ctx.emit(value)

        def close(self) -> None:
            found.append((sorted(self.held), list(self.known)))

    def flow_of() -> sa.Dataflow:
        flow = sa.Dataflow("holding")
        flow.source("numbers", ListSource(range(10)), parallelism=1).process("hold", Holder).sink("out", out)
        return flow

    found: list[Any] = []
    out: ListSink[int] = ListSink()
    uri = await (
        SavepointWriter("holding")
        .with_operator_state("hold", Holder, {"held": range(7), "known": ["a", "b"]})
        .with_source_positions("numbers", {"0/1": 6})
        .write(str(tmp_path / "made"))
    )
    await sa.run(flow_of(), config(tmp_path / "job", parallelism=3), restore=uri)
    assert sorted(out.values) == [6, 7, 8, 9]
    assert sorted(item for held, _ in found for item in held) == list(range(7))
    assert [known for _, known in found] == [["a", "b"]] * 3
    assert await rows_of(uri, "hold", "held") == [(0, item) for item in range(7)]
    assert await rows_of(uri, "hold", "known") == [(0, "a"), (0, "b")]


async def test_the_state_of_reduce(tmp_path: Path) -> None:
    def flow_of(values: list[int]) -> sa.Dataflow:
        flow = sa.Dataflow("sums")
        flow.source("n", ListSource(values)).key_by(lambda n: n % 3).reduce("sum", lambda a, b: a + b).sink("out", out)
        return flow

    out: ListSink[int] = ListSink()
    state = {"result": sa.ValueState(Any, default=object())}
    writer = SavepointWriter("sums").with_keyed_state(
        "sum", state, [(0, {"result": 100}), (1, {"result": 200})], kind="reduce"
    )
    uri = await writer.write(str(tmp_path / "made"))
    await sa.run(flow_of([0, 1, 2]), config(tmp_path / "job"), restore=uri)
    assert sorted(out.values) == [2, 100, 201]


async def test_rows_of_one_key_are_joined_and_a_second_value_is_refused(tmp_path: Path) -> None:
    class Many(sa.KeyedOperator[str, int, int]):
        items = sa.ListState(int)
        entries = sa.MapState(str, int)
        value = sa.ValueState(int, default=0)

        def process(self, value: int, ctx: sa.Context[str, int], /) -> None: ...

    rows = [("a", {"items": [1], "entries": {"x": 1}}), ("a", {"items": [2, 3], "entries": {"y": 2}}), ("b", {})]
    uri = await SavepointWriter("many").with_keyed_state("keep", Many, rows).write(str(tmp_path / "joined"))
    assert await rows_of(uri, "keep", "items") == [("a", [1, 2, 3])]
    assert await rows_of(uri, "keep", "entries") == [("a", "x", 1), ("a", "y", 2)]
    twice = [("a", {"value": 1}), ("b", {"value": 1}), ("a", {"value": 2})]
    with pytest.raises(IncompatibleState, match="state 'value': the key 'a' comes twice"):
        await SavepointWriter("many").with_keyed_state("keep", Many, twice).write(str(tmp_path / "twice"))
    assert not (tmp_path / "twice").exists()


class One(sa.KeyedOperator[Any, int, int]):
    value = sa.ValueState(int, default=0)
    items = sa.ListState(str)
    held = sa.MapState(str, int, ttl=sa.Ttl(dt.timedelta(days=1)))

    def process(self, value: int, ctx: sa.Context[Any, int], /) -> None:
        ctx.emit(value)


async def slowly(rows: Any) -> AsyncIterator[Any]:
    for row in rows:
        await asyncio.sleep(0)
        yield row


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (("a", {"valeu": 1}), InvalidDataflow, "declares no state 'valeu', which the row of key 'a' has"),
        (
            ("a", {"value": "x"}),
            UnserialisableValue,
            "operator 'keep', state 'value', key 'a': expected int, found str",
        ),
        (
            ("a", {"items": "xyz"}),
            UnserialisableValue,
            "operator 'keep', state 'items', key 'a': expected a list of its items, found 'xyz'",
        ),
        (("a", {"items": 5}), UnserialisableValue, "expected a list of its items, found 5"),
        (("a", {"held": [("x", 1)]}), UnserialisableValue, "state 'held', key 'a': expected a dict of its entries"),
        (("a", {"held": None}), UnserialisableValue, "expected a dict of its entries, found None"),
        (([1], {"value": 1}), UnserialisableKey, "can be changed"),
        ((float("nan"), {"value": 1}), UnserialisableKey, "NaN"),
    ],
)
async def test_a_row_that_does_not_fit_leaves_nothing(tmp_path: Path, row: Any, error: Any, message: str) -> None:
    rows = [(key, {"value": key}) for key in range(1000)] + [row]
    writer = SavepointWriter("one").with_keyed_state("keep", One, slowly(rows))
    with pytest.raises(error, match=message):
        await writer.write(str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()


async def test_rows_are_read_once(tmp_path: Path) -> None:
    rows: list[Any] = [("a", {"value": 1, "items": (letter for letter in "xy")})]
    both: list[Any] = [iter(rows), slowly([("a", {"value": 1})])]
    for index, given in enumerate(both):
        writer = SavepointWriter("one").with_keyed_state("keep", One, given)
        uri = await writer.write(str(tmp_path / f"first-{index}"))
        assert await entries_of(uri, "keep", "value") == {"a": 1}
        with pytest.raises(InvalidDataflow, match="operator 'keep': its rows come from an iterator, which an earlier"):
            await writer.write(str(tmp_path / f"second-{index}"))
        assert not (tmp_path / f"second-{index}").exists()
    writer = SavepointWriter("one").with_keyed_state("keep", One, [("a", {"value": 1})])
    for name in ("one", "two"):
        assert await entries_of(await writer.write(str(tmp_path / name)), "keep", "value") == {"a": 1}


async def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(InvalidConfig, match="not empty"):
        await SavepointWriter("one").with_keyed_state("keep", One, []).write(str(tmp_path / "used"))
    assert (tmp_path / "used" / "file").exists()
    with pytest.raises(InvalidConfig, match="max_parallelism 0"):
        SavepointWriter("one", max_parallelism=0)
    with pytest.raises(InvalidConfig, match="flow name"):
        SavepointWriter("")
    with pytest.raises(InvalidDataflow, match="has its keyed state already"):
        SavepointWriter("one").with_keyed_state("keep", One, []).with_keyed_state("keep", One, [])
    with pytest.raises(InvalidDataflow, match="'keep' is either a source, with positions, or an operator with state"):
        SavepointWriter("one").with_keyed_state("keep", One, []).with_source_positions("keep", {})
    with pytest.raises(InvalidDataflow, match="'keep' is either a source"):
        SavepointWriter("one").with_source_positions("keep", {}).with_keyed_state("keep", One, [])
    declared = {"parts": sa.OperatorListState(str), "rules": sa.BroadcastState(str, int)}
    for wrong, expected in (("xyz", "a list"), (5, "a list")):
        with pytest.raises(InvalidDataflow, match=f"state 'parts': expected {expected} of what it is to hold"):
            SavepointWriter("one").with_operator_state("keep", declared, {"parts": wrong})
    with pytest.raises(InvalidDataflow, match="state 'rules': expected a dict of what it is to hold"):
        SavepointWriter("one").with_operator_state("keep", declared, {"rules": [("a", 1)]})
    with pytest.raises(InvalidDataflow, match="declares no state without a key"):
        SavepointWriter("one").with_operator_state("keep", One, {})


async def test_another_max_parallelism_is_kept_by_the_job(tmp_path: Path) -> None:
    rows = [(key, {"value": key}) for key in range(100)]
    writer = SavepointWriter("one", max_parallelism=7).with_keyed_state("keep", One, rows)
    uri = await writer.write(str(tmp_path / "made"))
    flow = sa.Dataflow("one")
    flow.source("n", ListSource([1])).key_by(lambda n: n).process("keep", One).sink("out", sink())
    after = await stored(flow, config(tmp_path / "job", parallelism=3), restore=uri)
    async with opened(after) as snapshot:
        assert snapshot.operator("keep").max_parallelism == 7
        assert snapshot.info("keep", "value").groups.keys() == set(range(7))
    assert await entries_of(after, "keep", "value") == {key: key for key in range(100)}


MANY = """
import asyncio, resource, sys
import streamactors as sa
from streamactors import state_processor

class Big(sa.KeyedOperator[str, int, int]):
    text = sa.ValueState(str, default="")

    def process(self, value, ctx): ...

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main(uri, count, max_parallelism):
    rows = ((f"key-{(n * 7919) % count}", {"text": f"{n:0400}"}) for n in range(count))
    few = state_processor.SavepointWriter("big").with_keyed_state("keep", Big, [("a", {"text": "a"})])
    await few.write(uri + "-few")
    before = peak()
    writer = state_processor.SavepointWriter("big", max_parallelism=max_parallelism)
    await writer.with_keyed_state("keep", Big, rows).write(uri)
    writing, seen = peak(), 0
    async with state_processor.open(uri) as snapshot:
        info = snapshot.info("keep", "text")
        assert info.entries == count and info.bytes > 400 * count and len(info.groups) == max_parallelism
        async for key, value in snapshot.state("keep", "text"):
            assert key == f"key-{(int(value) * 7919) % count}"
            seen += 1
    assert seen == count
    print(writing - before, peak() - before)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize("max_parallelism", [128, 4096])
def test_many_rows_in_bounded_memory(tmp_path: Path, max_parallelism: int) -> None:
    """In any order: 80 MB of them, of which about 16 MB are held at a time."""
    args = [sys.executable, "-c", MANY, str(tmp_path / "made"), "200000", str(max_parallelism)]
    printed = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    writing, in_all = map(int, printed.stdout.split())
    assert max(writing, in_all) < 55, "MB more than before"
    assert [path.name for path in sorted((tmp_path / "made").iterdir())] == ["0002-keep", "manifest"]


def test_a_script_without_a_loop(tmp_path: Path) -> None:
    writer = SavepointWriter("keeping").with_keyed_state("keep", Keeper, kept_rows(120))
    uri = state_processor.write_blocking(writer.write(str(tmp_path / "made")))
    with state_processor.open_blocking(uri) as snapshot:
        assert snapshot.flow == "keeping" and list(snapshot.operators) == ["keep"] and snapshot.in_flight == []
        numbers_ = snapshot.state("keep", "numbers")
        assert dict(numbers_) == all_of(120)
        assert numbers_.get("k3") == all_of(120)["k3"]
        assert numbers_.count() == 50 and len(numbers_.first(3)) == 3
        assert numbers_.types_of("key") == {"str": 50} and numbers_.columns == ["key", "value"]
        assert numbers_.to_arrow().num_rows == 50
        assert sum(batch.num_rows for batch in numbers_.to_batches(7)) == 50
        assert key_of(7) in set(numbers_.to_pandas()["key"])
        change = snapshot.transform().drop_state("keep", "total")
        other = snapshot.write(change, str(tmp_path / "other"))
    with state_processor.open_blocking(other) as snapshot:
        assert "total" not in snapshot.operators["keep"].states


async def test_the_blocking_form_is_refused_inside_a_loop(tmp_path: Path) -> None:
    with pytest.raises(sa.StateAccessError, match=r"await state_processor\.open"):
        state_processor.open_blocking(str(tmp_path))
    with pytest.raises(sa.StateAccessError, match="event loop"):
        state_processor.write_blocking(SavepointWriter("one").write(str(tmp_path)))
