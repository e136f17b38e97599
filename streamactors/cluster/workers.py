"""What a job over several processes is given by whoever starts them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds. `heartbeat`: between two signs of life; `lost_after`: without any, a process is taken for dead, and a
    worker ends its slice; `patience`: that a slice may take to end."""

    heartbeat: float = 1.0
    lost_after: float = 10.0
    patience: float = 15.0


class Workers(Protocol):
    """The processes of one job, numbered from 0."""

    @property
    def count(self) -> int: ...

    async def ready(self, replace: Collection[int]) -> None:
        """Before each attempt: end those in `replace`, dead or alive, and start others under their numbers; return when
        all take messages. Raises what keeps the job, or this attempt, from running."""
