"""What a step's state was written for, kept beside it, so that another version of the program does not misread it."""

from collections.abc import Iterable

from streamactors.errors import IncompatibleState
from streamactors.operators.base import LinkContext
from streamactors.state.backend import KeyedBackend
from streamactors.state.descriptors import UnionListState


def keep_structure(
    ctx: LinkContext, stored: UnionListState[str], structure: str, states: Iterable[str], what: str
) -> None:
    """Before the first record. `what` there is, of another structure, if `states` hold anything.

    Raises IncompatibleState."""
    others = [found for found in stored if found != structure]
    if others and ctx.backend is not None and any(_holds(ctx.backend, state) for state in states):
        raise IncompatibleState(
            f"operator {ctx.uid!r}: there are {what}, {others[0]!r}; it is {structure!r} now, and they mean nothing to "
            "it. Give the new one a uid of its own and allow the old one's state to be dropped, or let the old one run "
            "until nothing is left"
        )
    stored.clear()
    stored.append(structure)


def _holds(backend: KeyedBackend, state: str) -> bool:
    return next(iter(backend.scan(state)), None) is not None
