"""Steps without state: map, filter, flat_map, print.

A callable may be `def` or `async def`: seen once per subtask, by its definition or by what its first call returns. The
loops below work on whole batches and find the failing record by the iterator's own count.
"""

import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from streamactors.elements import Batch
from streamactors.operators.base import Link, LinkContext, OperatorSpec, done_of, is_async
from streamactors.operators.record_ids import fanned_out


class FunctionLink(Link):
    """Calls a user function for each value."""

    def __init__(self, ctx: LinkContext, fn: Callable[[Any], Any]) -> None:
        super().__init__(ctx)
        self._fn = fn
        self._async: bool | None = True if is_async(fn) else None

    async def process(self, batch: Batch) -> Batch | None:
        values = iter(batch.values)
        try:
            results = await self._call(values)
        except Exception as error:
            raise self.failed(error, batch, done_of(values, len(batch)) - 1) from error
        if len(results) < len(batch):
            self.rest = batch.slice(len(results), len(batch))
            batch = batch.slice(0, len(results))
        return self.combine(batch, results)

    async def _call(self, values: Iterator[Any]) -> list[Any]:
        """The results of all values, or, if interrupted, of the first ones."""
        if self._async is None:
            return await self._first_call(values)
        if self._async:
            return await self._await_each(values)
        return self._call_each(values)

    def _call_each(self, values: Iterator[Any]) -> list[Any]:
        fn = self._fn
        return [fn(value) for value in values]

    def _settled(self, result: Any) -> Any:
        """What a call has given, once all of it is there."""
        return result

    async def _await_each(self, values: Iterator[Any]) -> list[Any]:
        fn, interrupted = self._fn, self.ctx.interrupted
        results = []
        for value in values:
            results.append(self._settled(await fn(value)))
            if interrupted():
                break
        return results

    async def _first_call(self, values: Iterator[Any]) -> list[Any]:
        """A plain function may still return an awaitable (`lambda x: client.get(x)`): its first result tells."""
        for value in values:
            first = self._fn(value)
            self._async = inspect.isawaitable(first)
            result = self._settled(await first if self._async else first)
            if self._async and self.ctx.interrupted():
                return [result]
            return [result, *await self._call(values)]
        return []

    @abstractmethod
    def combine(self, batch: Batch, results: list[Any]) -> Batch | None: ...


class MapLink(FunctionLink):
    def combine(self, batch: Batch, results: list[Any]) -> Batch | None:
        return batch.with_values(results)


class FilterLink(FunctionLink):
    def combine(self, batch: Batch, results: list[Any]) -> Batch | None:
        return batch if all(results) else batch.select(results)


class FlatMapLink(FunctionLink):
    """A function may be a generator: its items are drawn here, so that its failure is the record's."""

    def _call_each(self, values: Iterator[Any]) -> list[Any]:
        fn = self._fn
        return [list(fn(value)) for value in values]

    def _settled(self, result: Any) -> list[Any]:
        return list(result)

    def combine(self, batch: Batch, results: list[Any]) -> Batch | None:
        counts = [len(items) for items in results]
        values = list(chain.from_iterable(results))
        if not values:
            return None
        stamps = None if batch.timestamps is None else _repeat_each(batch.timestamps, counts)
        origins = None if batch.origins is None else _repeat_each(batch.origins, counts)
        groups = None if batch.groups is None else _repeat_each(batch.groups, counts)
        ids = None if batch.ids is None else fanned_out(batch.ids, counts)
        return Batch(values, stamps, None, groups, origins, batch.split, batch.home, ids)


def _repeat_each(column: Any, counts: list[int]) -> list[Any]:
    return list(chain.from_iterable(map(repeat, column, counts)))


class PrintLink(Link):
    """One write per batch, one line per record."""

    def __init__(self, ctx: LinkContext, label: str) -> None:
        super().__init__(ctx)
        several = ctx.operator.parallelism > 1
        self._prefix = label + (f"[{ctx.operator.subtask}]" if several else "") + ("> " if label or several else "")

    async def process(self, batch: Batch) -> Batch | None:
        sys.stdout.write("".join(f"{self._prefix}{value}\n" for value in batch.values))
        sys.stdout.flush()
        return batch


@dataclass(frozen=True)
class FunctionSpec(OperatorSpec):
    """`kind` names the step; `fn` is the user's."""

    step: str
    fn: Callable[[Any], Any]

    @property
    def kind(self) -> str:
        return self.step

    @property
    def keeps_record_ids(self) -> bool:
        return True

    def link(self, ctx: LinkContext) -> Link:
        return _FUNCTION_LINKS[self.step](ctx, self.fn)


_FUNCTION_LINKS: dict[str, Callable[[LinkContext, Callable[[Any], Any]], Link]] = {
    "map": MapLink,
    "filter": FilterLink,
    "flat_map": FlatMapLink,
}


@dataclass(frozen=True)
class PrintSpec(OperatorSpec):
    label: str

    @property
    def kind(self) -> str:
        return "print"

    @property
    def keeps_record_ids(self) -> bool:
        return True

    def link(self, ctx: LinkContext) -> Link:
        return PrintLink(ctx, self.label)
