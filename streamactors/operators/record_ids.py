"""Names for records: `ctx.record_id`, an idempotency key for calls outside.

`orders/in/topic[3]@18234.0.2`: flow, source, split, the record's number in it; then, for each step that may emit
several, the how manieth output it is of its record. `.dead` is what such a step sent to its dead letters instead;
`~big` came from the step `big` to one that the same record may come to by several edges.

Invariants. Two records of one step have two names. A record that is made again (by a retry, after a crash, in another
parallelism or another chaining) has the name that it had: nothing of a name depends on time, on subtasks or on batches.
What can't be named so is refused when the flow is planned. Only jobs that use names carry them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from types import CodeType, FunctionType
from typing import Any, Final

from streamactors.errors import StateAccessError

_NAMES: Final = frozenset({"record_id", "record_ids"})

CURRENT: Final[ContextVar[tuple[str | None, ...] | None]] = ContextVar("streamactors.record_ids", default=None)
"""The records of the call that is under way, where its step carries their names."""


def record_id() -> str:
    """Within a function of `map_async`: the name of its record, an idempotency key for what it calls. The same when the
    call is made again: over retries, restarts and rescaling.

    Raises StateAccessError where there is none, or several: see `record_ids`.
    """
    ids = record_ids()
    if len(ids) != 1:
        raise StateAccessError(
            f"record_id(): this call works on {len(ids)} records (batch=…): use record_ids(), in the order of the list"
        )
    return ids[0]


def record_ids() -> Sequence[str]:
    """As `record_id`, of all records of a call with `batch=`, in their order."""
    ids = CURRENT.get()
    if ids is None:
        raise StateAccessError(NOT_CARRIED)
    return [known(each) for each in ids]


NOT_CARRIED: Final = (
    "no record ids are carried to this step: a function of map_async and an operator have them where their own code "
    "says record_id. Where only something that they call does, say so by an attribute of the function, class or "
    "factory: uses_record_id = True. There are none in other steps, nor in on_timer, process_broadcast, open and "
    "close, nor outside of a call"
)
_UNKNOWN: Final = (
    "this record was in flight in the checkpoint, taken by a version of the flow that carried no record ids: restore "
    "that version, let it finish what is in flight (stop it with a savepoint), and go on from there with this one"
)


def known(id: str | None) -> str:
    """Raises StateAccessError for a record that came without, from an older checkpoint."""
    if id is None:
        raise StateAccessError(_UNKNOWN)
    return id


# ----------------------------------------------------------------------------------------------------- names of records
def at_source(flow: str, uid: str, split: str, numbers: Sequence[int]) -> list[str | None]:
    """Uids and names of flows have no slash in them, so that no two records can get one name."""
    prefix = f"{flow}/{uid}/{split}@"
    return [f"{prefix}{number}" for number in numbers]


def undecodable(flow: str, uid: str, split: str, origin: str) -> str:
    return f"{flow}/{uid}/{split}@!{origin}"


def output(id: str | None, place: int) -> str | None:
    """Of the output at `place`, from 0, of what was emitted for a record."""
    return None if id is None else f"{id}.{place}"


def dead(id: str | None) -> str | None:
    """Of its dead letter: nothing else that is ever emitted for the record has that name."""
    return None if id is None else f"{id}.dead"


def fanned_out(ids: Sequence[str | None], counts: Sequence[int]) -> list[str | None]:
    """Of `counts[i]` outputs for record i."""
    return [output(id, place) for id, count in zip(ids, counts, strict=True) for place in range(count)]


def by_edge(ids: Sequence[str | None], edge: str) -> list[str | None]:
    """Of records that enter a step by one of several edges: over a diamond, one record comes by two."""
    return [None if id is None else f"{id}~{edge}" for id in ids]


# -------------------------------------------------------------------------------------------------------- who uses them
def uses_record_id(user: Any) -> bool:
    """Whether the code of a function, of an operator class or of a factory of one says so; seen through partials,
    decorators that keep `__wrapped__`, methods and what a class inherits. `uses_record_id` on it has the last word."""
    said = getattr(user, "uses_record_id", None)
    if isinstance(said, bool):
        return said
    return any(not _NAMES.isdisjoint(code.co_names) for code in _codes(user))


def _codes(user: Any) -> Iterator[CodeType]:
    """All code of it, nested functions too."""
    for function in _functions(user):
        waiting = [function.__code__]
        while waiting:
            code = waiting.pop()
            yield code
            waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _functions(user: Any) -> Iterator[FunctionType]:
    if isinstance(user, functools.partial):
        user = user.func
    if isinstance(user, type):
        for member in _members(user):
            yield from _unwrapped(member)
    elif isinstance(user, FunctionType):
        yield from _unwrapped(user)
    elif hasattr(user, "__func__"):
        yield from _functions(user.__func__)
    elif callable(user):  # an object with __call__
        yield from _functions(type(user))


def _members(cls: type) -> Iterator[Any]:
    for base in cls.__mro__:
        if not base.__module__.startswith("streamactors.operators."):
            yield from vars(base).values()


def _unwrapped(member: Any) -> Iterator[FunctionType]:
    """A function, and those that it wraps."""
    if isinstance(member, property):
        member = member.fget
    member = getattr(member, "__func__", member)  # of a static or class method
    while isinstance(member, FunctionType):
        yield member
        member = getattr(member, "__wrapped__", None)


def made_by(factory: Callable[[], Any], kinds: tuple[type, ...]) -> list[type]:
    """The operator classes that a factory may make: itself, or for a function, those that its code names."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    if isinstance(factory, type):
        return [factory]
    named = [value for function in _functions(factory) for value in _named(function)]
    return [value for value in named if isinstance(value, type) and issubclass(value, kinds)]


def _named(function: FunctionType) -> Iterator[Any]:
    for name in function.__code__.co_names:
        yield function.__globals__.get(name)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing in it yet
            yield cell.cell_contents
