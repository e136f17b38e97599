"""Entries in any order, into a savepoint by key group: in bounded memory, however many there are.

Entries wait in memory. When too many do, all are written to a file beside the savepoint's own, as blocks
however small. In the end the savepoint's blocks are made of what was written and what still waits, one key group of one
state after the other; so that is where a key is found that came twice.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from streamactors.checkpoint.manifest import KeyedHandle
from streamactors.errors import IncompatibleState
from streamactors.state.backend import StateBlock
from streamactors.state.key_groups import KeyGrouper
from streamactors.state.serialisation.generic import Record
from streamactors.state_processor.entries import Entries, Entry
from streamactors.state_processor.reading import canonical_block_lists
from streamactors.state_processor.savepoint import NewSavepoint

WAITING_BYTES: Final = 16 * 1024 * 1024
"""About so much waits, by its size in blocks; as Python objects it is a few times that."""
_GUESS: Final = 256.0
"""Bytes of an item, until it is known."""

KeyedEntry = tuple[Any, str, Entry]
"""Key, state, and what the key holds."""
Merge = Callable[[Any, Any], Any]
_Held = list[tuple[Any, Entry]]


class Regrouping:
    """`states`: how the entries of each are written. `merges`: by state, what becomes of two values of one key."""

    def __init__(
        self,
        states: Mapping[str, Entries],
        max_parallelism: int,
        uid: str,
        *,
        merges: Mapping[str, Merge] | None = None,
    ) -> None:
        self._states = states
        self._grouper = KeyGrouper(max_parallelism)
        self._uid = uid
        self._merges = merges or {}
        self._waiting: dict[tuple[int, str], _Held] = {}
        self._items = 0
        self._bytes_of_item = _GUESS

    async def write(
        self, savepoint: NewSavepoint, entries: AsyncIterator[Sequence[KeyedEntry]]
    ) -> tuple[KeyedHandle, ...]:
        """Raises UnserialisableKey or UnserialisableValue, naming operator, state and key; IncompatibleState for a key
        that comes twice where nothing tells what to do."""
        spilled = await savepoint.write_keyed(f"{self._uid}-waiting", self._spilled(entries))
        handles = await savepoint.write_keyed(self._uid, self._blocks(savepoint, spilled))
        for handle in spilled:
            await savepoint.delete(handle.file)
        return handles

    # ------------------------------------------------------------------------------------------------------- collecting
    async def _spilled(self, entries: AsyncIterator[Sequence[KeyedEntry]]) -> AsyncGenerator[StateBlock, None]:
        async for portion in entries:
            self._take(portion)
            if self._items * self._bytes_of_item > WAITING_BYTES:
                for block in self._spill():
                    yield block

    def _take(self, portion: Sequence[KeyedEntry]) -> None:
        groups = self._groups([key for key, _, _ in portion])
        for (key, state, entry), group in zip(portion, groups, strict=True):
            self._waiting.setdefault((group, state), []).append((key, entry))
            self._items += self._states[state].items(entry)

    def _groups(self, keys: Sequence[Any]) -> Sequence[int]:
        for key in keys:
            if isinstance(key, Record):
                raise IncompatibleState(
                    f"operator {self._uid!r}: the key group of {dict(key)!r} can't be told without its class, "
                    f"{key.place}: import the module that defines it"
                )
        return self._grouper.groups(keys)

    def _spill(self) -> Iterator[StateBlock]:
        waiting, self._waiting = self._waiting, {}
        size = 0
        for (group, state), held in sorted(waiting.items(), key=lambda item: item[0]):
            for block in self._states[state].blocks(state, group, held):
                size += len(block.data)
                yield block
        self._bytes_of_item = max(1.0, size / max(self._items, 1))
        self._items = 0

    # ---------------------------------------------------------------------------------------------------------- writing
    async def _blocks(
        self, savepoint: NewSavepoint, spilled: Sequence[KeyedHandle]
    ) -> AsyncGenerator[StateBlock, None]:
        async with aclosing(canonical_block_lists(spilled, self._states, None, savepoint.read_blocks)) as lists:
            async for blocks in lists:
                async for block in self._together(blocks[0].group, blocks[0].state, blocks):
                    yield block
        # What waits of key groups of which nothing was written.
        for group, state in sorted(self._waiting):
            async for block in self._together(group, state, ()):
                yield block

    async def _together(self, group: int, state: str, blocks: Sequence[StateBlock]) -> AsyncGenerator[StateBlock, None]:
        entries, merge = self._states[state], self._merges.get(state)
        held: dict[Any, Entry] = {}
        for block in blocks:
            for key, entry in entries.decoded(block):
                entries.join(held, key, entry, merge)
            await asyncio.sleep(0)
        for key, entry in self._waiting.pop((group, state), ()):
            entries.join(held, key, entry, merge)
        for block in entries.blocks(state, group, held.items()):
            yield block
            await asyncio.sleep(0)
