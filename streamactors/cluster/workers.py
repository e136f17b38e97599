"""What a job over several processes is given by whoever starts them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. `heartbeat`: between two signs of life; `lost_after`: without any, a process is taken for dead, and a
    worker ends its slice; `starting`: the same until the subtasks run, if it is longer, since user code that opens
    something, such as a model, may hold its process for long; `patience`: that a slice may take to end."""

    heartbeat: float = 1.0
    lost_after: float = 10.0
    starting: float = 0.0
    patience: float = 15.0

    @property
    def lost_at_start_after(self) -> float:
        return max(self.starting, self.lost_after)


class Workers(Protocol):
    """The processes of one job, numbered from 0."""

    @property
    def count(self) -> int: ...

    async def ready(self, replace: Collection[int]) -> Collection[int]:
        """Before each attempt: end those in `replace`, dead or alive, and start others under their numbers; return when
        all take messages: which of those in `replace` may live on, since nobody has seen them end. Raises what keeps
        the job, or this attempt, from running."""
