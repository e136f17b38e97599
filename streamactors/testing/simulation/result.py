"""What a run has come to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamactors.testing.simulation.state import States
from streamactors.testing.simulation.world import World


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """The same seed gives the same `trace_hash`. `faults` counts by kind what has struck; `reused_files`, of the local
    disk, what checkpoints have in common with earlier ones."""

    seed: int
    trace_hash: str
    faults: Mapping[str, int]
    processes: int
    attempts: int
    restores: int
    rescales: int
    mode_switches: int
    backend_switches: int
    checkpoints: int
    savepoints: int
    reused_files: int
    steps: int
    virtual_seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check is given once the flow has read all of its bounded input, and ended."""

    world: World
    exactly_once: bool
    """False if any process of the run took at-least-once checkpoints: records may then be processed twice."""
    states: Mapping[str, States]
    """By operator and state: what each key holds in the last checkpoint."""
    widths: Mapping[str, set[int]] = field(default_factory=dict)
    """By step: every parallelism that it has run at."""

    def output(self, topic: str = "out") -> list[Any]:
        """What readers of committed records see, in order."""
        return self.world.output(topic)


Check = Callable[[Outcome], None]
"""Raises AssertionError where an invariant of the flow is broken."""
