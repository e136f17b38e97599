"""Measuring how busy a subtask is costs something only where it waits: which is seldom."""

from benchmarks import events, load
from streamactors.runtime import assembly
from streamactors.runtime.load import Load

RECORDS = 20_000


def test_waits_are_few_beside_records() -> None:
    rows = load.measure(events.orders(RECORDS, 1000), rounds=1)
    assert [row.capacity for row in rows] == list(load.CAPACITIES)
    assert all(0 < row.waits < RECORDS / 20 for row in rows), rows
    assert vars(assembly)["Load"] is Load
    assert load.table(rows).row_count == 2
