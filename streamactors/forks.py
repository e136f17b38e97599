"""What a forked child lets go of: locks, which belong to open files, and would seem to be held by a child that outlives
its parent.

That happens in the child before any of its own code runs.
"""

import os
import weakref
from typing import Protocol


class Held(Protocol):
    def let_go(self) -> None:
        """Without a trace in the file system: it stays the parent's. No matter if it is let go of already."""


_held: "weakref.WeakSet[Held]" = weakref.WeakSet()


def let_go_in_child(held: Held) -> None:
    """From now on, until `keep_in_child`, or until it is no more."""
    _held.add(held)


def keep_in_child(held: Held) -> None:
    """There is nothing to let go of any more."""
    _held.discard(held)


def _in_child() -> None:
    for held in list(_held):
        held.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
