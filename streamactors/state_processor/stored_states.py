"""How the rows of each kind of state are read.

Keyed state is read one key group at a time, since what one key holds may be spread over several blocks of its group.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from streamactors.checkpoint.manifest import ListRef, NodeState
from streamactors.checkpoint.restorable import Restorable
from streamactors.clock import Clock
from streamactors.state.backend import StateBlock
from streamactors.state.descriptors import Declaration
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.ttl import UNSET
from streamactors.state.unkeyed import ListBlock
from streamactors.state_processor.entries import Entries, Entry
from streamactors.state_processor.overview import OperatorInfo, StateInfo
from streamactors.state_processor.reading import block_lists
from streamactors.state_processor.rows import Row, StoredRows

ROWS: Final = 1024


@dataclass(frozen=True)
class SnapshotSource:
    """Where a state's rows come from."""

    restorable: Restorable
    operator: OperatorInfo
    info: StateInfo
    declaration: Declaration
    clock: Clock

    @property
    def where(self) -> str:
        return f"operator {self.info.uid!r}, state {self.info.name!r}"

    def nodes(self) -> Iterator[tuple[int, NodeState]]:
        """By subtask, in their order."""
        found = {subtask.index: node for subtask, node in self.restorable.manifest.nodes(self.info.uid)}
        return iter(sorted(found.items()))


class KeyedRows(StoredRows):
    """(key, value); of a map (key, map_key, value), a row for each entry. Of an aggregate the value is its accumulator,
    and its result where the declaration is known."""

    def __init__(self, source: SnapshotSource) -> None:
        self.info = source.info
        self._source = source
        self._entries = Entries(source.declaration, source.where, source.clock)
        self._entries.read_as(source.info.schema)
        self.columns = ("key", "map_key", "value") if source.info.kind in ("map", "timers") else ("key", "value")

    def column_schemas(self) -> Mapping[str, Any]:
        return self._entries.column_schemas()

    async def lists(self) -> AsyncGenerator[list[Row], None]:
        async with aclosing(self.entry_lists()) as lists:
            async for entries in lists:
                for rows in _cut(self._entries.rows(entries)):
                    yield rows

    async def entries(self) -> AsyncGenerator[tuple[Any, Any], None]:
        """(key, all that it holds): of a map a dict, of an aggregate its accumulator. As `SavepointWriter` takes it."""
        async with aclosing(self.entry_lists()) as lists:
            async for entries in lists:
                for entry in entries:
                    yield entry

    async def get(self, key: Any, default: Any = None) -> Any:
        """What `key` holds; of a map, a dict of its entries. Reads its key group alone."""
        seen = await self._seen(key)
        return default if seen is UNSET else self._entries.shown(seen)

    async def of_key(self, key: Any) -> list[Row]:
        """The rows of one key."""
        seen = await self._seen(key)
        return [] if seen is UNSET else list(self._entries.rows([(key, seen)]))

    async def _seen(self, key: Any) -> Any:
        group = key_group(key, self._source.operator.max_parallelism)
        async with aclosing(self.entry_lists(KeyGroupRange(group, group + 1))) as lists:
            async for entries in lists:
                for found, seen in entries:
                    if found == key:
                        return seen
        return UNSET

    async def entry_lists(self, groups: KeyGroupRange | None = None) -> AsyncGenerator[list[tuple[Any, Any]], None]:
        """Keys and all that they hold, one key group after the other; without what has expired."""
        async with aclosing(self.stored(groups)) as stored:
            async for _, held in stored:
                seen = ((key, self._entries.seen(entry)) for key, entry in held.items())
                yield [(key, value) for key, value in seen if value is not UNSET]

    async def stored(self, groups: KeyGroupRange | None = None) -> AsyncGenerator[tuple[int, dict[Any, Entry]], None]:
        """Each key group, and by key what it holds, as the codec of `Entries` has it."""
        async with aclosing(self._blocks(groups)) as blocks:
            async for of_group in blocks:
                held: dict[Any, Entry] = {}
                for block in of_group:
                    self._entries.add(held, block)
                    await asyncio.sleep(0)
                yield of_group[0].group, held

    async def _blocks(self, groups: KeyGroupRange | None) -> AsyncGenerator[list[StateBlock], None]:
        source = self._source
        declared = {self.info.name: source.declaration}
        max_parallelism = source.operator.max_parallelism
        for _, node in source.nodes():
            reading = block_lists(source.restorable, node, declared, max_parallelism, source.clock, groups)
            async with aclosing(reading):
                async for blocks in reading:
                    yield blocks


def _cut(rows: Iterable[Row]) -> Iterator[list[Row]]:
    cut: list[Row] = []
    for row in rows:
        cut.append(row)
        if len(cut) >= ROWS:
            yield cut
            cut = []
    if cut:
        yield cut


# -------------------------------------------------------------------------------------------------- state without a key
class _UnkeyedRows(StoredRows):
    def __init__(self, source: SnapshotSource) -> None:
        self.info = source.info
        self._source = source
        self._bound()

    def _bound(self) -> tuple[OperatorLists, Any]:
        """Fresh ones. Raises IncompatibleState for a declaration that does not fit."""
        lists = OperatorLists(self.info.uid, clock=self._source.clock)
        bound: Any = lists.bind(self.info.name, self._source.declaration)
        lists.check_schemas({self.info.name: self.info.schema})
        return lists, bound

    def refs(self, node: NodeState) -> list[ListRef]:
        return [ref for ref in node.lists.blocks if ref.state == self.info.name] if node.lists is not None else []

    async def _items(self, node: NodeState) -> AsyncGenerator[Any, None]:
        """What each block holds, in a bound state of its own."""
        refs = self.refs(node)
        for first in range(0, len(refs), 16):
            assert node.lists is not None
            portion = refs[first : first + 16]
            for ref, data in zip(portion, await self._source.restorable.read_lists(node.lists, portion), strict=True):
                lists, bound = self._bound()
                lists.restore(ListBlock(ref.state, ref.union, ref.items, data), 0, ref.items)
                yield bound


class ListRows(_UnkeyedRows):
    """(subtask, item) of an `OperatorListState` or `UnionListState`."""

    columns = ("subtask", "item")

    def column_schemas(self) -> Mapping[str, Any]:
        return {"subtask": {"kind": "int"}, "item": self.info.schema["type"]}

    async def lists(self) -> AsyncGenerator[list[Row], None]:
        for index, node in self._source.nodes():
            async with aclosing(self._items(node)) as blocks:
                async for items in blocks:
                    for rows in _cut((index, item) for item in items):
                        yield rows


class BroadcastRows(_UnkeyedRows):
    """(key, value) of a `BroadcastState`, as one subtask has it: the copies of all of them are the same."""

    columns = ("key", "value")

    def column_schemas(self) -> Mapping[str, Any]:
        return {"key": self.info.schema["key"], "value": self.info.schema["type"]}

    async def lists(self) -> AsyncGenerator[list[Row], None]:
        node = next((node for _, node in self._source.nodes() if self.refs(node)), None)
        if node is not None:
            async with aclosing(self._items(node)) as blocks:
                async for entries in blocks:
                    for rows in _cut(entries.items()):
                        yield rows
