"""Who waits for whom in reading: the sources of one job that are aligned, by groups. Pure.

Invariants. The slowest member that counts never waits: its watermark is the one that all others are measured by. Who
has told nothing yet, is idle or has ended does not count. A member that waits is woken once the slowest has come far
enough, or nobody counts any more: so nobody waits for ever who could go on. Nothing of it is stored: after a restore
the members tell it again.
"""

from collections.abc import Callable


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

    def __init__(self) -> None:
        self.slowest: int | None = None
        self._members: list[Aligned] = []

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
        told = [member.watermark for member in self._members if member.watermark is not None]
        before, self.slowest = self.slowest, min(told, default=None)
        if self.slowest != before:
            self._wake_waiting(self.slowest)

    def _wake_waiting(self, slowest: int | None) -> None:
        for member in self._members:
            if member.resumes_at is not None and (slowest is None or slowest >= member.resumes_at):
                member.resumes_at = None
                member.wake()


class AlignmentGroups:
    """Those of one attempt at running a job, by name."""

    def __init__(self) -> None:
        self._groups: dict[str, AlignmentGroup] = {}

    def __getitem__(self, name: str) -> AlignmentGroup:
        return self._groups.setdefault(name, AlignmentGroup())
