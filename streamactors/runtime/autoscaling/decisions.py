"""Whether a job should be rescaled, and how: one observation in, one decision with its reasons out. Pure, no clock.

Chains that forward edges connect are one *group*: they are as wide as each other, and the one with the most to do
decides. Steps to which the flow gives `parallelism=1` stay alone, and with them what they hand their records straight
on to: dealt out over several, the records of a key would come in another order.

Invariants, which keep it from going up and down for ever:
- A group that is left alone has a load (see `Demand.load`) within `target ± tolerance`; one that is changed gets as
  many subtasks as bring its load down to `target`, rounded up. Both ways lead to the same number, so that a constant
  load changes nothing once it is reached.
- More is decided by one window; less only once every window of `scale_down_after` has asked for it, and it is the
  largest number that any of them asked for.
- After a rescale nothing is decided for `cooldown`, and what was measured before it is forgotten, as it is after any
  other end of an attempt. One that fails, or that the job goes back from, is followed by twice the rest of the one
  before it.
- Where more subtasks have brought no more throughput, no more are added.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from streamactors.config import Autoscale
from streamactors.graph.physical import PhysicalPlan, Vertex
from streamactors.runtime.autoscaling.demand import Demand, Observation, goes_on, measure

EFFECTIVE: Final = 0.1
"""Of the throughput that more subtasks should have brought: less than that is none."""
LONGEST_REST: Final = 32
"""Times `cooldown`."""
ROUNDING: Final = 1e-9

Group = tuple[Vertex, ...]


@dataclass(frozen=True, slots=True)
class GroupDecision:
    """Of one group, called by the uid of its first step. `load`: see `Demand.load`, of the chain with the most to do;
    None: not known. `rate`: records a second, of the group's first chain."""

    uid: str
    parallelism: int
    wanted: int
    load: float | None
    busy: float
    rate: float
    pending: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`wait`: nothing can be said yet; `keep`: all is well, or not to be helped; `rescale`: to `parallelism`, by uid of
    the first step of each group that changes, or of all its steps, where some stay alone."""

    action: Literal["wait", "keep", "rescale"]
    reason: str
    groups: tuple[GroupDecision, ...] = ()
    parallelism: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a group was before it got more subtasks."""

    parallelism: int
    rate: float
    now: int

    def helped(self, rate: float) -> bool:
        expected = self.now / self.parallelism - 1
        return rate - self.rate >= EFFECTIVE * expected * self.rate


@dataclass(slots=True)
class _Lower:
    """A group that asks for fewer: since when, and for how many at most."""

    since: float
    wanted: int


