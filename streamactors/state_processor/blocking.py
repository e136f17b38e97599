"""The same for scripts without an event loop: each call runs one until it is done.

In a notebook, which has one running, `await` the methods of `Snapshot` instead.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from streamactors.checkpoint.restorable import Verify
from streamactors.errors import StateAccessError
from streamactors.state.descriptors import Declaration
from streamactors.state_processor.overview import InFlightInfo, OperatorInfo, StateInfo
from streamactors.state_processor.rows import ARROW_ROWS, Row, StoredRows
from streamactors.state_processor.snapshot import Snapshot, open
from streamactors.state_processor.stored_states import KeyedRows
from streamactors.state_processor.transformation import Transformation
from streamactors.state_processor.types import Types

T = TypeVar("T")


class BlockingSnapshot:
    """See `Snapshot`. Close it, or leave its `with` block, when done."""

    def __init__(self, uri: str, flow: str | None, verify: Verify) -> None:
        _refuse_in_loop()
        self._runner = asyncio.Runner()
        try:
            self.opened: Snapshot = self._runner.run(_opened(uri, flow, verify))
        except BaseException:
            self._runner.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._runner.run(self.opened.close())
        finally:
            self._runner.close()

    @property
    def uri(self) -> str:
        return self.opened.uri

    @property
    def flow(self) -> str:
        return self.opened.flow

    @property
    def operators(self) -> Mapping[str, OperatorInfo]:
        return self.opened.operators

    @property
    def in_flight(self) -> list[InFlightInfo]:
        return self.opened.in_flight

    def state(
        self, uid: str, name: str, declaration: Declaration | type | None = None, *, types: Types = None
    ) -> "BlockingRows":
        return BlockingRows(self.opened.state(uid, name, declaration, types=types), self._runner.run)

    def transform(self) -> Transformation:
        """To be written by `write`."""
        return self.opened.transform()

    def write(self, change: Transformation, uri: str) -> str:
        """See `Transformation.write`."""
        return self._runner.run(change.write(uri))


class BlockingRows:
    """See `StoredRows`: `for row in rows`."""

    def __init__(self, rows: StoredRows, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._rows = rows
        self._run = run

    @property
    def info(self) -> StateInfo:
        return self._rows.info

    @property
    def columns(self) -> list[str]:
        return list(self._rows.columns)

    def __iter__(self) -> Iterator[Row]:
        for rows in self._each(self._rows.lists()):
            yield from rows

    def to_batches(self, rows: int = ARROW_ROWS) -> Iterator[Any]:
        return self._each(self._rows.to_batches(rows))

    def _each(self, generator: Any) -> Iterator[Any]:
        try:
            while (item := self._run(_next(generator))) is not None:
                yield item
        finally:
            self._run(generator.aclose())

    def get(self, key: Any, default: Any = None) -> Any:
        """Of keyed state."""
        if not isinstance(self._rows, KeyedRows):
            raise StateAccessError(f"operator {self.info.uid!r}, state {self.info.name!r} belongs to no key")
        return self._run(self._rows.get(key, default))

    def count(self) -> int:
        found: int = self._run(self._rows.count())
        return found

    def first(self, limit: int) -> list[Row]:
        found: list[Row] = self._run(self._rows.first(limit))
        return found

    def types_of(self, column: str) -> Counter[str]:
        found: Counter[str] = self._run(self._rows.types_of(column))
        return found

    def to_arrow(self) -> Any:
        return self._run(self._rows.to_arrow())

    def to_pandas(self) -> Any:
        return self._run(self._rows.to_pandas())


def open_blocking(uri: str, *, flow: str | None = None, verify: Verify = "sizes") -> BlockingSnapshot:
    """As `open`, for `with`. Raises StateAccessError inside a running event loop."""
    return BlockingSnapshot(uri, flow, verify)


def write_blocking(writing: Coroutine[Any, Any, T]) -> T:
    """The result of `SavepointWriter.write(…)`, in a script: `write_blocking(writer.write(uri))`."""
    try:
        _refuse_in_loop()
    except StateAccessError:
        writing.close()
        raise
    return asyncio.run(writing)


def _refuse_in_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise StateAccessError("an event loop is running here: write `await state_processor.open(…)` instead")


async def _opened(uri: str, flow: str | None, verify: Verify) -> Snapshot:
    return await open(uri, flow=flow, verify=verify)


async def _next(generator: Any) -> Any:
    return await anext(generator, None)
