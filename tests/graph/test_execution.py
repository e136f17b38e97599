"""Which execution a flow gets, and how its stages take their input."""

from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.graph.execution import Asked, choose_execution, gathering_subtasks, intake, why
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planner import plan
from tests.runtime.feeds import Endless


class Keyed(sa.KeyedOperator[int, int, int]):
    def process(self, value: int, ctx: sa.Context[int, int]) -> None: ...


class Both(sa.CoOperator[int, int, int]):
    def process_left(self, value: int, ctx: sa.Context[None, int]) -> None: ...
    def process_right(self, value: int, ctx: sa.Context[None, int]) -> None: ...


class Ruled(sa.KeyedBroadcastOperator[int, int, int, int]):
    def process(self, value: int, ctx: sa.Context[int, int]) -> None: ...
    def process_broadcast(self, value: int, ctx: sa.Context[None, int]) -> None: ...


class Once(ListSource[int]):
    rewindable = False


def flow_of(*sources: Any) -> sa.Dataflow:
    flow = sa.Dataflow("flow")
    for number, source in enumerate(sources):
        flow.source(f"source-{number}", source).sink(f"sink-{number}", ListSink[int]())
    return flow


@pytest.mark.parametrize(
    ("asked", "sources", "checkpointing", "execution"),
    [
        ("streaming", [ListSource([1])], False, "streaming"),
        ("streaming", [Endless()], True, "streaming"),
        ("batch", [ListSource([1])], True, "batch"),
        ("auto", [ListSource([1]), ListSource([2])], False, "batch"),
        ("auto", [ListSource([1]), Endless()], False, "streaming"),
        ("auto", [ListSource([1])], True, "streaming"),
    ],
)
def test_the_choice(asked: Asked, sources: list[Any], checkpointing: bool, execution: str) -> None:
    graph = flow_of(*sources).graph()
    assert choose_execution(graph, asked, checkpointing=checkpointing) == execution
    assert bool(why(graph, asked, checkpointing=checkpointing)) == (asked == "auto")


def test_sources_without_an_end_are_named() -> None:
    graph = flow_of(Endless(), ListSource([1]), Endless()).graph()
    with pytest.raises(sa.InvalidConfig, match=r"'source-0' \(Endless\), source 'source-2' \(Endless\)"):
        choose_execution(graph, "batch", checkpointing=False)


def test_a_restart_needs_what_can_be_read_again() -> None:
    graph = flow_of(Once([1])).graph()
    assert choose_execution(graph, "batch", checkpointing=False) == "batch"
    with pytest.raises(sa.InvalidDataflow, match="'source-0'.*can't be rewound"):
        choose_execution(graph, "batch", checkpointing=False, restarts=True)


def planned(flow: sa.Dataflow, execution: Any = "batch") -> PhysicalPlan:
    return plan(flow.graph(), parallelism=2, execution=execution)


def stages() -> sa.Dataflow:
    flow = sa.Dataflow("flow")
    numbers = flow.source("numbers", ListSource([1]), parallelism=1)
    rules = flow.source("rules", ListSource([1]))
    numbers.key_by(lambda value: value).process("keyed", Keyed).sink("a", ListSink[int]())
    numbers.key_by(lambda value: value).connect_broadcast(rules).process("ruled", Ruled).sink("b", ListSink[int]())
    numbers.connect(rules.broadcast()).process("held", Both).sink("c", ListSink[int]())
    numbers.connect(rules).process("plain", Both).sink("d", ListSink[int]())
    return flow


def test_how_stages_take_their_input() -> None:
    made = planned(stages())
    taken = {vertex.uid: intake(made, vertex) for vertex in made.vertices}
    assert taken == {
        "numbers": "as it comes",
        "rules": "as it comes",
        "keyed": "sorted",
        "ruled": "sorted",
        "held": "held",
        "plain": "as it comes",
    }
    assert gathering_subtasks(made) == 6


def test_streaming_takes_everything_as_it_comes() -> None:
    made = planned(stages(), "streaming")
    assert {intake(made, vertex) for vertex in made.vertices} == {"as it comes"}
    assert gathering_subtasks(made) == 0


def test_explain_tells() -> None:
    told = stages().explain(sa.Config(execution="batch"))
    assert "Execution: batch\n" in told
    assert "[keyed → a]  1 subtask, input sorted by key" in told
    assert "[held → c]  1 subtask, input held back until the broadcast side is read" in told
    assert "Execution" not in stages().explain()
