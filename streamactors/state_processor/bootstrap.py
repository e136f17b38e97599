"""A savepoint made of rows, from which a job begins with state that it has not made itself."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from itertools import islice
from typing import Any, Final, Self

from streamactors.checkpoint import layout
from streamactors.checkpoint.manifest import Manifest, NodeState, OperatorMeta, SubtaskState, requirements
from streamactors.checkpoint.storage.contract import Files
from streamactors.clock import SYSTEM, Clock
from streamactors.errors import InvalidConfig, InvalidDataflow
from streamactors.state.broadcast import BroadcastState
from streamactors.state.descriptors import Declaration, declared_states
from streamactors.state.key_groups import MAX_KEY_GROUPS
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.unkeyed import ListBlock
from streamactors.state_processor.entries import Entries, are_items
from streamactors.state_processor.files import close_files, files_at
from streamactors.state_processor.regrouping import KeyedEntry, Regrouping
from streamactors.state_processor.savepoint import NewSavepoint, in_new_savepoint

KeyedRow = tuple[Any, Mapping[str, Any]]
"""A key, and what it holds by state."""
RowsOf = Iterable[KeyedRow] | AsyncIterable[KeyedRow]
Operator = type | Mapping[str, Declaration]
"""An operator's class, or what it declares."""

DEFAULT_MAX_PARALLELISM: Final = 128
_PORTION: Final = 256


class SavepointWriter:
    """Collects what is to be written; `write` then reads the rows once, in bounded memory.

    The job that starts from it finds the state of its operators by their uids, at any parallelism up to
    `max_parallelism` and with any state backend. A source without positions begins as on a first start.
    """

    def __init__(self, flow: str, *, max_parallelism: int = DEFAULT_MAX_PARALLELISM, clock: Clock = SYSTEM) -> None:
        layout.flow_folder(flow)
        if not 1 <= max_parallelism <= MAX_KEY_GROUPS:
            raise InvalidConfig(f"max_parallelism {max_parallelism} is not between 1 and {MAX_KEY_GROUPS}")
        self._flow = flow
        self._max_parallelism = max_parallelism
        self._clock = clock
        self._kinds: dict[str, str] = {}
        self._keyed: dict[str, _KeyedState] = {}
        self._unkeyed: dict[str, _UnkeyedState] = {}
        self._positions: dict[str, dict[str, Any]] = {}

    def with_keyed_state(self, uid: str, operator: Operator, rows: RowsOf, *, kind: str = "process") -> Self:
        """`rows`: (key, {state: what it holds}): a value; of a list its items, of a map a dict, of an aggregate its
        accumulator. State that is to expire counts as written now. Of a key that comes again, lists and maps are
        joined; a second value is refused by `write`. `kind`: "reduce" for the state of that step.

        Raises InvalidDataflow for an operator without keyed state, or a uid that has some already.
        """
        if uid in self._keyed:
            raise InvalidDataflow(f"operator {uid!r} has its keyed state already")
        _refuse_both(uid, self._positions)
        self._kinds[uid] = kind
        self._keyed[uid] = _KeyedState(uid, _declared(uid, operator, keyed=True), rows, self._clock)
        return self

    def with_operator_state(self, uid: str, operator: Operator, state: Mapping[str, Any]) -> Self:
        """State without a key: by state, the items of an operator list (dealt out to the subtasks) or a union list, or
        a dict for broadcast state."""
        if uid in self._unkeyed:
            raise InvalidDataflow(f"operator {uid!r} has its state without a key already")
        _refuse_both(uid, self._positions)
        self._kinds.setdefault(uid, "process")
        self._unkeyed[uid] = _UnkeyedState(uid, _declared(uid, operator, keyed=False), state, self._clock)
        return self

    def with_source_positions(self, uid: str, positions: Mapping[str, Any]) -> Self:
        """Where a source goes on, by split: as `snapshot.operator(uid).positions` has them."""
        _refuse_both(uid, self._keyed, self._unkeyed)
        self._kinds[uid] = "source"
        self._positions[uid] = dict(positions)
        return self

    async def write(self, uri: str, *, files: Files | None = None) -> str:
        """Into the new or empty folder `uri`; returns its URI. Raises InvalidConfig where something lies already, and
        UnserialisableKey or UnserialisableValue for a row that does not fit, naming operator, state and key: then
        nothing is left."""
        opened = files.at(uri) if files is not None else files_at(uri, self._clock)
        try:
            return await in_new_savepoint(opened, self._clock, self._fill)
        finally:
            if files is None:
                await close_files(opened)

    async def _fill(self, savepoint: NewSavepoint) -> None:
        subtasks = tuple([SubtaskState(uid, 0, (await self._node(savepoint, uid),)) for uid in self._kinds])
        await savepoint.complete(
            Manifest(
                flow=self._flow,
                run=1,
                attempt=1,
                checkpoint=1,
                time_ms=self._clock.time_ms(),
                operators=tuple(self._meta(uid) for uid in self._kinds),
                subtasks=subtasks,
                savepoint=True,
                requires=requirements(subtasks),
            )
        )

    def _meta(self, uid: str) -> OperatorMeta:
        return OperatorMeta(uid, self._kinds[uid], 1, self._max_parallelism)

    async def _node(self, savepoint: NewSavepoint, uid: str) -> NodeState:
        keyed, unkeyed = self._keyed.get(uid), self._unkeyed.get(uid)
        return NodeState(
            uid,
            keyed=() if keyed is None else await keyed.write(savepoint, self._max_parallelism),
            schemas={} if keyed is None else keyed.schemas(),
            positions=self._positions.get(uid, {}),
            lists=None if unkeyed is None else await savepoint.write_lists(uid, unkeyed.blocks()),
            list_schemas={} if unkeyed is None else unkeyed.schemas(),
        )


