"""Operators that ponder or fail, and steps that are wider or narrower than before: by rewriting a flow's graph.

Only what users write is touched: the functions of steps and the `process` of operators. About half of the plain
functions become coroutines, so that they can be suspended in the middle of a batch.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, Final

from streamactors.graph.logical import Forward, LogicalGraph, Node
from streamactors.operators.async_io.keyed import AsyncKeyedOperator
from streamactors.operators.base import KeyedOperator, is_async
from streamactors.operators.process import ProcessSpec, ReduceSpec
from streamactors.operators.stateless import FunctionSpec
from streamactors.operators.two_inputs import KeyedBroadcastOperator, KeyedCoOperator
from streamactors.testing.simulation.process import here
from streamactors.testing.simulation.watching import StateWatch

PONDER_SECONDS: Final = 3.0
HOOKS: Final = ("process", "process_left", "process_right", "process_broadcast", "on_timer")
KEYED: Final = (KeyedOperator, KeyedCoOperator, KeyedBroadcastOperator)


def disturbed(graph: LogicalGraph, draw: Random) -> LogicalGraph:
    """The same graph, its user code suspended and failing by seed."""
    return replace(graph, nodes=tuple(_disturbed(node, draw) for node in graph.nodes))


def _disturbed(node: Node, draw: Random) -> Node:
    suspended = draw.random() < 0.5
    spec = node.spec
    if isinstance(spec, FunctionSpec):
        return replace(node, spec=replace(spec, fn=_around(spec.fn, node.uid, suspended=suspended)))
    if isinstance(spec, ReduceSpec):
        return replace(node, spec=replace(spec, fn=_around(spec.fn, node.uid, suspended=suspended)))
    if isinstance(spec, ProcessSpec):
        factory = spec.factory

        def make() -> Any:
            operator = factory()
            keyed = _watch(node.uid, operator)
            for name in HOOKS:
                if (hook := getattr(operator, name, None)) is not None:
                    watched = keyed(hook) if _has_keys(operator, name) else hook
                    setattr(operator, name, _around(watched, node.uid, suspended=suspended))
            return operator

        return replace(node, spec=replace(spec, factory=make))
    return node


def _around(fn: Callable[..., Any], uid: str, *, suspended: bool) -> Callable[..., Any]:
    if not suspended and not is_async(fn):

        @functools.wraps(fn)
        def plain(*args: Any) -> Any:
            here().fail("operator_failures", f"operator {uid}")
            return fn(*args)

        return plain

    @functools.wraps(fn)
    async def suspendable(*args: Any) -> Any:
        process = here()
        await process.linger("slow_records", PONDER_SECONDS)
        if process.often():
            await process.clock.sleep(0)
        process.fail("operator_failures", f"operator {uid}")
        result = fn(*args)
        return await result if inspect.isawaitable(result) else result

    return suspendable


def _has_keys(operator: Any, hook: str) -> bool:
    """Whether this hook is called for records with a key, one after another: those of calls that run side by side get
    copies of what is stored, so that changing it in place changes nothing."""
    return isinstance(operator, KEYED) and not isinstance(operator, AsyncKeyedOperator) and hook != "process_broadcast"


def _watch(uid: str, operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Around hooks: fails where a stored value is changed in place. State is bound only after the operator was made."""
    watch: StateWatch | None = None

    def begin(key: Any) -> StateWatch:
        nonlocal watch
        watch = watch or StateWatch(uid, operator)
        watch.begin(key)
        return watch

    def watched(fn: Callable[..., Any]) -> Callable[..., Any]:
        def plain(value: Any, ctx: Any) -> None:
            watching = begin(ctx.key)
            fn(value, ctx)
            watching.end()

        async def suspendable(value: Any, ctx: Any) -> None:
            watching = begin(ctx.key)
            await fn(value, ctx)
            watching.end()

        return suspendable if is_async(fn) else plain

    return watched


def rescaled(graph: LogicalGraph, widths: dict[str, int]) -> LogicalGraph:
    """`widths` by uid; for steps without a parallelism of their own."""
    nodes = (
        replace(node, parallelism=widths.get(node.uid)) if node.parallelism is None else node for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


def drawn_widths(graph: LogicalGraph, among: tuple[int, ...], draw: Random) -> dict[str, int]:
    """Steps that hand their records straight on keep one width: else they would deal them out, in another order."""
    leaders = [node.id for node in graph.nodes]
    for node in graph.nodes:
        for edge in node.inputs:
            if isinstance(edge.partitioning, Forward):
                one, other = leaders[edge.upstream], leaders[node.id]
                leaders = [one if leader == other else leader for leader in leaders]
    widths = {leader: draw.choice(among) for leader in sorted(set(leaders))}
    if draw.random() < 0.3:
        widths = dict.fromkeys(widths, draw.choice(among))
    return {node.uid: widths[leaders[node.id]] for node in graph.nodes}
