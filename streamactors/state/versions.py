"""Which key groups have not changed since an earlier snapshot, for backends whose checkpoints may refer to what earlier
ones have stored.

Invariant: two snapshots that show the same `Version` of a group of a state hold the same entries of it. A group that
may have changed, were it only that something mutable was read, has another version in the next snapshot. Where a
version is stored, and whether that may be referred to, is no matter of the backend's.
"""

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from streamactors.state.backend import KeyedSnapshot

StateGroup = tuple[str, int]
"""A state and a key group."""


class Version:
    """What one key group of one state holds; equal to itself only."""

    __slots__ = ("__weakref__",)


class VersionedSnapshot(KeyedSnapshot, Protocol):
    @property
    def versions(self) -> Mapping[StateGroup, Version]:
        """Of what it has still to give out: groups without an entry are not among them."""

    def leave_out(self, groups: Collection[StateGroup]) -> None:
        """These are not to be given out. Before the first block is taken."""


@runtime_checkable
class VersionedBackend(Protocol):
    def begin_versioned_snapshot(self, checkpoint_id: int) -> VersionedSnapshot:
        """As `begin_snapshot`."""

    def version(self, state: str, group: int) -> Version:
        """Of what the group holds now. Raises StateAccessError for an unknown state or a group of another subtask."""


def versioned(backend: object) -> VersionedBackend | None:
    """The same backend, if it tells versions."""
    return backend if isinstance(backend, VersionedBackend) else None