class Autoscaler:
    """`on` is told what is observed, again and again; who is told to rescale does so, and says how
    it went. `room`: of the deployment, for subtasks of one step; None: for any number."""

    def __init__(self, settings: Autoscale, room: int | None = None) -> None:
        self._settings = settings
        self._room = room
        self._target = settings.target
        self._high = min(1.0, settings.target + settings.tolerance)
        self._low = settings.target - settings.tolerance
        self._window = settings.window.total_seconds()
        self._catch_up = settings.catch_up.total_seconds()
        self._patience = settings.scale_down_after.total_seconds()
        self._cooldown = settings.cooldown.total_seconds()
        self._seen: deque[Observation] = deque()
        self._quiet_until = -math.inf
        self._failed = 0
        """Rescales in a row."""
        self._lower: dict[str, _Lower] = {}
        self._raised: dict[str, _Raised] = {}

    def on(self, observation: Observation) -> Decision:
        if self._seen and not goes_on(self._seen[-1], observation):
            self._forget()
        self._seen.append(observation)
        while len(self._seen) > 1 and observation.time - self._seen[1].time >= self._window:
            self._seen.popleft()
        measured = observation.time - self._seen[0].time
        if observation.time < self._quiet_until:
            return Decision("wait", f"{self._quiet_until - observation.time:.0f} s more of rest after a rescale")
        if measured < self._window:
            return Decision("wait", f"measured for {measured:.0f} s of {self._window:.0f} s")
        demands = measure(self._seen[0], observation, self._catch_up)
        groups = [self._group(group, demands, observation) for group in observation.plan.forward_groups]
        return self._decided(groups, observation)

    def rescaled(self, time: float) -> None:
        """It was done, or is only to be told."""
        self._quiet_until = time + self._cooldown * min(2**self._failed, LONGEST_REST)
        self._forget()

    def failed(self, time: float) -> None:
        """It could not be done, or the job has gone back."""
        self._failed += 1
        self.rescaled(time)

    def held(self) -> None:
        """The job runs as it was asked to."""
        self._failed = 0

    def _forget(self) -> None:
        self._seen.clear()
        self._lower.clear()

    def _decided(self, groups: Sequence[GroupDecision], observation: Observation) -> Decision:
        changing = [group for group in groups if group.wanted != group.parallelism]
        if not changing:
            busiest = max(groups, key=lambda group: group.load or 0.0)
            return Decision("keep", f"{busiest.uid}: {busiest.reason}", tuple(groups))
        for group in changing:
            if group.wanted > group.parallelism:
                self._raised[group.uid] = _Raised(group.parallelism, group.rate, group.wanted)
            else:
                self._raised.pop(group.uid, None)
        self.rescaled(observation.time)
        changes = "; ".join(f"{group.uid} {group.parallelism} → {group.wanted}, {group.reason}" for group in changing)
        wanted = {group.uid: group.wanted for group in changing}
        return Decision("rescale", changes, tuple(groups), _asked(observation.plan, wanted))

    # -------------------------------------------------------------------------------------------------------- one group
    def _group(self, group: Group, demands: Mapping[str, Demand], observation: Observation) -> GroupDecision:
        mine = [demands[vertex.uid] for vertex in group]
        first, width = group[0], group[0].parallelism
        known = [demand.load for demand in mine if demand.load is not None]
        load = max(known) if len(known) == len(mine) else None
        wanted, reason = self._wanted(group, mine, load, observation)
        worst = max(mine, key=lambda demand: demand.load or demand.busy)
        return GroupDecision(first.uid, width, wanted, load, worst.busy, mine[0].rate, mine[0].pending, reason)

    def _wanted(
        self, group: Group, demands: Sequence[Demand], load: float | None, observation: Observation
    ) -> tuple[int, str]:
        uid, width, plan = group[0].uid, group[0].parallelism, observation.plan
        if reason := self._fixed(group, plan):
            return width, reason
        if load is None:
            self._lower.pop(uid, None)
            return width, "nothing comes through, so that nothing can be told"
        asked = self._fitting(width, load)
        wanted, limit = self._bounded(asked, group, demands)
        reason = _reason(load, demands, self._target) + limit
        if wanted >= width:
            self._lower.pop(uid, None)
            return self._more(uid, width, wanted, load, demands, reason)
        if width > self._most(group, demands)[0]:  # not for want of load
            return wanted, reason
        return self._fewer(uid, width, wanted, observation.time, reason)

    def _fixed(self, group: Group, plan: PhysicalPlan) -> str:
        steps = self._settings.steps
        uids = [node.uid for vertex in group for node in vertex.nodes]
        if steps is not None and not set(steps) & set(uids):
            return "not among autoscale.steps"
        alone = _alone(group, plan)
        if alone and (uids[0] in alone or group[0].parallelism > 1):  # made wider by hand
            return f"the flow gives {alone[0]!r} parallelism=1"
        return ""

    def _fitting(self, width: int, load: float) -> int:
        if self._low <= load <= self._high:
            return width
        needed = max(1, math.ceil(width * load / self._target - ROUNDING))
        factor = self._settings.max_factor
        most = max(width + 1, math.floor(width * factor + ROUNDING))
        least = min(width - 1, math.ceil(width / factor - ROUNDING))
        return min(max(needed, least), most)

    def _bounded(self, asked: int, group: Group, demands: Sequence[Demand]) -> tuple[int, str]:
        most, why = self._most(group, demands)
        least = min(self._settings.min_parallelism, most)
        if asked > most:
            return most, f"; no more than {most}: {why}"
        return (least, f"; autoscale.min_parallelism is {least}") if asked < least else (asked, "")

    def _most(self, group: Group, demands: Sequence[Demand]) -> tuple[int, str]:
        limits = [(group[0].max_parallelism, "the job's max_parallelism")]
        if self._settings.max_parallelism is not None:
            limits.append((self._settings.max_parallelism, "autoscale.max_parallelism"))
        if self._room is not None:
            limits.append((self._room, "its workers have no more slots"))
        splits = (demand.splits for demand in demands if demand.splits)
        limits += [(max(group[0].parallelism, count), f"it has {count} splits to read") for count in splits]
        return min(limits)

    def _more(
        self, uid: str, width: int, wanted: int, load: float, demands: Sequence[Demand], reason: str
    ) -> tuple[int, str]:
        raised = self._raised.get(uid)
        if wanted == width or raised is None:
            if load <= self._high:
                self._raised.pop(uid, None)
            return wanted, reason
        saturated = max(demand.busy for demand in demands) > self._high
        if raised.now == width and saturated and not raised.helped(demands[0].rate):
            return width, (
                f"{reason}; but {raised.now} subtasks do no more than {raised.parallelism} did, so more are no help: "
                "each process computes on one core, and one hot key in one subtask"
            )
        return wanted, reason

    def _fewer(self, uid: str, width: int, wanted: int, time: float, reason: str) -> tuple[int, str]:
        lower = self._lower.setdefault(uid, _Lower(time, wanted))
        lower.wanted = max(lower.wanted, wanted)
        left = lower.since + self._patience - time
        if left > 0:
            return width, f"{reason}; {left:.0f} s more before it gets fewer"
        return lower.wanted, reason


def _alone(group: Group, plan: PhysicalPlan) -> list[str]:
    """By uid: steps that the flow wants in one subtask, and those behind them in the group; in topological order."""
    alone: list[str] = []
    uids = {vertex.uid for vertex in group}
    for vertex in group:  # in topological order
        entering = [edge for edge in plan.edges if edge.downstream == vertex.uid and edge.upstream in uids]
        behind = any(plan.vertex[edge.upstream].nodes[edge.link].uid in alone for edge in entering)
        for node in vertex.nodes:
            behind = behind or node.parallelism == 1
            if behind:
                alone.append(node.uid)
    return alone


def _asked(plan: PhysicalPlan, wanted: Mapping[str, int]) -> dict[str, int]:
    asked: dict[str, int] = {}
    for group in plan.forward_groups:
        width, alone = wanted.get(group[0].uid), _alone(group, plan)
        if width is not None and alone:  # who is not named would go with the others
            asked |= {node.uid: 1 if node.uid in alone else width for vertex in group for node in vertex.nodes}
        elif width is not None:
            asked[group[0].uid] = width
    return asked


def _reason(load: float, demands: Sequence[Demand], target: float) -> str:
    busiest = max(demands, key=lambda demand: demand.load or 0.0)
    words = [f"load {load:.2f}, target {target:.2f}: busy {busiest.busy:.0%}"]
    if busiest.growth is not None and abs(busiest.growth - 1.0) >= 0.01:
        words.append(f"{busiest.growth:.2f} times the {busiest.rate:.0f} records/s are to come")
    if demands[0].pending:
        words.append(f"{demands[0].pending:.0f} pending")
    return ", ".join(words)
