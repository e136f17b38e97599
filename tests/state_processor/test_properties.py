"""Rows that are written come out again, whatever they are, in however many blocks."""

import asyncio
import datetime as dt
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamactors as sa
from streamactors import state_processor
from streamactors.state.key_groups import key_group
from streamactors.state_processor import SavepointWriter

pytestmark = pytest.mark.slow

DECLARED = {
    "value": sa.ValueState[Any](int | str | None, default=None),
    "items": sa.ListState(tuple[int, str]),
    "entries": sa.MapState(str, dict[str, float]),
    "anything": sa.ValueState[Any](Any, default=object()),
}

plain = st.text() | st.integers() | st.binary() | st.booleans() | st.none() | st.decimals(allow_nan=False)
times = st.datetimes(timezones=st.sampled_from([None, dt.UTC]))
keys = plain | times | st.uuids() | st.tuples(plain, plain) | st.frozensets(plain, max_size=3)
held = st.fixed_dictionaries(
    {},
    optional={
        "value": st.integers() | st.text() | st.none(),
        "items": st.lists(st.tuples(st.integers(), st.text()), max_size=5),
        "entries": st.dictionaries(
            st.text(), st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3), max_size=3
        ),
        "anything": keys | st.lists(keys, max_size=3),
    },
)
tables = st.dictionaries(keys, held, max_size=30)


def expected(rows: dict[Any, Any], name: str) -> dict[Any, Any]:
    """Nothing is kept of an empty list or map."""
    several = name in ("items", "entries")
    return {key: states[name] for key, states in rows.items() if name in states and (states[name] or not several)}


def exactly(value: Any) -> Any:
    """Tells 1 from True and 1.0."""
    parts = map(exactly, value) if isinstance(value, list | tuple | frozenset) else [value]
    return type(value), frozenset(parts) if isinstance(value, frozenset) else tuple(parts)


async def found(uri: str, name: str, declaration: Any) -> dict[Any, Any]:
    async with state_processor.open(uri, verify="digests") as snapshot:
        rows: Any = snapshot.state("keep", name, declaration)
        return {key: value async for key, value in rows.entries()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables, st.sampled_from([1, 7, 128]), st.booleans(), st.booleans())
def test_rows_to_a_savepoint_to_rows_is_the_identity(
    rows: dict[Any, Any], max_parallelism: int, spilling: bool, transformed: bool
) -> None:
    async def check(folder: str) -> None:
        writer = SavepointWriter("rows", max_parallelism=max_parallelism)
        uri = await writer.with_keyed_state("keep", DECLARED, rows.items()).write(f"{folder}/made")
        if transformed:
            async with state_processor.open(uri) as snapshot:
                uri = await snapshot.transform().with_max_parallelism(5).write(f"{folder}/other")
                max_after = 5
        else:
            max_after = max_parallelism
        for name, declaration in DECLARED.items():
            for given_ in (declaration, None):
                assert same(await found(uri, name, given_), expected(rows, name))
        async with state_processor.open(uri) as snapshot:
            assert snapshot.operator("keep").max_parallelism == max_after
            for key in list(rows)[:3]:
                state: Any = snapshot.state("keep", "anything")
                assert await state.get(key, "none") == rows[key].get("anything", "none")
                if "value" in rows[key]:
                    assert key_group(key, max_after) in snapshot.info("keep", "value").groups

    def same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
        return one == other and all(exactly(value) == exactly(other[key]) for key, value in one.items())

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        if spilling:
            patch.setattr("streamactors.state_processor.regrouping.WAITING_BYTES", 1)
            patch.setattr("streamactors.state_processor.bootstrap._PORTION", 3)
        asyncio.run(check(folder))
        assert {path.name for path in Path(folder).glob("*/*")} <= {"manifest", "0001-keep", "0002-keep"}


def test_decimals_that_are_equal_are_one_key(tmp_path: Path) -> None:
    rows = [(Decimal("1.0"), {"items": [(1, "a")]}), (1, {"items": [(2, "b")]}), (True, {"items": [(3, "c")]})]
    uri = asyncio.run(SavepointWriter("rows").with_keyed_state("keep", DECLARED, rows).write(str(tmp_path / "made")))
    assert asyncio.run(found(uri, "items", None)) == {1: [(1, "a"), (2, "b"), (3, "c")]}
