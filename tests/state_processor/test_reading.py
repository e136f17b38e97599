"""Looking into checkpoints and savepoints: every kind of state comes out as it was put in."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from streamactors.errors import IncompatibleState, InvalidDataflow, StateAccessError
from tests.recovery.flows import dropped
from tests.runtime.feeds import Feed
from tests.state_processor.jobs import (
    Keeper,
    Total,
    all_of,
    as_dict,
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


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_every_kind_as_declared_and_by_its_schema(tmp_path: Path, backend: str) -> None:
    uri = await stored(keeping(numbers(), sink()), config(tmp_path, backend=backend))
    last, lists = last_of(), all_of()
    assert dict(await rows_of(uri, "keep", "total", Keeper.total)) == {k: total_of(n) for k, n in last.items()}
    assert dict(await rows_of(uri, "keep", "total", Keeper)) == {k: total_of(n) for k, n in last.items()}
    assert dict(await rows_of(uri, "keep", "total")) == {k: as_dict(n) for k, n in last.items()}
    assert dict(await rows_of(uri, "keep", "plain")) == {k: float(sum(found)) for k, found in lists.items()}
    assert dict(await rows_of(uri, "keep", "numbers")) == lists
    assert dict(await rows_of(uri, "keep", "anything")) == {k: (k, n, {n}) for k, n in last.items()}
    maps = {key: {number % 3: total_of(number) for number in found} for key, found in lists.items()}
    assert await entries_of(uri, "keep", "totals", Keeper.totals) == maps
    rows = await rows_of(uri, "keep", "totals", Keeper.totals)
    assert sorted(row[:2] for row in rows) == sorted((key, inner) for key, held in maps.items() for inner in held)
    assert all(row[2] == maps[row[0]][row[1]] for row in rows)
    generic: Any = {key: {inner: as_dict(each.count) for inner, each in held.items()} for key, held in maps.items()}
    assert await entries_of(uri, "keep", "totals") == generic


async def test_one_key(tmp_path: Path) -> None:
    uri = await stored(keeping(numbers(), sink()), config(tmp_path))
    async with opened(uri) as snapshot:
        state: Any = snapshot.state("keep", "numbers")
        assert await state.get("k7") == all_of()["k7"]
        assert await state.get("nobody") is None and await state.get("nobody", []) == []
        maps: Any = snapshot.state("keep", "totals")
        assert (await maps.get("k7")).keys() == {0, 1, 2}


async def test_by_types(tmp_path: Path) -> None:
    uri = await stored(keeping(numbers(), sink()), config(tmp_path))
    assert dict(await rows_of(uri, "keep", "total", types=Total)) == {k: total_of(n) for k, n in last_of().items()}
    assert dict(await rows_of(uri, "keep", "numbers", types=float)) == {
        k: list(map(float, v)) for k, v in all_of().items()
    }
    rows = await rows_of(uri, "keep", "totals", types=(int, Total))
    assert all(isinstance(total, Total) and total.count % 3 == inner for _, inner, total in rows)
    async with opened(uri) as snapshot:
        with pytest.raises(InvalidDataflow, match="'totals' is a map: give types="):
            snapshot.state("keep", "totals", types=Total)
        with pytest.raises(InvalidDataflow, match="a declaration or types, not both"):
            snapshot.state("keep", "total", Keeper.total, types=Total)
        with pytest.raises(IncompatibleState, match="operator 'keep', state 'total'"):
            snapshot.state("keep", "total", types=int)


async def test_what_there_is(tmp_path: Path) -> None:
    uri = await stored(keeping(numbers(), sink()), config(tmp_path))
    async with opened(uri) as snapshot:
        assert list(snapshot.operators) == ["numbers", "keep", "out"] and snapshot.in_flight == []
        assert snapshot.operator("numbers").positions == {"0/1": 300}
        keep = snapshot.operator("keep")
        assert (keep.kind, keep.parallelism, keep.max_parallelism, keep.named) == ("process", 2, 128, True)
        assert {name: (info.kind, info.type) for name, info in keep.states.items()} == {
            "total": ("value", "Total"),
            "plain": ("value", "float"),
            "numbers": ("list", "int"),
            "totals": ("map", "int → Total"),
            "anything": ("value", "any"),
        }
        assert keep.bytes == sum(info.bytes for info in keep.states.values())
        assert all(info.entries == sum(size.entries for size in info.groups.values()) for info in keep.states.values())
        largest = keep.states["total"].largest_groups(2)
        assert len(largest) == 2 and largest[0][1].entries >= largest[1][1].entries >= 1
        assert await snapshot.state("keep", "totals").types_of("map_key") == {"int": 150}
        for call, message in (
            (lambda: snapshot.operator("kept"), "holds no operator 'kept'; it holds: numbers, keep, out"),
            (lambda: snapshot.state("keep", "plian"), "no state 'plian' in .*; it has: total, plain"),
            (lambda: snapshot.state("keep", "total", Path), "declares no state 'total'"),
        ):
            with pytest.raises(StateAccessError, match=message):
                call()


class Adding(sa.KeyedOperator[int, int, Any]):
    total = sa.ValueState(int, default=0)
    held = sa.ListState(int)

    def process(self, number: int, ctx: sa.Context[int, Any], /) -> None:
        self.total.set(self.total.get() + number)
        self.held.append(number)


@pytest.mark.parametrize("backend", [sa.Heap(incremental=True, full_every=100), "rocksdb"], ids=["heap", "rocksdb"])
async def test_a_checkpoint_that_refers_to_earlier_ones(tmp_path: Path, backend: Any) -> None:
    feed = Feed()
    flow = sa.Dataflow("adding")
    flow.source("numbers", feed, parallelism=1).key_by(lambda number: number % 100).process("add", Adding).sink(
        "out", sink()
    )
    every: list[int] = []
    async with dropped(flow, config(tmp_path / "job", backend=backend)) as job:
        for portion in (range(300), range(5), range(40, 42)):
            feed.put(*portion)
            every += portion
            async with asyncio.timeout(60):
                while sum([await job.query("add", "total", key) for key in range(100)]) < sum(every):
                    await asyncio.sleep(0.005)
            uri = (await job.checkpoint()).uri
    expected = {key: [number for number in every if number % 100 == key] for key in range(100)}
    assert await entries_of(uri, "add", "held") == expected
    async with opened(uri) as snapshot:
        files = snapshot.manifest.files
        assert len(snapshot.manifest.own_files) < len(files)
        made = await snapshot.transform().edit("add", "total", lambda key, total: -total).write(str(tmp_path / "made"))
    shutil.rmtree(tmp_path / "job")
    assert await entries_of(made, "add", "held") == expected
    assert await entries_of(made, "add", "total") == {key: -sum(held) for key, held in expected.items()}
