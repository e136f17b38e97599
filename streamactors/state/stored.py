"""What every backend checks of stored state before it takes it over, and refuses in the same words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from streamactors.errors import IncompatibleState
from streamactors.state.backend import StateBlock
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.timers import HIDDEN

_BUILTIN: Final = frozenset({str, int, bytes, float, bool})


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
        elif not allow_dropped and name.startswith(HIDDEN):
            raise IncompatibleState(
                f"operator {uid!r} has stored timers, and defines no on_timer now: define it again, or allow dropping "
                "state"
            )
        elif not allow_dropped:
            raise IncompatibleState(
                f"operator {uid!r}, state {name!r}: stored in the checkpoint, but no longer declared. "
                "Declare it again, or allow dropping state"
            )
    for name, schema in stored.items():
        if name in readers:
            readers[name].read_as(schema)


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
