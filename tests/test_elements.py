"""Batches: columns stay parallel through every operation."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streamactors.elements import Barrier, Batch, OutputTag

COLUMNS = st.lists(st.tuples(st.integers(), st.one_of(st.none(), st.integers()), st.text(max_size=2)), min_size=1)


def batch_of(rows: list[Any]) -> Batch:
    numbers = list(range(len(rows)))
    return Batch([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], numbers, numbers, "s:")


def rows_of(batch: Batch) -> list[Any]:
    assert batch.timestamps is not None and batch.keys is not None
    assert batch.groups is not None and list(batch.groups) == list(batch.origins or ())
    return list(zip(batch.values, batch.timestamps, batch.keys, strict=True))


@given(COLUMNS, st.data())
def test_parts_of_a_batch(rows: list[Any], data: st.DataObject) -> None:
    batch, size = batch_of(rows), len(rows)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    assert rows_of(batch.slice(start, stop)) == rows[start:stop]
    step = data.draw(st.integers(1, 4))
    assert rows_of(batch.stride(min(start, step - 1), step)) == rows[min(start, step - 1) :: step]
    mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    assert rows_of(batch.select(mask)) == [row for row, chosen in zip(rows, mask, strict=True) if chosen]
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1))
    assert rows_of(batch.take(indices)) == [rows[index] for index in indices]


def test_missing_columns_stay_missing() -> None:
    part = Batch([1, 2, 3]).slice(1, 3)
    assert part.values == [2, 3] and part.timestamps is part.keys is part.groups is part.origins is None
    assert part.origin(0) is None


def test_other_values_lose_the_keys_but_neither_their_groups_nor_the_origin() -> None:
    before = batch_of([(1, 10, "a")])
    batch = before.with_values(["x"])
    assert batch.keys is None and batch.timestamps == [10] and batch.origin(0) == "s:0"
    assert batch.groups == before.groups and batch.unplaced().groups is None


def test_bytes_are_estimated_from_what_values_hold() -> None:
    assert Batch([]).estimated_bytes() == 0
    assert Batch([b"x" * 1000] * 10).estimated_bytes() > 10_000
    assert Batch([{"text": "x" * 1000}] * 10).estimated_bytes() > 10_000


def test_a_barrier_with_a_target_is_a_savepoint() -> None:
    assert Barrier(1, "file:///s").savepoint and not Barrier(1).savepoint


def test_tags_are_equal_by_name() -> None:
    assert OutputTag("late", int) == OutputTag("late", str) != OutputTag("early", int)
    assert len({OutputTag("late", int), OutputTag("late", str)}) == 1
