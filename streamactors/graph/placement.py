"""Which worker runs which subtask: frozen data, from the plan and the number of workers alone.

Invariant: every subtask is on one worker, and the two ends of a forward channel are on the same one, so that it needs
no network. The same plan, workers and strategy give the same placement in every process: a worker that is replaced
under its number gets the subtasks of the one before, and nobody else's move.

A *slot* takes one subtask of each chain at most (Flink: slot sharing), so that a flow needs as many as its widest chain
has subtasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

from streamactors.errors import InvalidConfig
from streamactors.graph.physical import ChannelId, PhysicalPlan, SubtaskId

Strategy = Literal["spread", "pack"]
"""`spread`: every chain over all workers, as evenly as can be. `pack`: subtask i of all chains together in slot i, and
the slots of one worker filled before the next one's: as few workers as will do."""

STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)


@dataclass(frozen=True)
class Placement:
    """`slices[worker]`: the subtasks of a worker, in the order of the plan; empty where it has nothing to do. `slots`:
    of each worker, whether they were given or taken."""

    slices: tuple[tuple[SubtaskId, ...], ...]
    strategy: Strategy
    slots: int

    @property
    def workers(self) -> int:
        return len(self.slices)

    @property
    def used(self) -> int:
        """Workers that have anything to do."""
        return sum(map(bool, self.slices))

    @cached_property
    def _workers(self) -> dict[SubtaskId, int]:
        return {subtask: worker for worker, slice in enumerate(self.slices) for subtask in slice}

    def worker_of(self, subtask: SubtaskId) -> int:
        """From 0."""
        return self._workers[subtask]

    def crosses(self, channel: ChannelId) -> bool:
        """Whether it leads from one worker to another."""
        return self.worker_of(channel.sender) != self.worker_of(channel.receiver)


def place(plan: PhysicalPlan, workers: int, strategy: Strategy = "spread", *, slots: int | None = None) -> Placement:
    """`slots`: of each worker; None: as many as it takes. Raises InvalidConfig where there are too few for the flow."""
    if workers < 1:
        raise InvalidConfig(f"workers = {workers}: there must be one at least")
    if strategy not in STRATEGIES:
        raise InvalidConfig(f"placement {strategy!r}: it must be one of {', '.join(map(repr, STRATEGIES))}")
    widest = max((vertex.parallelism for vertex in plan.vertices), default=0)
    slots = max(1, -(-widest // workers)) if slots is None else slots
    _check_slots(plan, workers, slots)
    chosen = _spread(plan, workers) if strategy == "spread" else _packed(plan, slots)
    slices: list[list[SubtaskId]] = [[] for _ in range(workers)]
    for subtask in plan.subtasks:
        slices[chosen[subtask]].append(subtask)
    return Placement(tuple(map(tuple, slices)), strategy, slots)


def _check_slots(plan: PhysicalPlan, workers: int, slots: int) -> None:
    for vertex in plan.vertices:
        if vertex.parallelism > workers * slots:
            raise InvalidConfig(
                f"step {vertex.uid!r} has {vertex.parallelism} subtasks, and {workers} workers with {slots} slots each "
                f"have room for {workers * slots}: give more workers or slots, or the step less parallelism"
            )


# --------------------------------------------------------------------------------------------------------------- spread
def _spread(plan: PhysicalPlan, workers: int) -> dict[SubtaskId, int]:
    """The largest groups first, so that the small ones even out what is left."""
    load = [0] * workers
    chosen: dict[SubtaskId, int] = {}
    for chains in sorted(plan.forward_groups, key=len, reverse=True):
        for index, worker in enumerate(_dealt(chains[0].parallelism, load)):
            load[worker] += len(chains)
            chosen.update((SubtaskId(chain.uid, index), worker) for chain in chains)
    return chosen


def _dealt(width: int, load: Sequence[int]) -> list[int]:
    """The worker of each index: neighbours together, and what is left over to those with the least load."""
    workers = range(len(load))
    least = sorted(workers, key=lambda worker: (load[worker], worker))[: width % len(load)]
    shares = (width // len(load) + (worker in least) for worker in workers)
    return [worker for worker, share in enumerate(shares) for _ in range(share)]


# ----------------------------------------------------------------------------------------------------------------- pack
def _packed(plan: PhysicalPlan, slots: int) -> dict[SubtaskId, int]:
    return {subtask: subtask.index // slots for subtask in plan.subtasks}