def _refuse_both(uid: str, *others: Collection[str]) -> None:
    if any(uid in other for other in others):
        raise InvalidDataflow(f"{uid!r} is either a source, with positions, or an operator with state: not both")


def _declared(uid: str, operator: Operator, *, keyed: bool) -> dict[str, Declaration]:
    declared = dict(operator) if isinstance(operator, Mapping) else declared_states(operator)
    found = {name: declaration for name, declaration in declared.items() if declaration.keyed == keyed}
    if not found:
        what = "state of keys" if keyed else "state without a key"
        raise InvalidDataflow(f"operator {uid!r}: {operator!r} declares no {what}")
    return found


# ----------------------------------------------------------------------------------------------------------- keyed rows
class _KeyedState:
    def __init__(self, uid: str, declared: Mapping[str, Declaration], rows: RowsOf, clock: Clock) -> None:
        self._uid = uid
        self._rows = rows
        self._read = False
        self._states = {
            name: Entries(declaration, f"operator {uid!r}, state {(declaration.stored or name)!r}", clock)
            for name, declaration in declared.items()
        }
        self._stored_names = {name: declaration.stored or name for name, declaration in declared.items()}

    def schemas(self) -> dict[str, Any]:
        return {self._stored_names[name]: entries.schema for name, entries in self._states.items()}

    async def write(self, savepoint: NewSavepoint, max_parallelism: int) -> Any:
        if self._read and isinstance(self._rows, Iterator | AsyncIterator):
            raise InvalidDataflow(
                f"operator {self._uid!r}: its rows come from an iterator, which an earlier write has read; give a "
                "list, or make a new writer"
            )
        self._read = True
        async with aclosing(self._entries()) as entries:
            states = {self._stored_names[name]: state for name, state in self._states.items()}
            return await Regrouping(states, max_parallelism, self._uid).write(savepoint, entries)

    async def _entries(self) -> AsyncGenerator[list[KeyedEntry], None]:
        async with aclosing(_portions(self._rows)) as portions:
            async for rows in portions:
                yield [entry for row in rows for entry in self._of_row(row)]

    def _of_row(self, row: KeyedRow) -> list[KeyedEntry]:
        key, held = row
        if unknown := held.keys() - self._states.keys():
            raise InvalidDataflow(
                f"operator {self._uid!r} declares no state {min(unknown)!r}, which the row of key {key!r} has; "
                f"it declares: {', '.join(self._states)}"
            )
        entries = ((name, self._states[name].written(key, value)) for name, value in held.items())
        return [(key, self._stored_names[name], entry) for name, entry in entries if self._states[name].items(entry)]


async def _portions(rows: RowsOf) -> AsyncGenerator[list[KeyedRow], None]:
    """Some rows at a time, and the loop to others in between."""
    if isinstance(rows, AsyncIterable):
        portion: list[KeyedRow] = []
        async for row in rows:
            portion.append(row)
            if len(portion) >= _PORTION:
                yield portion
                portion = []
        if portion:
            yield portion
        return
    iterator = iter(rows)
    while taken := list(islice(iterator, _PORTION)):
        yield taken
        await asyncio.sleep(0)


# -------------------------------------------------------------------------------------------------- state without a key
class _UnkeyedState:
    def __init__(self, uid: str, declared: Mapping[str, Declaration], state: Mapping[str, Any], clock: Clock) -> None:
        if unknown := state.keys() - declared.keys():
            raise InvalidDataflow(
                f"operator {uid!r} declares no state {min(unknown)!r} without a key; it declares: {', '.join(declared)}"
            )
        self._lists = OperatorLists(uid, clock=clock)
        with self._lists.broadcasting():
            for name, declaration in declared.items():
                self._add(self._lists.bind(declaration.stored or name, declaration), declaration, state.get(name))

    def _add(self, bound: Any, declaration: Declaration, given: Any) -> None:
        if given is None:
            return
        mapping = isinstance(declaration, BroadcastState)
        if not (isinstance(given, Mapping) if mapping else are_items(given)):
            expected = "a dict" if mapping else "a list"
            raise InvalidDataflow(f"state {bound.name!r}: expected {expected} of what it is to hold, found {given!r}")
        (bound.update if mapping else bound.extend)(given)

    def schemas(self) -> dict[str, Any]:
        return self._lists.schemas()

    async def blocks(self) -> AsyncGenerator[ListBlock, None]:
        snapshot = self._lists.begin_snapshot()
        if snapshot is not None:
            while (block := snapshot.next_block()) is not None:
                yield block
                await asyncio.sleep(0)
