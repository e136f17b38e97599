"""Who waits for whom in reading: the sources of one job that are aligned, by groups. Pure.

Invariants. The slowest member that counts never waits: its watermark is the one that all others are measured by. Who
has told nothing yet, is idle or has ended does not count. A member that waits is woken once the slowest has come far
enough, or nobody counts any more: so nobody waits for ever who could go on. Nothing of it is stored: after a restore
the members tell it again.
"""

from collections.abc import Callable, Mapping


class Aligned:
    """One member: a subtask of a source."""

    def __init__(self, group: "AlignmentGroup", wake: Callable[[], None]) -> None:
        self.wake = wake
        self.watermark: int | None = None
        self.resumes_at: int | None = None
        self._group = group

    def tell(self, watermark: int | None) -> int | None:
        """Where it is, None while it does not count. Returns where the slowest of the group is, None if none counts."""
        if watermark != self.watermark:
            self.watermark = watermark
            self._group.changed()
        return self._group.slowest

    def wait(self, resumes_at: int | None) -> None:
        """Be woken when the slowest is at `resumes_at` (None: no need)."""
        self.resumes_at = resumes_at

    def leave(self) -> None:
        """It has ended."""
        self._group.remove(self)


class AlignmentGroup:
    """Its members wait for the slowest of them."""

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        """`on_change`: called when a member has told something else than before."""
        self.slowest: int | None = None
        self._elsewhere: int | None = None
        self._members: list[Aligned] = []
        self._on_change = on_change

    def join(self, wake: Callable[[], None]) -> Aligned:
        """`wake` must not call back."""
        member = Aligned(self, wake)
        self._members.append(member)
        return member

    def remove(self, member: Aligned) -> None:
        if member in self._members:
            self._members.remove(member)
            self.changed()

    def changed(self) -> None:
        """Look again who is the slowest."""
        self._look()
        if self._on_change is not None:
            self._on_change()

    @property
    def slowest_here(self) -> int | None:
        """Of the members in this process."""
        return min((member.watermark for member in self._members if member.watermark is not None), default=None)

    def told_elsewhere(self, slowest: int | None) -> None:
        """Of the members in other processes."""
        self._elsewhere = slowest
        self._look()

    def _look(self) -> None:
        told = [slowest for slowest in (self.slowest_here, self._elsewhere) if slowest is not None]
        before, self.slowest = self.slowest, min(told, default=None)
        if self.slowest != before:
            self._wake_waiting(self.slowest)

    def _wake_waiting(self, slowest: int | None) -> None:
        for member in self._members:
            if member.resumes_at is not None and (slowest is None or slowest >= member.resumes_at):
                member.resumes_at = None
                member.wake()


class AlignmentGroups:
    """Those of one attempt at running a job, by name; of one process, which is told of the others. What these tell is
    late: a member may then wait longer than it has to, never for ever, since where they are only grows."""

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self._groups: dict[str, AlignmentGroup] = {}
        self._on_change = on_change

    def __getitem__(self, name: str) -> AlignmentGroup:
        if name not in self._groups:
            self._groups[name] = AlignmentGroup(self._on_change)
        return self._groups[name]

    def slowest_here(self) -> dict[str, int | None]:
        """By group."""
        return {name: group.slowest_here for name, group in self._groups.items()}

    def told_elsewhere(self, slowest: Mapping[str, int | None]) -> None:
        """By group."""
        for name, watermark in slowest.items():
            self[name].told_elsewhere(watermark)
