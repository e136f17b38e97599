"""Entries of one keyed state: between blocks and Python objects."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from streamactors.clock import Clock
from streamactors.errors import CorruptCheckpoint, IncompatibleState, StreamactorsError, UnserialisableValue
from streamactors.state.backend import StateBlock
from streamactors.state.descriptors import AggregatingState, Declaration, ListState, MapState
from streamactors.state.serialisation.schemas import Schema
from streamactors.state.ttl import UNSET
from streamactors.state_processor.rows import Row
from streamactors.state_processor.types import stored_codec

BLOCK_ITEMS: Final = 512

Entry = Any
"""What one key holds, as the codec has it."""


def are_items(value: Any) -> bool:
    """Whether it may stand for a list. The letters of a string, and the keys of a dict, may not."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping)


class Entries:
    """`where` names the state in errors."""

    def __init__(self, declaration: Declaration, where: str, clock: Clock) -> None:
        self._declaration = declaration
        self._codec = stored_codec(declaration, clock)
        self._where = where
        self._clock = clock

    def read_as(self, stored: Schema) -> None:
        """What is read was stored under this schema. Raises IncompatibleState where the declaration can't read it."""
        if problems := self._codec.problems(stored):
            raise IncompatibleState(f"{self._where}: {'; '.join(problems)}")
        self._codec.read_as(stored)

    @property
    def schema(self) -> Schema:
        return self._codec.schema()

    # -------------------------------------------------------------------------------------------------------- reading
    def add(self, held: dict[Any, Entry], block: StateBlock) -> None:
        """What a block holds, to what other blocks of its key group hold."""
        for key, entry in self.decoded(block):
            held[key] = self._codec.merge(held[key], entry) if key in held else entry

    def decoded(self, block: StateBlock) -> Iterator[tuple[Any, Entry]]:
        """Raises CorruptCheckpoint or IncompatibleState, naming the state."""
        try:
            keys, entries = self._codec.decode_block(block.data, rewritten=block.rewritten)
        except StreamactorsError as error:
            raise type(error)(f"{self._where}: {error}") from error
        if len(keys) < block.entries:
            raise CorruptCheckpoint(
                f"{self._where}: a block holds {len(keys)} keys, and should hold at least {block.entries}"
            )
        return zip(keys, entries, strict=True)

    def join(self, held: dict[Any, Entry], key: Any, entry: Entry, merge: Callable[[Any, Any], Any] | None) -> None:
        """One more entry of a key group. Of a key that is there already, lists and maps are joined; of values `merge`
        makes one, and without it they are refused (IncompatibleState)."""
        if key not in held:
            held[key] = entry
        elif self._many:
            held[key] = self._codec.merge(held[key], entry)
        elif merge is not None:
            held[key] = self._merged(key, held[key], entry, merge)
        else:
            raise IncompatibleState(f"{self._where}: the key {key!r} comes twice, and can hold one value only")

    def _merged(self, key: Any, entry: Entry, more: Entry, merge: Callable[[Any, Any], Any]) -> Entry:
        """What has expired no longer counts."""
        first, second = self.seen(entry), self.seen(more)
        if UNSET in (first, second):
            return more if first is UNSET else entry
        return self.written(key, merge(first, second))

    def seen(self, entry: Entry) -> Any:
        """What has not expired of it; UNSET if nothing. Of an aggregate, its accumulator."""
        seen = self._codec.seen(entry)
        return UNSET if isinstance(seen, list | dict) and not seen and self._many else seen

    @property
    def _many(self) -> bool:
        return isinstance(self._declaration, ListState | MapState)

    def shown(self, seen: Any) -> Any:
        """To users: of an aggregate its result, where it is known how to make it."""
        return self._codec.answer(seen) if isinstance(self._declaration, AggregatingState) else seen

    def rows(self, entries: Iterable[tuple[Any, Any]]) -> Iterator[Row]:
        """Of keys and what is `seen` of them."""
        if isinstance(self._declaration, MapState):
            return ((key, *item) for key, seen in entries for item in seen.items())
        return ((key, self.shown(seen)) for key, seen in entries)

    def column_schemas(self) -> Mapping[str, Any]:
        """Of what `rows` gives. Nothing is known of the result of an aggregate, nor of keys."""
        schema = self._codec.schema()
        match self._declaration:
            case MapState():
                return {"map_key": schema["key"], "value": schema["type"]}
            case AggregatingState():
                return {}
        return {"value": {"kind": "list", "item": schema["type"]} if schema["kind"] == "list" else schema["type"]}

    # -------------------------------------------------------------------------------------------------------- writing
    def written(self, key: Any, value: Any) -> Entry:
        """What a user gives for a key, as it is stored: written now, if it is to expire. Raises UnserialisableValue for
        what is no list, or no dict, where it has to be one."""
        entry = self._gathered(key, value) if self._many else value
        return entry if self._codec.lifetime is None else self._codec.with_time(entry, self._codec.lifetime.now())

    def _gathered(self, key: Any, value: Any) -> Entry:
        if isinstance(self._declaration, MapState):
            if isinstance(value, Mapping):
                return dict(value)
        elif are_items(value):
            return list(value)
        expected = "a dict of its entries" if isinstance(self._declaration, MapState) else "a list of its items"
        raise UnserialisableValue(f"{self._where}, key {key!r}: expected {expected}, found {value!r}")

    def items(self, entry: Entry) -> int:
        """How many: 1 for a value, 0 for an empty list or map, which is not stored."""
        return len(entry) if self._many else 1

    def blocks(self, state: str, group: int, held: Iterable[tuple[Any, Entry]]) -> Iterator[StateBlock]:
        """Of bounded size. Raises UnserialisableKey or UnserialisableValue, naming operator, state and key."""
        keys, entries, items = list[Any](), list[Entry](), 0
        for key, entry in held:
            keys.append(key)
            entries.append(entry)
            items += self.items(entry)
            if items >= BLOCK_ITEMS:
                yield self._block(state, group, keys, entries)
                keys, entries, items = [], [], 0
        if keys:
            yield self._block(state, group, keys, entries)

    def _block(self, state: str, group: int, keys: list[Any], entries: list[Entry]) -> StateBlock:
        try:
            data = self._codec.encode_block(keys, entries)
        except StreamactorsError as error:
            raise type(error)(f"{self._where}, {error}") from error
        return StateBlock(state, group, len(keys), data)
