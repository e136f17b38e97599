"""Which worker runs which subtask: what holds for any plan, and what is shown of it."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.config import Ray
from streamactors.errors import InvalidConfig
from streamactors.graph.logical import Forward, Keyed, LogicalGraph, Rebalance
from streamactors.graph.physical import ChannelId, PhysicalPlan, SubtaskId
from streamactors.graph.placement import STRATEGIES, Placement, Strategy, place
from streamactors.graph.planner import plan
from tests.graph.graphs import Graph, graphs, identity

pytestmark = pytest.mark.slow

WORKERS = st.integers(1, 6)
FEW = settings(max_examples=40)
KEYED = Keyed(identity)


def planned(graph: LogicalGraph, parallelism: int) -> PhysicalPlan:
    return plan(graph, parallelism=parallelism)


PLANS = st.builds(planned, graphs(), st.integers(1, 7))


def loads(placement: Placement) -> list[int]:
    return [len(slice) for slice in placement.slices]


def by_chain(placement: Placement, uid: str) -> list[int]:
    return [sum(subtask.vertex == uid for subtask in slice) for slice in placement.slices]


def channels(made: PhysicalPlan) -> list[ChannelId]:
    return [channel for subtask in made.subtasks for channel in made.channels_in(subtask)]


def bundle_sizes(made: PhysicalPlan) -> list[int]:
    """How many chains each group has that forward edges connect."""
    group = {vertex.uid: vertex.uid for vertex in made.vertices}
    for edge in made.edges:
        if isinstance(edge.partitioning, Forward):
            kept, given_up = group[edge.upstream], group[edge.downstream]
            group = {uid: kept if name == given_up else name for uid, name in group.items()}
    return list(Counter(group.values()).values())


@FEW
@given(PLANS, WORKERS, st.sampled_from(STRATEGIES))
def test_every_subtask_has_one_worker_and_forward_channels_stay_there(
    made: PhysicalPlan, workers: int, strategy: Strategy
) -> None:
    placement = place(made, workers, strategy)
    assert placement.workers == workers
    assert sorted(subtask for slice in placement.slices for subtask in slice) == sorted(made.subtasks)
    assert all(subtask in placement.slices[placement.worker_of(subtask)] for subtask in made.subtasks)
    assert place(made, workers, strategy) == placement

    forward = [channel for channel in channels(made) if isinstance(made.edges[channel.edge].partitioning, Forward)]
    assert not any(placement.crosses(channel) for channel in forward)


@FEW
@given(PLANS, WORKERS)
def test_spread_balances_each_chain_and_all_of_them(made: PhysicalPlan, workers: int) -> None:
    placement = place(made, workers)
    for vertex in made.vertices:
        shares = by_chain(placement, vertex.uid)
        assert max(shares) - min(shares) <= 1
    largest = max(bundle_sizes(made))
    assert max(loads(placement)) - min(loads(placement)) <= largest


@FEW
@given(PLANS, WORKERS, st.integers(1, 4))
def test_pack_takes_the_fewest_workers_and_both_keep_within_the_slots(
    made: PhysicalPlan, workers: int, slots: int
) -> None:
    widest = max(vertex.parallelism for vertex in made.vertices)
    if widest > workers * slots:
        with pytest.raises(InvalidConfig, match="more workers or slots"):
            place(made, workers, "pack", slots=slots)
        return
    placement = place(made, workers, "pack", slots=slots)
    assert placement.used == -(-widest // slots)
    for placed in (placement, place(made, workers, slots=slots)):
        assert all(max(by_chain(placed, vertex.uid)) <= slots for vertex in made.vertices)


def four_single_steps() -> PhysicalPlan:
    graph = Graph().add("a", "source").add("b", "source").add("c", "source").add("d", "source")
    for uid in "abcd":
        graph.add(f"{uid}-out", "sink", (uid, KEYED), chain=False)
    return plan(graph.build())


def test_steps_of_one_subtask_are_not_all_on_the_first_worker() -> None:
    placement = place(four_single_steps(), 4)
    assert loads(placement) == [2, 2, 2, 2]


def test_neighbours_are_together() -> None:
    graph = Graph().add("orders", "source").add("out", "sink", ("orders", Rebalance()))
    placement = place(plan(graph.build(), parallelism=5), 2)
    assert [str(subtask) for subtask in placement.slices[0] if subtask.vertex == "orders"] == [
        "orders[0]",
        "orders[1]",
        "orders[2]",
    ]
    assert placement.worker_of(SubtaskId("out", 4)) == 1


@pytest.mark.parametrize(("workers", "strategy"), [(0, "spread"), (2, "random")])
def test_what_can_not_be_placed_is_refused(workers: int, strategy: Strategy) -> None:
    with pytest.raises(InvalidConfig):
        place(four_single_steps(), workers, strategy)


# ---------------------------------------------------------------------------------------------------------------- shown
def orders() -> sa.Dataflow:
    flow = sa.Dataflow("orders")
    (
        flow.source("orders", ListSource([1]))
        .key_by(lambda order: order)
        .process("totals", Totals, parallelism=3)
        .sink("out", ListSink(), parallelism=1)
    )
    return flow


class Totals(sa.KeyedOperator[int, int, int]):
    def process(self, value: int, ctx: sa.Context[int, int], /) -> None:
        ctx.emit(value)


SHOWN = """\

