"""Rows of a stored state, as Python objects or as Arrow tables. How they are read is left to each kind of state."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from streamactors.state_processor import arrow
from streamactors.state_processor.overview import StateInfo

Row = tuple[Any, ...]

ARROW_ROWS: Final = 65_536


class StoredRows(ABC):
    """`async for row in rows`, or one of the `to_` methods. It can be read again and again.

    A row is a tuple; `columns` names its parts.
    """

    info: StateInfo
    columns: Sequence[str]

    @abstractmethod
    def lists(self) -> AsyncGenerator[list[Row], None]:
        """Rows, some at a time."""

    @abstractmethod
    def column_schemas(self) -> Mapping[str, Any]:
        """Of the columns whose type is known, the stored schema."""

    async def __aiter__(self) -> AsyncIterator[Row]:
        async with aclosing(self.lists()) as lists:
            async for rows in lists:
                for row in rows:
                    yield row

    async def count(self) -> int:
        """By reading all of them: expired ones are not counted, and of a map its entries are."""
        async with aclosing(self.lists()) as lists:
            return sum([len(rows) async for rows in lists])

    async def first(self, limit: int) -> list[Row]:
        """At most `limit` rows; reads no further."""
        taken: list[Row] = []
        async with aclosing(self.lists()) as lists:
            async for rows in lists:
                taken += rows[: limit - len(taken)]
                if len(taken) >= limit:
                    break
        return taken

    async def types_of(self, column: str, *, sample: int = 10_000) -> Counter[str]:
        """The classes of a column's values, such as the keys', among the first `sample` rows."""
        place = list(self.columns).index(column)
        return Counter(type(row[place]).__name__ for row in await self.first(sample))

    # ---------------------------------------------------------------------------------------------------------- arrow
    async def to_batches(self, rows: int = ARROW_ROWS) -> AsyncGenerator[Any, None]:
        """`pyarrow.RecordBatch`es of `rows` rows: for state that is larger than memory. Reads everything twice, since
        the columns' types are those of all values.

        Raises MissingExtra without pyarrow.
        """
        table = arrow.TableType(self.columns, self.column_schemas())
        async with aclosing(self.lists()) as lists:
            async for part in lists:
                table.observe(part)
        waiting: list[Row] = []
        async with aclosing(self.lists()) as lists:
            async for part in lists:
                waiting += part
                while len(waiting) >= rows:
                    yield table.batch(waiting[:rows])
                    del waiting[:rows]
        if waiting:
            yield table.batch(waiting)

    async def to_arrow(self) -> Any:
        """A `pyarrow.Table` of all rows. Instances of classes are struct columns, maps and dicts are map columns; see
        `docs/savepoints.md` for the rest. Raises MissingExtra without pyarrow."""
        table = arrow.TableType(self.columns, self.column_schemas())
        lists: list[list[Row]] = []
        async with aclosing(self.lists()) as parts:
            async for part in parts:
                table.observe(part)
                lists.append(part)
        return table.table(lists)

    async def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of all rows. Raises MissingExtra without pandas and pyarrow."""
        return arrow.to_pandas(await self.to_arrow())
