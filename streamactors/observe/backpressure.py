"""The shares of a subtask's time, from what it has counted: pure.

Invariant: shares are over the time since the last look that is at least `LEAST` old, so that two people who look at the
same moment do not disturb each other, and lie between 0 and 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from streamactors.observe.model import Load

LEAST: Final = 1.0
"""Seconds."""

Spent = tuple[float, float, float]
"""Seconds busy, idle, back-pressured since the attempt began."""


@dataclass(frozen=True, slots=True)
class _Look:
    time: float = 0.0
    spent: Mapping[str, Spent] = field(default_factory=dict)


class LoadMeter:
    """Of all subtasks of a job. The first look is since the attempt began."""

    def __init__(self) -> None:
        self._before = _Look()
        self._latest = _Look()

    def measure(self, now: float, spent: Mapping[str, Spent]) -> dict[str, Load]:
        if now - self._latest.time >= LEAST:
            self._before, self._latest = self._latest, _Look(now, spent)
        return {subtask: _shares(seconds, self._before.spent.get(subtask)) for subtask, seconds in spent.items()}


def _shares(now: Spent, before: Spent | None) -> Load:
    if before is None or sum(now) < sum(before):  # of an earlier attempt
        before = (0.0, 0.0, 0.0)
    busy, idle, held_back = (max(0.0, later - earlier) for later, earlier in zip(now, before, strict=True))
    total = busy + idle + held_back
    if total <= 0.0:
        return Load(busy=0.0, idle=1.0, backpressured=0.0, seconds=0.0)
    return Load(
        busy=round(busy / total, 4),
        idle=round(idle / total, 4),
        backpressured=round(held_back / total, 4),
        seconds=round(total, 3),
    )
