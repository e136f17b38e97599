"""Arrow tables of stored state: column types, and values that Arrow has no type for."""

import datetime as dt
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import streamactors as sa
from streamactors import state_processor
from streamactors.state_processor import SavepointWriter
from tests.programs import ROOT
from tests.state_processor.jobs import NOON, Colour, Note, Point, Total, opened, total_of


async def table_of(folder: Path, tp: Any, values: Any, *, declared: bool = False) -> Any:
    """The column of these values, each under a key of its own; written and read by its schema."""
    declaration = {"state": sa.ValueState[Any](tp, default=object())}
    rows = values.items() if isinstance(values, dict) else enumerate(values)
    writer = SavepointWriter("rows").with_keyed_state("keep", declaration, [(key, {"state": v}) for key, v in rows])
    uri = await writer.write(str(folder / str(len(list(folder.iterdir())))))
    async with opened(uri) as snapshot:
        table = await snapshot.state("keep", "state", declaration["state"] if declared else None).to_arrow()
    return table.sort_by("key") if pa.types.is_integer(table.schema.field("key").type) else table


TYPES: list[tuple[Any, list[Any], Any, list[Any]]] = [
    (int, [1, -5], pa.int64(), [1, -5]),
    (int, [1, 2**70], pa.string(), ["1", str(2**70)]),
    (float, [1.5, float("inf")], pa.float64(), [1.5, float("inf")]),
    (str, ["a", "ü"], pa.string(), ["a", "ü"]),
    (bytes, [b"a", b"\xff"], pa.binary(), [b"a", b"\xff"]),
    (bool, [True, False], pa.bool_(), [True, False]),
    (int | None, [1, None], pa.int64(), [1, None]),
    (Decimal, [Decimal("1.50"), Decimal("-123.456")], pa.decimal128(6, 3), [Decimal("1.500"), Decimal("-123.456")]),
    (Decimal, [Decimal("1E+3"), Decimal("NaN")], pa.string(), ["1E+3", "NaN"]),
    (UUID, [UUID(int=1)], pa.string(), [str(UUID(int=1))]),
    (dt.date, [NOON.date()], pa.date32(), [NOON.date()]),
    (dt.timedelta, [dt.timedelta(hours=1)], pa.duration("us"), [dt.timedelta(hours=1)]),
    (dt.time, [dt.time(1, 2)], pa.time64("us"), [dt.time(1, 2)]),
    (dt.datetime, [NOON], pa.timestamp("us", tz="UTC"), [NOON]),
    (dt.datetime, [NOON.astimezone(ZoneInfo("Asia/Tokyo"))], pa.timestamp("us", tz="UTC"), [NOON]),
    (dt.datetime, [dt.datetime(2024, 1, 1)], pa.timestamp("us"), [dt.datetime(2024, 1, 1)]),
    (dt.datetime, [NOON, dt.datetime(2024, 1, 1)], pa.string(), [NOON.isoformat(), "2024-01-01T00:00:00"]),
    (list[int], [[1, 2], []], pa.list_(pa.int64()), [[1, 2], []]),
    (frozenset[str], [frozenset({"a"})], pa.list_(pa.string()), [["a"]]),
    (tuple[int, str], [(1, "a")], pa.struct([("0", pa.int64()), ("1", pa.string())]), [{"0": 1, "1": "a"}]),
    (dict[str, int], [{"a": 1}], pa.map_(pa.string(), pa.int64()), [[("a", 1)]]),
    (Colour, [Colour.BLUE], pa.string(), ["blue"]),
    (Point | None, [Point(1, 2), None], pa.struct([("x", pa.int64()), ("y", pa.int64())]), [{"x": 1, "y": 2}, None]),
    (int | str, [1, "a"], pa.string(), ["1", '"a"']),
    (Any, [1, 2], pa.int64(), [1, 2]),
    (Any, [1, 2.5], pa.float64(), [1.0, 2.5]),
    (Any, [(1, "a")], pa.struct([("0", pa.int64()), ("1", pa.string())]), [{"0": 1, "1": "a"}]),
    (Any, [(1, "a"), "b"], pa.string(), ['[1, "a"]', '"b"']),
    (Any, [np.array([1.5, 2.5])], pa.list_(pa.float64()), [[1.5, 2.5]]),
]  # fmt: skip


