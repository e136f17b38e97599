"""How the values of a stored state are to be read: as declared, or else by their stored schema."""

import datetime as dt
from typing import Any

from streamactors.clock import Clock
from streamactors.errors import IncompatibleState, InvalidDataflow, StateAccessError
from streamactors.state.aggregates import Aggregate
from streamactors.state.blocks import EntryCodec, codec_for
from streamactors.state.broadcast import BroadcastState
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    OperatorListState,
    ReducingState,
    Ttl,
    UnionListState,
    ValueState,
    declared_states,
)
from streamactors.state.serialisation.generic import StoredKeys, stored_serializer
from streamactors.state.serialisation.schemas import Schema
from streamactors.state.timers import TimerState, domain_of
from streamactors.state.ttl import UNSET
from streamactors.state_processor.overview import StateInfo

Types = Any
"""Of what a state holds: a type, or a pair of types for a map."""


def declaration_of(info: StateInfo, given: Declaration | type | None, types: Types) -> Declaration:
    """Raises StateAccessError where a class declares no such state, InvalidDataflow for both at once."""
    if given is not None and types is not None:
        raise InvalidDataflow(f"state {info.name!r}: give a declaration or types, not both")
    if isinstance(given, Declaration):
        return given
    if given is not None:
        return _declared_on(given, info)
    return by_schema(info) if types is None else by_types(info, types)


def states_of(operator: type) -> dict[str, Declaration]:
    """What a class declares, by the names under which it is stored."""
    return {declaration.stored or name: declaration for name, declaration in declared_states(operator).items()}


def _declared_on(operator: type, info: StateInfo) -> Declaration:
    declared = states_of(operator)
    if info.name not in declared:
        known = ", ".join(declared) or "none"
        raise StateAccessError(f"{operator.__qualname__} declares no state {info.name!r}; it declares: {known}")
    return declared[info.name]


def by_types(info: StateInfo, types: Types) -> Declaration:
    if info.kind in ("map", "broadcast"):
        if not isinstance(types, tuple) or len(types) != 2:
            raise InvalidDataflow(f"state {info.name!r} is a map: give types=(key type, value type)")
        if info.kind == "map":
            return MapState[Any, Any](*types, ttl=_ttl(info.schema))
        return BroadcastState[Any, Any](*types)
    return _made(info, types)


def by_schema(info: StateInfo) -> Declaration:
    """Reads, and writes, what was stored without the classes that it was made of."""
    schema = info.schema
    if info.kind == "timers":
        return TimerState(domain_of(info.name))
    if info.kind in ("map", "broadcast"):
        return by_types(info, (stored_serializer(schema["key"]), stored_serializer(schema["type"])))
    nullable = info.kind in ("value", "reducing")
    return _made(info, stored_serializer(schema["type"], nullable=nullable) if "type" in schema else None)


def _made(info: StateInfo, type: Any) -> Declaration:
    ttl = _ttl(info.schema)
    match info.kind:
        case "value":
            return ValueState[Any](type, default=UNSET, ttl=ttl)
        case "reducing":
            return ReducingState[Any](type, _latter, ttl=ttl)
        case "aggregating":
            return AggregatingState[Any, Any](_Accumulated(type, info.schema.get("aggregate")), ttl=ttl)
        case "list":
            return ListState[Any](type, ttl=ttl)
        case "operator list":
            return OperatorListState[Any](type)
        case "union list":
            return UnionListState[Any](type)
    raise IncompatibleState(
        f"operator {info.uid!r}, state {info.name!r}: {info.kind} state is not known to this version of streamactors"
    )


def _ttl(schema: Schema) -> Ttl | None:
    stored = schema.get("ttl")
    if stored is None:
        return None
    return Ttl(dt.timedelta(milliseconds=stored["after"]), refresh_on=stored["refresh_on"])


def _latter(before: Any, value: Any) -> Any:
    """Nothing is reduced here."""
    return value


class _Accumulated(Aggregate[Any, Any, Any]):
    """An aggregate of which only the accumulator is known, which is therefore its own result."""

    def __init__(self, type: Any, signature: Any) -> None:
        self.accumulator = type
        self._stored_signature = signature

    def create(self) -> Any:
        return None

    def add(self, accumulator: Any, value: Any) -> Any:
        return value

    def merge(self, left: Any, right: Any) -> Any:
        return right

    def result(self, accumulator: Any) -> Any:
        return accumulator

    def _signature(self) -> Any:
        return self._stored_signature


def stored_codec(declaration: Declaration, clock: Clock) -> EntryCodec[Any]:
    """Of keyed state. Keys whose class is not loaded come as `generic.Record`s."""
    codec: EntryCodec[Any] = codec_for(declaration, clock.time_ms)
    codec.use_keys(StoredKeys())
    return codec
