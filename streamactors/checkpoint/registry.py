"""Which files of a flow's folder are used by which checkpoints, and which may be used by the next ones. Pure.

Invariants:
1. A file is offered only while a complete checkpoint that the job goes on from refers to it: the one that its attempt
   was restored from, or the last one completed since. What was uploaded for a checkpoint that never was completed, or
   for one that turned out damaged, is never offered.
2. `in_use` holds every file that a complete checkpoint refers to, unless that is being deleted; every file that one in
   flight has taken; and every file that is offered. So a file that was not in use at one moment is not used later.
3. A file is known by its content (size and digest), never by its name.

Nothing of it is stored: the manifests say it all.
"""

from collections.abc import Collection

from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import FileHandle, Manifest


class FileRegistry:
    """Paths are relative to the flow's folder."""

    def __init__(self) -> None:
        self._offered: dict[tuple[int, bytes], FileHandle] = {}
        self._complete: dict[Place, frozenset[str]] = {}
        self._taken: dict[int, set[str]] = {}
        """By checkpoint in flight."""

    def go_on_from(self, content: Manifest | None) -> None:
        """What is taken next builds on this complete checkpoint; None: on nothing, so all of it is written."""
        files = content.reusable_files() if content is not None else ()
        self._offered = {(file.size, file.digest): file for file in files}

    def take(self, checkpoint: int, size: int, digest: bytes) -> FileHandle | None:
        """The offered file with this content, which `checkpoint`, in flight, uses from now on."""
        found = self._offered.get((size, digest))
        if found is not None:
            self._taken.setdefault(checkpoint, set()).add(found.path)
        return found

    def aborted(self, checkpoint: int) -> None:
        self._taken.pop(checkpoint, None)

    def completed(self, place: Place, content: Manifest) -> None:
        """One in flight, which those to come build on."""
        self.found(place, content)
        self._taken.pop(place.checkpoint, None)
        self.go_on_from(content)

    def found(self, place: Place, content: Manifest) -> None:
        """A complete checkpoint, whoever took it."""
        self._complete[place] = frozenset(file.path for file in content.files)

    def knows(self, place: Place) -> bool:
        return place in self._complete

    def forget(self, places: Collection[Place]) -> None:
        """They are being deleted."""
        for place in places:
            self._complete.pop(place, None)

    def in_use(self) -> frozenset[str]:
        """Every file that must stay."""
        offered = (file.path for file in self._offered.values())
        return frozenset(offered).union(*self._complete.values(), *self._taken.values())