@pytest.mark.parametrize(("tp", "values", "expected", "shown"), TYPES, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("declared", [False, True])
async def test_columns(tmp_path: Path, tp: Any, values: Any, expected: Any, shown: Any, declared: bool) -> None:
    table = await table_of(tmp_path, tp, values, declared=declared)
    assert table.schema == pa.schema([("key", pa.int64()), ("value", expected)])
    assert table.column("value").to_pylist() == shown


@pytest.mark.parametrize("declared", [False, True])
async def test_a_struct_is_a_struct_column(tmp_path: Path, declared: bool) -> None:
    table = await table_of(tmp_path, Total, [total_of(1), total_of(2)], declared=declared)
    kind = table.schema.field("value").type
    assert kind.field("total").type == pa.float64() and kind.field("price").type == pa.decimal128(3, 3)
    assert kind.field("notes").type == pa.list_(
        pa.struct([("text", pa.string()), ("at", pa.timestamp("us", tz="UTC"))])
    )
    assert kind.field("sizes").type == pa.map_(pa.string(), pa.struct([("0", pa.int64()), ("1", pa.float64())]))
    first = table.column("value").to_pylist()[0]
    assert (first["count"], first["place"], first["colour"]) == (1, {"x": 1, "y": -1}, "blue")
    assert first["notes"] == [{"text": note(1).text, "at": note(1).at}]


def note(number: int) -> Note:
    return total_of(number).notes[0]


async def test_fields_left_out_are_null(tmp_path: Path) -> None:
    class Sparse(msgspec.Struct, omit_defaults=True):
        a: int = 0
        b: str | None = None

    table = await table_of(tmp_path, Sparse, [Sparse(1), Sparse(b="x")])
    assert table.column("value").to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
    declared = await table_of(tmp_path, Sparse, [Sparse(1), Sparse(b="x")], declared=True)
    assert declared.column("value").to_pylist() == [{"a": 1, "b": None}, {"a": 0, "b": "x"}]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a", "b"], pa.string()),
        ([("a", 1), ("b", 2)], pa.struct([("0", pa.string()), ("1", pa.int64())])),
        (["a", 1], pa.string()),
        ([NOON], pa.timestamp("us", tz="UTC")),
        ([UUID(int=4)], pa.string()),
    ],
)
async def test_keys_by_what_they_are(tmp_path: Path, keys: list[Any], expected: Any) -> None:
    table = await table_of(tmp_path, int, dict.fromkeys(keys, 1))
    assert table.schema.field("key").type == expected and table.num_rows == len(keys)


async def test_lists_maps_and_batches(tmp_path: Path) -> None:
    declared = {"items": sa.ListState(Point), "entries": sa.MapState(str, float), "none": sa.ValueState(int)}
    rows = [(f"k{key}", {"items": [Point(key, 0)] * 2, "entries": {"a": 1.0, "b": key}}) for key in range(100)]
    writer = SavepointWriter("rows").with_keyed_state("keep", declared, rows)
    uri = await writer.write(str(tmp_path / "made"))
    async with opened(uri) as snapshot:
        items = await snapshot.state("keep", "items").to_arrow()
        entries = await snapshot.state("keep", "entries").to_arrow()
        empty = await snapshot.state("keep", "none").to_arrow()
        batches = [batch async for batch in snapshot.state("keep", "entries").to_batches(rows=64)]
        frame = await snapshot.state("keep", "entries").to_pandas()
    assert items.schema.field("value").type == pa.list_(pa.struct([("x", pa.int64()), ("y", pa.int64())]))
    assert entries.schema.names == ["key", "map_key", "value"] and entries.num_rows == 200
    assert empty.num_rows == 0 and empty.schema == pa.schema([("key", pa.null()), ("value", pa.int64())])
    assert [batch.num_rows for batch in batches] == [64, 64, 64, 8]
    assert pa.Table.from_batches(batches).equals(entries.combine_chunks())
    assert frame["value"].sum() == sum(range(100)) + 100


async def test_the_type_of_a_column_is_that_of_all_its_values(tmp_path: Path) -> None:
    """Also of those that a first batch does not hold."""
    table_rows = [(key, {"state": 1 if key < 900 else 2**70}) for key in range(1000)]
    writer = SavepointWriter("rows").with_keyed_state("keep", {"state": sa.ValueState(int)}, table_rows)
    uri = await writer.write(str(tmp_path / "made"))
    async with opened(uri) as snapshot:
        batches = [batch async for batch in snapshot.state("keep", "state").to_batches(rows=10)]
    assert {str(batch.schema.field("value").type) for batch in batches} == {"string"}


WITHOUT = """
import asyncio, sys
sys.modules[sys.argv[1]] = None
import streamactors as sa
from streamactors import state_processor

async def main(uri):
    await state_processor.SavepointWriter("rows").with_keyed_state("keep", {"s": sa.ValueState(int)}, []).write(uri)
    async with state_processor.open(uri) as snapshot:
        try:
            await snapshot.state("keep", "s").to_pandas()
        except sa.MissingExtra as error:
            print(error)

asyncio.run(main(sys.argv[2]))
"""


@pytest.mark.parametrize(("package", "extra"), [("pyarrow", "parquet"), ("pandas", "pandas")])
def test_a_missing_extra_is_named(tmp_path: Path, package: str, extra: str) -> None:
    args = [sys.executable, "-c", WITHOUT, package, str(tmp_path / "made")]
    printed = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"pip install 'streamactors[{extra}]'" in printed.stdout


def test_nothing_heavy_is_imported() -> None:
    script = "import sys, streamactors.state_processor; print([m for m in ('pyarrow', 'pandas') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == "[]\n" and state_processor.__doc__
