"""What must come out of each query, by DuckDB: one file of SQL for each, over tables made of the same events.

The tables are `person`, `auction`, `bid` (with `ts` for the event's time) and `side`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa

from benchmarks.nexmark.model import Auction, Bid, Event, Person

_FOLDER = Path(__file__).parent
_TYPES = {int: pa.int64(), str: pa.string()}


class Oracle:
    """Answers by the name of a query, such as "q7". Holds one connection: use it as a context manager."""

    def __init__(self, events: Sequence[Event], side: Iterable[tuple[int, str]] = ()) -> None:
        self._connection = duckdb.connect()
        for kind in (Person, Auction, Bid):
            self._register(kind.__name__.lower(), kind, [event for event in events if type(event) is kind])
        keys, values = zip(*side, strict=True) if (side := list(side)) else ((), ())
        self._connection.register("side", pa.table({"key": pa.array(keys, pa.int64()), "value": pa.array(values)}))

    def _register(self, name: str, kind: type[msgspec.Struct], events: Sequence[Any]) -> None:
        columns = {
            "ts" if field.name == "time" else field.name: pa.array(
                [getattr(event, field.name) for event in events], _TYPES[field.type]
            )
            for field in msgspec.structs.fields(kind)
        }
        self._connection.register(name, pa.table(columns))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """In no order."""
        return self._connection.execute((_FOLDER / f"{query}.sql").read_text()).fetchall()

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
