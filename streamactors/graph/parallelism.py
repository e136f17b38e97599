"""The parallelism that a job runs by: what its configuration and its flow say, and what it was rescaled to since.

Invariant: steps that hand their records straight on to each other keep one width, unless they are named or the flow
gives them one of their own: records would else be dealt out between them, and those of a key come in another order.
Pure.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from streamactors.errors import InvalidConfig
from streamactors.graph.physical import PhysicalPlan


@dataclass(frozen=True)
class Parallelism:
    """`default`: of steps for which neither the flow nor `steps` gives one. `steps`: by uid, ahead of the flow."""

    default: int = 1
    steps: Mapping[str, int] = field(default_factory=dict)

    def rescaled(self, default: int | None, steps: Mapping[str, int], plan: PhysicalPlan) -> "Parallelism":
        """As asked of a job that runs by `plan`: `default` None leaves it. `steps` by uid, or name where only one step
        has it. Raises InvalidConfig."""
        if default is None and not steps:
            raise InvalidConfig("parallelism={} names no step: give a number, or {uid: number}")
        asked = dict[str, int]()
        for step, width in steps.items():
            uid = _uid(step, plan)
            if uid in asked:
                raise InvalidConfig(f"step {uid!r} is given twice, by its uid and by its name: give it once")
            asked[uid] = _checked(width, f"parallelism of step {step!r}")
        default = self.default if default is None else _checked(default, "parallelism")
        return Parallelism(default, {**self.steps, **dict(_with_followers(asked, plan))})


def restored(before: Parallelism, stored: Mapping[str, int], plan: PhysicalPlan) -> Parallelism:
    """What makes the steps of `plan` run by the widths that are `stored` by uid. The default is that of `before` where
    any step has it yet."""
    own = {uid: plan.node[uid][1].parallelism for uid in stored}
    free = [width for uid, width in stored.items() if own[uid] is None]
    default = before.default if before.default in free or not free else Counter(free).most_common(1)[0][0]
    steps = {uid: width for uid, width in stored.items() if width != (own[uid] or default)}
    return Parallelism(default, steps)


def widths(plan: PhysicalPlan) -> dict[str, int]:
    """By uid of each step."""
    return {uid: vertex.parallelism for uid, (vertex, _) in plan.node.items()}


def _uid(step: str, plan: PhysicalPlan) -> str:
    """Of the one that is meant."""
    named = [uid for uid, (_, node) in plan.node.items() if node.name == step]
    if step in plan.node or len(named) == 1:
        return step if step in plan.node else named[0]
    if named:
        raise InvalidConfig(f"several steps are called {step!r}: give the uid of one of them: {', '.join(named)}")
    raise InvalidConfig(f"the flow has no step {step!r} to rescale; it has: {', '.join(plan.node)}")


def _checked(width: object, what: str) -> int:
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise InvalidConfig(f"{what} is {width!r}: it must be a whole number, at least 1")
    return width


def _with_followers(asked: Mapping[str, int], plan: PhysicalPlan) -> Iterator[tuple[str, int]]:
    """Whoever is not named goes with the first of its group that is."""
    yield from asked.items()
    for group in plan.forward_groups:
        uids = [node.uid for vertex in group for node in vertex.nodes]
        named = [uid for uid in uids if uid in asked]
        for uid in uids if named else ():
            if uid not in asked and plan.node[uid][1].parallelism is None:
                yield uid, asked[named[0]]