Placement: 2 workers (spread, 2 slots each), 4 of 6 channels between them
  worker 0: orders[0], totals[0], out[0]
  worker 1: totals[1-2]
"""


def test_explain_shows_the_workers() -> None:
    shown = orders().explain(sa.Config(deployment=Ray(workers=2)))
    assert shown.endswith(SHOWN)
    assert orders().explain(workers=2) == shown
    assert "Placement" not in orders().explain()


def test_strategy_and_slots_are_settings_of_the_deployment() -> None:
    packed = sa.Config(deployment=Ray(workers=3, strategy="pack", slots=2))
    assert (
        orders()
        .explain(packed)
        .endswith("  worker 0: orders[0], totals[0-1], out[0]\n  worker 1: totals[2]\n  worker 2: nothing\n")
    )
    assert "\nPlacement: 3 workers (pack, 2 slots each), 2 of 6 channels between them\n" in orders().explain(packed)
    assert "\nPlacement: 2 workers (spread, 4 slots each), " in orders().explain(
        sa.Config(deployment=Ray(workers=2, slots=4))
    )
    assert "\nPlacement: 3 workers (spread, 1 slot each), " in orders().explain(workers=3)
    assert 'subgraph w1["worker 1"]\n        w1n1["totals<br/>subtask 2 of 3"]' in orders().to_mermaid(packed)
    with pytest.raises(sa.InvalidConfig, match="2 workers with 1 slots each have room for 2"):
        orders().explain(sa.Config(deployment=Ray(workers=2, slots=1)))


CHART = """\
flowchart LR
    subgraph w0["worker 0"]
        w0n0["orders<br/>subtask 0 of 1"]
        w0n1["totals<br/>subtask 0 of 3"]
        w0n2["out<br/>subtask 0 of 1"]
    end
    subgraph w1["worker 1"]
        w1n1["totals<br/>subtasks 1-2 of 3"]
    end
    w0n0 -->|key group| w0n1
    w0n0 ==>|key group| w1n1
    w0n1 -->|rebalance| w0n2
    w1n1 ==>|rebalance| w0n2
"""


def test_the_chart_has_a_box_for_each_worker() -> None:
    chart = orders().to_mermaid(sa.Config(deployment=Ray(workers=2)))
    assert chart == CHART
    assert orders().to_mermaid(workers=2) == chart
    assert "subgraph" not in orders().to_mermaid()


def test_idle_workers_are_shown_too() -> None:
    assert "\n  worker 7: nothing\n" in orders().explain(workers=8)
