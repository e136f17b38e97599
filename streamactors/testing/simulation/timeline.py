"""Which checkpoint the next process starts from: the latest, or one that its user names.

Whoever goes back to an earlier one processes again what came after it, and its output comes twice, unless it is taken
out of the log. So that is done here, and then nothing else may be lost or doubled: the ids of checkpoints tell which
records belong to which.

Not every savepoint can be gone back to. It commits nothing by itself, so what it lists must have been committed since
(a receipt says so), or nobody may have started since, who fences.
"""

from dataclasses import dataclass, field
from posixpath import dirname
from random import Random
from typing import Final

from streamactors.checkpoint import layout
from streamactors.checkpoint.manifest import Manifest
from streamactors.testing.simulation.disk import Folder

SAVEPOINTS: Final = "/savepoints"


@dataclass(frozen=True)
class Start:
    """`restore` and `claim` as users give them. `checkpoint`: its id, None for the latest."""

    restore: str = "latest"
    checkpoint: int | None = None
    claim: bool = False


@dataclass
class Timeline:
    """What a user knows of a flow's checkpoints. The next process starts `from_here`."""

    root: Folder
    attempts: int = 0
    """Begun by any process so far."""
    from_here: Start = field(default_factory=Start)
    _published: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By folder: the checkpoint's id, and how many attempts had begun by then."""
    _told: set[str] = field(default_factory=set)
    """The savepoints whose request was answered."""
    _named: set[str] = field(default_factory=set)
    """Started from by their URI, and not claimed."""
    _claimed: set[str] = field(default_factory=set)
    _abandoned: list[tuple[int, int]] = field(default_factory=list)
    """Checkpoints above the one and up to the other are not of this history."""
    _savepoints: int = 0

    @property
    def savepoints(self) -> int:
        """Taken, and known to be."""
        return len(self._told)

    def new_savepoint(self) -> str:
        """A folder that nobody has used."""
        self._savepoints += 1
        return f"file://{SAVEPOINTS}/{self._savepoints}"

    def told(self, uri: str) -> None:
        self._told.add(uri.removeprefix("file://"))

    def published(self, content: Manifest, path: str) -> None:
        self._published[dirname(path)] = content.checkpoint, self.attempts

    def attempt_begins(self) -> None:
        """Where it starts from is on record by now: whoever comes next goes on from there by itself."""
        self.attempts += 1
        if self.from_here.checkpoint is not None and not self.from_here.claim:
            self._named.add(self.from_here.restore.removeprefix("file://"))
        self.from_here = Start()

    def deleted(self) -> list[str]:
        """What no job may delete, and is not there."""
        lasting = sorted((self._told | self._named) - self._claimed)
        return [folder for folder in lasting if not self._holds(folder, layout.MANIFEST)]

    # ------------------------------------------------------------------------------------------------------ going back
    def go_back(self, draw: Random) -> Start | None:
        """To any that can be gone back to; None if there is none."""
        possible = [folder for folder in sorted(self._published) if self._possible(folder)]
        if not possible:
            return None
        folder = draw.choice(possible)
        checkpoint, _ = self._published[folder]
        self._abandoned.append((checkpoint, max(number for number, _ in self._published.values())))
        self.from_here = Start(f"file://{folder}", checkpoint, claim=draw.random() < 0.5)
        if self.from_here.claim:
            self._claimed.add(folder)
        return self.from_here

    def _possible(self, folder: str) -> bool:
        checkpoint, attempts = self._published[folder]
        if not self._holds(folder, layout.MANIFEST) or any(low < checkpoint <= high for low, high in self._abandoned):
            return False
        if folder.startswith(SAVEPOINTS) and folder not in self._told:
            return False
        return self._holds(folder, layout.RECEIPT) or attempts == self.attempts

    def _holds(self, folder: str, name: str) -> bool:
        return self.root.find(f"{folder}/{name}") is not None
