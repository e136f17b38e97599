"""Looking into checkpoints and savepoints: every kind of state comes out as it was put in."""

from pathlib import Path
from typing import Any

import pytest

from tests.state_processor.jobs import (
    Keeper,
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
