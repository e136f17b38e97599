"""What every backend checks of what it is told to keep, to take over or to look up, and refuses in the same words."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from streamactors.errors import IncompatibleState, InvalidDataflow, StateAccessError, StreamactorsError
from streamactors.state.backend import StateBlock
from streamactors.state.blocks import EntryCodec, codec_for
from streamactors.state.descriptors import Declaration
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.timers import HIDDEN, holds_timers

_BUILTIN: Final = frozenset({str, int, bytes, float, bool})


class KeyedStore(Protocol):
    """One state of a keyed backend."""

    where: str

    @property
    def codec(self) -> EntryCodec[Any]: ...


StoreT = TypeVar("StoreT", bound=KeyedStore)


# -------------------------------------------------------------------------------------------------------------- binding
def check_new(name: str, bound: Collection[str], uid: str) -> None:
    """Raises InvalidDataflow."""
    if name in bound:
        raise InvalidDataflow(f"operator {uid!r}: two states have the name {name!r}")


def codec_of(declaration: Declaration, name: str, uid: str, time_ms: Callable[[], int]) -> EntryCodec[Any]:
    """Raises InvalidDataflow naming the state."""
    try:
        return codec_for(declaration, time_ms)
    except InvalidDataflow as error:
        raise InvalidDataflow(f"operator {uid!r}, state {name!r}: {error}") from error


@contextmanager
def located(where: str) -> Iterator[None]:
    """What is raised says also where."""
    try:
        yield
    except StreamactorsError as error:
        raise type(error)(f"{where}: {error}") from error


# ------------------------------------------------------------------------------------------------------------ restoring
class Reader(NamedTuple):
    """A state bound now: how it is named in errors, what hinders it from reading a stored schema, and how it is told
    to, if nothing does."""

    where: str
    problems: Callable[[Any], Sequence[str]]
    read_as: Callable[[Any], None] = lambda _: None


def check_schemas(
    stored: Mapping[str, Any], readers: Mapping[str, Reader], uid: str, *, allow_dropped: bool = False
) -> None:
    """Raises IncompatibleState naming operator, state and both types. `allow_dropped` gives up stored states that are
    no longer declared. If all fit, they are told to read what was stored so."""
    for name, schema in stored.items():
        reader = readers.get(name)
        if reader is not None:
            if problems := reader.problems(schema):
                raise IncompatibleState(f"{reader.where}: {'; '.join(problems)}")
        elif not allow_dropped:
            raise IncompatibleState(f"operator {uid!r}{_not_read(name)}, or allow dropping state")
    for name, schema in stored.items():
        if name in readers:
            readers[name].read_as(schema)


def _not_read(name: str) -> str:
    """What is stored under a name that nothing has now, and what to do."""
    if holds_timers(name):
        return " has stored timers, and defines no on_timer now: define it again"
    if name.startswith(HIDDEN):
        return f" has stored {name.removeprefix(HIDDEN)!r}, which this kind of step does not have: make it what it was"
    return f", state {name!r}: stored in the checkpoint, but no longer declared. Declare it again"


def check_stores(
    stored: Mapping[str, Any], stores: Mapping[str, KeyedStore], uid: str, *, allow_dropped: bool = False
) -> None:
    """See `check_schemas`."""
    readers = {name: Reader(store.where, store.codec.problems, store.codec.read_as) for name, store in stores.items()}
    check_schemas(stored, readers, uid, allow_dropped=allow_dropped)


def check_own(block: StateBlock, groups: KeyGroupRange, uid: str) -> None:
    """Raises IncompatibleState for a block of another subtask."""
    if block.group not in groups:
        raise IncompatibleState(
            f"operator {uid!r}, state {block.state!r}: a block of key group {block.group} was given to "
            f"the subtask of the key groups {groups}"
        )


def check_keys(keys: Sequence[Any], group: int, max_parallelism: int, where: str) -> None:
    """A key that no longer falls into its group would never be found again. One stands for all of its type, except
    for classes, whose fields may have changed. Raises IncompatibleState."""
    builtin = _BUILTIN.issuperset(map(type, keys))
    doubtful: Iterable[Any] = {type(key): key for key in keys}.values() if builtin else keys
    for key in doubtful:
        now = key_group(key, max_parallelism)
        if now != group:
            raise IncompatibleState(
                f"{where}: the key {key!r} is stored in key group {group}, and falls into {now} now: the "
                "fields of its class, or the max parallelism, have changed"
            )


# ----------------------------------------------------------------------------------------------------------- looking in
def named(stores: Mapping[str, StoreT], name: str, uid: str) -> StoreT:
    """Raises StateAccessError if the user declared no such state."""
    declared = {each: store for each, store in stores.items() if not each.startswith(HIDDEN)}
    if name not in declared:
        raise StateAccessError(f"operator {uid!r} has no state {name!r}; it declares: {', '.join(declared) or 'none'}")
    return declared[name]


def check_reachable(group: int, groups: KeyGroupRange, where: str) -> None:
    """Raises StateAccessError."""
    if group not in groups:
        raise StateAccessError(f"{where}: key group {group} is not among the {groups} of this subtask")
