"""The parallelism that a job runs by: what its configuration and its flow say, and what it was rescaled to since.

Invariant: steps that hand their records straight on to each other keep one width, unless they are named or the flow
gives them one of their own: records would else be dealt out between them, and those of a key come in another order.
Pure.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from streamactors.errors import InvalidConfig
from streamactors.graph.logical import Forward
from streamactors.graph.physical import PhysicalPlan


@dataclass(frozen=True)
class Parallelism:
    """`default`: of steps for which neither the flow nor `steps` gives one. `steps`: by uid, ahead of the flow."""

    default: int = 1
    steps: Mapping[str, int] = field(default_factory=dict)

    def rescaled(self, default: int | None, steps: Mapping[str, int], plan: PhysicalPlan) -> "Parallelism":
        """As asked of a job that runs by `plan`: `default` None leaves it. Raises InvalidConfig."""
        if default is None and not steps:
            raise InvalidConfig("parallelism={} names no step: give a number, or {uid: number}")
        for uid, width in steps.items():
            if uid not in plan.node:
                raise InvalidConfig(f"the flow has no step {uid!r} to rescale; it has: {', '.join(plan.node)}")
            _checked(width, f"parallelism of step {uid!r}")
        default = self.default if default is None else _checked(default, "parallelism")
        return Parallelism(default, {**self.steps, **dict(_with_followers(steps, plan))})


def widths(plan: PhysicalPlan) -> dict[str, int]:
    """By uid of each step."""
    return {uid: vertex.parallelism for uid, (vertex, _) in plan.node.items()}


def _checked(width: object, what: str) -> int:
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise InvalidConfig(f"{what} is {width!r}: it must be a whole number, at least 1")
    return width


def _with_followers(asked: Mapping[str, int], plan: PhysicalPlan) -> Iterator[tuple[str, int]]:
    """Whoever is not named goes with the first of its group that is."""
    yield from asked.items()
    for group in _groups(plan):
        named = [uid for uid in group if uid in asked]
        for uid in group if named else ():
            if uid not in asked and plan.node[uid][1].parallelism is None:
                yield uid, asked[named[0]]


def _groups(plan: PhysicalPlan) -> Collection[list[str]]:
    """Steps between which records are handed straight on, in topological order."""
    leader = {vertex.uid: vertex.uid for vertex in plan.vertices}
    for edge in plan.edges:
        if isinstance(edge.partitioning, Forward):
            one, other = leader[edge.upstream], leader[edge.downstream]
            leader = {uid: one if led == other else led for uid, led in leader.items()}
    groups: dict[str, list[str]] = {}
    for vertex in plan.vertices:
        groups.setdefault(leader[vertex.uid], []).extend(node.uid for node in vertex.nodes)
    return groups.values()
