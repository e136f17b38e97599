"""A new savepoint made of a checkpoint or savepoint: with some of it changed, and the rest as it was.

Invariants:
1. What is not touched is carried over: positions, prepared transactions, watermarks, and blocks of state byte for byte.
2. No record becomes late that would not have been. Where keys move to other key groups, nobody can tell any more which
   of them had come further than the others: the least watermark holds for all.
3. Records in flight are on their way to key groups and operators as they were: while there are any, neither may change.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

import msgspec

from streamactors.checkpoint import layout, manifest
from streamactors.checkpoint.manifest import (
    ChannelTime,
    EdgeKey,
    InFlightHandle,
    KeyedHandle,
    ListsHandle,
    NodeState,
    OperatorMeta,
    SubtaskState,
    requirements,
)
from streamactors.checkpoint.restorable import Restorable
from streamactors.checkpoint.storage.contract import Files, Written
from streamactors.clock import Clock
from streamactors.errors import IncompatibleState, InvalidConfig, InvalidDataflow, StateAccessError
from streamactors.operators.base import is_async
from streamactors.state.backend import StateBlock
from streamactors.state.descriptors import Declaration
from streamactors.state.key_groups import MAX_KEY_GROUPS
from streamactors.state.ttl import UNSET
from streamactors.state.unkeyed import ListBlock
from streamactors.state_processor.entries import Entries, Entry
from streamactors.state_processor.overview import OperatorInfo, StateInfo
from streamactors.state_processor.reading import block_lists
from streamactors.state_processor.regrouping import KeyedEntry, Merge, Regrouping
from streamactors.state_processor.savepoint import NewSavepoint, copied, in_new_savepoint
from streamactors.state_processor.types import declaration_of, states_of

T = TypeVar("T")


class _Drop:
    def __repr__(self) -> str:
        return "DROP"


DROP: Final[Any] = _Drop()
"""What an edit returns for an entry that is to go, and a new key for a key that is."""

Edit = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Edited:
    """`read` and `written`: how the state is declared before and after."""

    fn: Callable[[Any, Any], Awaitable[Any]]
    read: Declaration
    written: Declaration


class Transformation:
    """Collects what is to be changed; `write` then makes the new savepoint. Uids and names are those of the old one."""

    def __init__(self, restorable: Restorable, operators: Mapping[str, OperatorInfo], clock: Clock) -> None:
        self._restorable = restorable
        self._old = restorable.manifest
        self._operators = operators
        self._clock = clock
        self._flow = self._old.flow
        self._max_parallelism: int | None = None
        self._uids: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._names: dict[tuple[str, str], str] = {}
        self._dropped_states: set[tuple[str, str]] = set()
        self._edits: dict[tuple[str, str], _Edited] = {}
        self._declared: dict[str, Mapping[str, Declaration]] = {}
        self._keys: dict[str, Callable[[Any], Awaitable[Any]]] = {}
        self._merges: dict[str, Mapping[str, Merge]] = {}
        self._positions: dict[str, dict[str, Any]] = {}

    # --------------------------------------------------------------------------------------------------- what to change
    def rename_flow(self, name: str) -> Self:
        layout.flow_folder(name)
        self._flow = name
        return self

    def rename_operator(self, uid: str, new: str) -> Self:
        self._operator(uid)
        self._uids[uid] = _named(new)
        return self

    def drop_operator(self, uid: str) -> Self:
        """With all that it holds: its state, a source's positions."""
        self._operator(uid)
        self._dropped.add(uid)
        return self

    def rename_state(self, uid: str, state: str, new: str) -> Self:
        self._info(uid, state)
        self._names[uid, state] = _named(new)
        return self

    def drop_state(self, uid: str, state: str) -> Self:
        self._info(uid, state)
        self._dropped_states.add((uid, state))
        return self

    def with_types(self, uid: str, operator: type | Mapping[str, Declaration]) -> Self:
        """How an operator's state is declared: for edits, and keys, that are to be given instances of classes instead
        of dicts."""
        self._operator(uid)
        self._declared[uid] = operator if isinstance(operator, Mapping) else states_of(operator)
        return self

    def edit(
        self,
        uid: str,
        state: str,
        fn: Edit,
        *,
        declaration: Declaration | None = None,
        into: Declaration | None = None,
    ) -> Self:
        """`fn(key, value)`, plain or async, returns what the key is to hold, or `DROP`. It is given all that the key
        holds (of a map a dict, of an aggregate its accumulator), without what has expired; what it returns counts as
        written now. `into`: how the state is declared afterwards, if not as before."""
        info = self._info(uid, state)
        if not info.keyed:
            raise InvalidDataflow(f"operator {uid!r}, state {state!r}: only the state of keys can be edited")
        read = declaration or self._declaration(info)
        self._edits[uid, state] = _Edited(_awaited(fn), read, into or read)
        return self

    def rekey(self, uid: str, fn: Callable[[Any], Any], *, merge: Mapping[str, Merge] | None = None) -> Self:
        """`fn(key)`, plain or async, returns the key under which all its state is to be found, or `DROP`. Where keys
        become one, their lists and maps are joined; for values `merge` says how, by state: `merge(before, more)`."""
        if not any(info.keyed for info in self._operator(uid).states.values()):
            raise StateAccessError(f"operator {uid!r} has no keyed state")
        for state in merge or ():
            self._info(uid, state)
        self._keys[uid] = _awaited(fn)
        self._merges[uid] = merge or {}
        return self

    def with_max_parallelism(self, max_parallelism: int) -> Self:
        """Of the whole flow: all keys move to their new key groups."""
        if not 1 <= max_parallelism <= MAX_KEY_GROUPS:
            raise InvalidConfig(f"max_parallelism {max_parallelism} is not between 1 and {MAX_KEY_GROUPS}")
        self._max_parallelism = max_parallelism
        return self

    def with_source_positions(self, uid: str, positions: Mapping[str, Any]) -> Self:
        """In place of those that were stored. Event time stays where it was: what is read once more may be late."""
        if self._operator(uid).kind != "source":
            raise StateAccessError(f"operator {uid!r} is no source")
        self._positions[uid] = dict(positions)
        return self

    def _operator(self, uid: str) -> OperatorInfo:
        if uid not in self._operators:
            raise StateAccessError(
                f"{self._restorable.uri} holds no operator {uid!r}; it holds: {', '.join(self._operators)}"
            )
        return self._operators[uid]

    def _info(self, uid: str, state: str) -> StateInfo:
        states = self._operator(uid).states
        if state not in states:
            raise StateAccessError(f"operator {uid!r} has no state {state!r}; it has: {', '.join(states) or 'none'}")
        return states[state]

    def _declaration(self, info: StateInfo) -> Declaration:
        given = self._declared.get(info.uid, {}).get(info.name)
        return declaration_of(info, given, None)

    # ---------------------------------------------------------------------------------------------------------- writing
    async def write(self, uri: str, *, files: Files | None = None) -> str:
        """Into the new or empty folder `uri`; returns its URI. Raises InvalidConfig where something lies already,
        IncompatibleState for what can't be done to this checkpoint, and whatever the edits raise: then nothing is
        left."""
        self._check()
        target = (self._restorable.files if files is None else files).at(uri)
        return await in_new_savepoint(target, self._clock, self._fill)

    async def _fill(self, savepoint: NewSavepoint) -> None:
        subtasks = tuple([subtask for old in self._old.subtasks for subtask in await self._subtask(savepoint, old)])
        content = msgspec.structs.replace(
            self._old,
            flow=self._flow,
            time_ms=self._clock.time_ms(),
            operators=tuple(map(self._meta, self._kept_operators())),
            subtasks=subtasks,
            savepoint=True,
            requires=requirements(subtasks),
        )
        await savepoint.complete(content, committed=self._restorable.committed)

    def _kept_operators(self) -> Iterator[OperatorMeta]:
        return (meta for meta in self._old.operators if meta.uid not in self._dropped)

    def _meta(self, old: OperatorMeta) -> OperatorMeta:
        max_parallelism = self._max_parallelism or old.max_parallelism
        return msgspec.structs.replace(old, uid=self._uid(old.uid), max_parallelism=max_parallelism)

    def _uid(self, uid: str) -> str:
        return self._uids.get(uid, uid)

    def _name(self, uid: str, state: str) -> str:
        return self._names.get((uid, state), state)

    # --------------------------------------------------------------------------------------------------------- refusing
    def _check(self) -> None:
        self._check_names()
        self._check_pending()
        self._check_in_flight()

    def _check_names(self) -> None:
        uids = [self._uid(meta.uid) for meta in self._kept_operators()]
        _refuse_twice(uids, "two operators of the new savepoint have the uid")
        for meta in self._kept_operators():
            names = [
                self._name(meta.uid, state) for state in self._kept_states(self._operators[meta.uid].states, meta.uid)
            ]
            _refuse_twice(names, f"two states of operator {meta.uid!r} have, in the new savepoint, the name")

    def _kept_states(self, states: Collection[str], uid: str) -> list[str]:
        return [state for state in states if (uid, state) not in self._dropped_states]

    def _check_pending(self) -> None:
        for uid in self._dropped:
            if self._operators[uid].pending and not self._restorable.committed:
                raise IncompatibleState(
                    f"operator {uid!r} can't be dropped: it has prepared transactions that are not known to be "
                    "committed, and what they hold would be lost. Restore the old savepoint once, so that they are."
                )

    def _check_in_flight(self) -> None:
        edges = {str(edge.key) for _, edge, _ in self._old.in_flight()}
        if not edges:
            return
        changes = [
            *(f"operator {uid!r} dropped" for uid in self._dropped),
            *(f"operator {uid!r} renamed" for uid in self._uids),
            *(f"operator {uid!r} re-keyed" for uid in self._keys),
            *(["another max parallelism"] if self._max_parallelism is not None else ()),
        ]
        if changes:
            raise IncompatibleState(
                f"{self._restorable.uri} holds records in flight "
                f"({', '.join(sorted(edges))}), which are on their way to what would be changed "
                f"({', '.join(changes)}): take a savepoint, which has none but the inputs of calls that async steps "
                "are making, and transform that"
            )

    # --------------------------------------------------------------------------------------------------------- subtasks
    async def _subtask(self, savepoint: NewSavepoint, old: SubtaskState) -> list[SubtaskState]:
        """None if nothing is left of it."""
        nodes = [await self._node(savepoint, old, node) for node in old.nodes if node.uid not in self._dropped]
        if not nodes:
            return []
        return [
            msgspec.structs.replace(
                old,
                vertex=self._uid(old.vertex) if old.vertex not in self._dropped else nodes[0].uid,
                nodes=tuple(nodes),
                channels=tuple(self._channels(old)),
                in_flight=None if old.in_flight is None else await self._in_flight(savepoint, old.in_flight),
            )
        ]

    def _channels(self, old: SubtaskState) -> Iterator[ChannelTime]:
        """Where keys move, what the channels of one subtask have told does not hold for its new keys: they begin with
        nothing, and are told again."""
        for channel in old.channels:
            downstream = channel.edge.downstream
            if downstream not in self._dropped and not self._moves(downstream):
                yield msgspec.structs.replace(channel, edge=self._edge(channel.edge))

    def _edge(self, edge: EdgeKey) -> EdgeKey:
        return msgspec.structs.replace(edge, upstream=self._uid(edge.upstream), downstream=self._uid(edge.downstream))

    async def _in_flight(self, savepoint: NewSavepoint, old: InFlightHandle) -> InFlightHandle:
        path = self._restorable.path(old.file)
        copy = await savepoint.write("in-flight", copied(self._restorable.files, path, old.file.size))
        manifest.verify(old.file, Written(copy.size, copy.digest), self._restorable.files.uri_of(path))
        return msgspec.structs.replace(old, file=msgspec.structs.replace(old.file, path=copy.path))

    async def _node(self, savepoint: NewSavepoint, subtask: SubtaskState, old: NodeState) -> NodeState:
        moved = self._moves(old.uid)
        return msgspec.structs.replace(
            old,
            uid=self._uid(old.uid),
            keyed=await self._keyed(savepoint, subtask, old),
            native=(),
            schemas=self._schemas(old),
            lists=await self._lists(savepoint, old),
            list_schemas=self._renamed(old.uid, old.list_schemas),
            positions=self._own_positions(subtask, old),
            watermark=self._least_watermark(old.uid) if moved else old.watermark,
            ahead=() if moved else old.ahead,
        )

    def _moves(self, uid: str) -> bool:
        """Whether its keys move to other key groups."""
        operator = self._operators[uid]
        changed = self._max_parallelism not in (None, operator.max_parallelism)
        return uid in self._keys or changed

    def _least_watermark(self, uid: str) -> int | None:
        return min(self._operators[uid].watermarks.values(), default=None)

    def _own_positions(self, subtask: SubtaskState, old: NodeState) -> dict[str, Any]:
        given = self._positions.get(old.uid)
        if given is None:
            return old.positions
        first = min(found.index for found, _ in self._old.nodes(old.uid))
        return given if subtask.index == first else {}

    def _renamed(self, uid: str, schemas: Mapping[str, T]) -> dict[str, T]:
        return {self._name(uid, state): schemas[state] for state in self._kept_states(schemas, uid)}

    def _schemas(self, old: NodeState) -> dict[str, Any]:
        edited = list(old.schemas) if self._moves(old.uid) else [state for uid, state in self._edits if uid == old.uid]
        written = {state: self._written(old.uid, state).schema for state in edited if state in old.schemas}
        return self._renamed(old.uid, {**old.schemas, **written})

    # ------------------------------------------------------------------------------------------------------ keyed state
    def _read(self, uid: str, state: str) -> Entries:
        edited = self._edits.get((uid, state))
        info = self._operators[uid].states[state]
        entries = self._entries(info, edited.read if edited else self._declaration(info))
        entries.read_as(info.schema)
        return entries

    def _written(self, uid: str, state: str) -> Entries:
        edited = self._edits.get((uid, state))
        info = self._operators[uid].states[state]
        return self._entries(info, edited.written if edited else self._declaration(info))

    def _entries(self, info: StateInfo, declaration: Declaration) -> Entries:
        return Entries(declaration, f"operator {info.uid!r}, state {info.name!r}", self._clock)

    async def _keyed(self, savepoint: NewSavepoint, subtask: SubtaskState, old: NodeState) -> tuple[KeyedHandle, ...]:
        if not self._moves(old.uid):
            return await savepoint.write_keyed(self._uid(old.uid), self._in_place(old))
        if subtask.index != min(found.index for found, _ in self._old.nodes(old.uid)):
            return ()  # with those of the first subtask
        return await self._regrouped(savepoint, old.uid)

    def _lists_of(self, node: NodeState) -> AsyncGenerator[list[StateBlock], None]:
        states = self._kept_states(node.schemas, node.uid)
        infos = self._operators[node.uid].states
        declared = {state: self._read_declaration(infos[state]) for state in states}
        max_parallelism = self._operators[node.uid].max_parallelism
        return block_lists(self._restorable, node, declared, max_parallelism, self._clock)

    def _read_declaration(self, info: StateInfo) -> Declaration:
        edited = self._edits.get((info.uid, info.name))
        if edited is not None:
            return edited.read
        # What stays as it is stays under its schema, too.
        return self._declaration(info) if self._moves(info.uid) else declaration_of(info, None, None)

    async def _in_place(self, node: NodeState) -> AsyncGenerator[StateBlock, None]:
        """Of one subtask, whose keys stay where they are: those of states that are not edited as they were."""
        reading = {state: self._read(node.uid, state) for uid, state in self._edits if uid == node.uid}
        async with aclosing(self._lists_of(node)) as lists:
            async for blocks in lists:
                state = blocks[0].state
                if state in reading:
                    for block in await self._edited_blocks(node.uid, state, reading[state], blocks):
                        yield block
                else:
                    for block in blocks:
                        yield replace(block, state=self._name(node.uid, state))

    async def _edited_blocks(
        self, uid: str, state: str, reading: Entries, blocks: Sequence[StateBlock]
    ) -> list[StateBlock]:
        held = [entry async for entry in self._edited(uid, state, reading, blocks)]
        written = self._written(uid, state)
        return list(written.blocks(self._name(uid, state), blocks[0].group, held))

    async def _edited(
        self, uid: str, state: str, reading: Entries, blocks: Sequence[StateBlock]
    ) -> AsyncGenerator[tuple[Any, Entry], None]:
        """What the keys of one key group are to hold."""
        held: dict[Any, Entry] = {}
        for block in blocks:
            reading.add(held, block)
            await asyncio.sleep(0)
        edited = self._edits.get((uid, state))
        written = self._written(uid, state)
        for key, entry in held.items():
            if edited is None:
                yield key, entry
            elif (seen := reading.seen(entry)) is not UNSET:
                value = await edited.fn(key, seen)
                if value is not DROP and written.items(entry := written.written(key, value)):
                    yield key, entry

    # ------------------------------------------------------------------------------------------------- keys that move
    async def _regrouped(self, savepoint: NewSavepoint, uid: str) -> tuple[KeyedHandle, ...]:
        infos = self._operators[uid].states.values()
        states = self._kept_states([info.name for info in infos if info.keyed], uid)
        writing = {self._name(uid, state): self._written(uid, state) for state in states}
        merges = {self._name(uid, state): merge for state, merge in self._merges.get(uid, {}).items()}
        max_parallelism = self._max_parallelism or self._operators[uid].max_parallelism
        regrouping = Regrouping(writing, max_parallelism, self._uid(uid), merges=merges)
        async with aclosing(self._moving(uid)) as entries:
            return await regrouping.write(savepoint, entries)

    async def _moving(self, uid: str) -> AsyncGenerator[list[KeyedEntry], None]:
        """What all subtasks hold, under its new keys."""
        rekey = self._keys.get(uid)
        for _, node in self._old.nodes(uid):
            reading = {state: self._read(uid, state) for state in self._kept_states(node.schemas, uid)}
            async with aclosing(self._lists_of(node)) as lists:
                async for blocks in lists:
                    state = blocks[0].state
                    name = self._name(uid, state)
                    portion: list[KeyedEntry] = []
                    async for key, entry in self._edited(uid, state, reading[state], blocks):
                        moved = key if rekey is None else await rekey(key)
                        if moved is not DROP:
                            portion.append((moved, name, entry))
                    yield portion

    # ---------------------------------------------------------------------------------------------- state without a key
    async def _lists(self, savepoint: NewSavepoint, old: NodeState) -> ListsHandle | None:
        return None if old.lists is None else await savepoint.write_lists(self._uid(old.uid), self._list_blocks(old))

    async def _list_blocks(self, old: NodeState) -> AsyncGenerator[ListBlock, None]:
        assert old.lists is not None
        for ref in old.lists.blocks:
            if (old.uid, ref.state) not in self._dropped_states:
                [data] = await self._restorable.read_lists(old.lists, [ref])
                name = self._name(old.uid, ref.state)
                yield ListBlock(name, ref.union, ref.items, data, ref.broadcast)


def _awaited(fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Also of a plain function."""
    if is_async(fn):
        return fn

    async def call(*args: Any) -> Any:
        return fn(*args)

    return call


def _named(name: str) -> str:
    if not name:
        raise InvalidDataflow("a new name must not be empty")
    return name


def _refuse_twice(names: Sequence[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidDataflow(f"{what} {name!r}")
