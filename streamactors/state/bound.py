"""What the bound states of all backends have in common, and the kinds that are composed over what backends keep."""

from collections.abc import Callable
from typing import Any

from streamactors.errors import StateAccessError, UnserialisableValue
from streamactors.state.backend import Cursor
from streamactors.state.blocks import EntryCodec, ListCodec, MapCodec, ValueCodec
from streamactors.state.descriptors import AggregatingState, Declaration, ReducingState, ValueState, stand_in
from streamactors.state.folding import BoundAggregating, BoundReducing
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.serialisation.serializer import Serializer
from streamactors.state.ttl import TtlCell, TtlList, TtlMap, TtlValue


class NoTable:
    """Stands where there is nothing to reach: no key in hand, a group of another subtask, a closed backend."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self, *_: Any) -> Any:
        raise StateAccessError(self._why)

    get = pop = __getitem__ = __setitem__ = _refuse

    def __len__(self) -> int:
        return 0


def no_tables(where: str, groups: KeyGroupRange, max_parallelism: int) -> list[Any]:
    """For each key group one that refuses, and another for no key at all: INACTIVE is the index -1."""
    foreign = NoTable(f"{where}: the key belongs to another subtask; this one has the key groups {groups}")
    inactive = NoTable(
        f"{where}: there is no current key. State is reachable only during process, for the key of the record "
        "in hand: not in open, close or another task"
    )
    return [foreign] * max_parallelism + [inactive]


def closed_tables(where: str, count: int) -> list[Any]:
    return [NoTable(f"{where}: the operator has been stopped")] * count


def naming(state: str, accept: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`accept`, whose refusal also names the state: the value alone does not tell which one it was meant for."""

    def accept_for_state(value: Any) -> Any:
        try:
            return accept(value)
        except UnserialisableValue as error:
            raise UnserialisableValue(f"state {state!r}: {error}") from error

    return accept_for_state


def dressed(declaration: Declaration, name: str, kept: Any, codec: EntryCodec[Any], cursor: Cursor) -> Any:
    """What the operator gets, over what the backend keeps; both stand in for the declaration."""
    stand_in(kept, declaration, name)
    bound = _dressed(declaration, name, kept, codec, cursor)
    stand_in(bound, declaration, name)
    return bound


def _dressed(declaration: Declaration, name: str, kept: Any, codec: EntryCodec[Any], cursor: Cursor) -> Any:
    lifetime = codec.lifetime
    if lifetime is not None:
        plain = codec.plain
        match plain:
            case ListCodec():
                return TtlList[Any](kept, lifetime, _check(name, plain.items))
            case MapCodec():
                return TtlMap[Any, Any](kept, lifetime, _check(name, plain.values), cursor)
            case ValueCodec():
                kept = TtlCell(kept, lifetime, _check(name, plain.serializer))
                if isinstance(declaration, ValueState):
                    return TtlValue[Any](kept, plain.empty)
    match declaration:
        case ReducingState():
            return BoundReducing[Any](kept, declaration.fn)
        case AggregatingState():
            return BoundAggregating[Any, Any](kept, declaration.aggregate)
    return kept


def _check(name: str, serializer: Serializer[Any]) -> Callable[[Any], Any]:
    types, accept = serializer.types, naming(name, serializer.accept)
    return lambda value: value if type(value) in types else accept(value)
