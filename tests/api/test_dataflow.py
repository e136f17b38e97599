"""Names, uids, sources, and the graph as text."""

import datetime as dt
from typing import Any

import pytest

from connectors.memory import ListSink, ListSource
from streamactors.api.dataflow import Dataflow, Stream
from streamactors.config import Checkpoints, Config
from streamactors.errors import InvalidConfig, InvalidDataflow
from streamactors.graph.logical import Node, SourceSpec
from streamactors.operators.base import Context, KeyedOperator


class Counting(KeyedOperator[str, int, int]):
    def process(self, value: int, ctx: Context[str, int], /) -> None:
        ctx.emit(value)


def numbers(flow: Dataflow, uid: str = "numbers") -> Stream[int]:
    return flow.source(uid, ListSource([1, 2, 3]))


def test_a_source_is_a_node() -> None:
    flow = Dataflow("flow")
    source = ListSource([1])
    flow.source("in", source, parallelism=2)
    assert flow.graph().nodes == (Node(0, "in", "in", SourceSpec(source), parallelism=2),)
    assert (flow.name, flow.graph().name) == ("flow", "flow")


# ----------------------------------------------------------------------------------------------------- names and uids
UNSAFE = ["", " ", "a b", "a/b", "../x", ".", "..", ".hidden", "-dash", "ünï", "a\n", "a:b", "x" * 129]
SAFE = ["a", "A-1", "0", "_x", "a.b_c-d", "x" * 128]


@pytest.mark.parametrize("name", UNSAFE)
def test_names_unfit_for_files_are_refused(name: str) -> None:
    with pytest.raises(InvalidDataflow, match="can't be named .* name of its folder.*letters.*digits, '_', '-' and"):
        Dataflow(name)
    with pytest.raises(InvalidDataflow, match="uid .* can't be used: it becomes part of file names.*letters"):
        numbers(Dataflow("flow"), name)


@pytest.mark.parametrize("name", SAFE)
def test_names_fit_for_files_are_taken(name: str) -> None:
    flow = Dataflow(name)
    numbers(flow, name)
    assert flow.graph().nodes[0].uid == name


def test_a_name_is_text() -> None:
    with pytest.raises(InvalidDataflow, match="can't be named 3"):
        Dataflow(3)  # type: ignore[arg-type]


def test_a_uid_is_unique_in_its_flow() -> None:
    flow = Dataflow("flow")
    stream = numbers(flow, "twice")
    with pytest.raises(InvalidDataflow, match=r"uid 'twice' is already that of a source step .*'flow'.*new Dataflow"):
        stream.sink("twice", ListSink())
    numbers(Dataflow("other"), "twice")


def test_running_a_notebook_cell_again_is_told_apart() -> None:
    flow = Dataflow("flow")
    numbers(flow)
    with pytest.raises(InvalidDataflow, match="In a notebook, running a cell again adds its steps again"):
        numbers(flow)


def test_automatic_names_can_not_be_taken() -> None:
    flow = Dataflow("flow")
    with pytest.raises(InvalidDataflow, match="'map-1' is of the form given to steps that have none"):
        numbers(flow, "map-1")
    numbers(flow, "map-one").map(str)
    assert [node.uid for node in flow.graph().nodes] == ["map-one", "map-1"]


@pytest.mark.parametrize(
    ("leave_out", "method"),
    [
        (lambda flow, stream: flow.source(ListSource([1])), "source"),
        (lambda flow, stream: stream.key_by(str).process(Counting), "process"),
        (lambda flow, stream: stream.process(operator=Counting), "process"),
        (lambda flow, stream: stream.key_by(str).reduce(max), "reduce"),
        (lambda flow, stream: stream.sink(ListSink()), "sink"),
        (lambda flow, stream: stream.sink(None, ListSink()), "sink"),
    ],
)
def test_a_uid_left_out_is_said_in_plain_words(leave_out: Any, method: str) -> None:
    flow = Dataflow("flow")
    stream = numbers(flow)
    with pytest.raises(InvalidDataflow, match=rf'^{method} needs a uid first, as in \.{method}\("my-uid", …\)'):
        leave_out(flow, stream)


def test_a_uid_may_be_given_by_name() -> None:
    flow = Dataflow("flow")
    numbers(flow).key_by(str).process(uid="count", operator=Counting)
    assert flow.graph().nodes[-1].uid == "count"


def test_what_else_is_missing_is_told_by_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'operator'"):
        numbers(Dataflow("flow")).process("count")  # type: ignore[call-arg]


# ------------------------------------------------------------------------------------------------------------ sources
def test_a_source_derives_from_split_source() -> None:
    flow = Dataflow("flow")
    with pytest.raises(InvalidDataflow, match=r"source 'in': a list is no source: .*streamactors\.sources\.Split"):
        flow.source("in", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(InvalidDataflow, match=r"source 'in': ListSource is a class: make a source of it, List"):
        flow.source("in", ListSource)  # type: ignore[arg-type]


def test_watermarks_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidDataflow, match="'in': watermarks= is made by"):
        Dataflow("flow").source("in", ListSource([1]), watermarks=object())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ as text
def test_explain_plans_with_the_configuration() -> None:
    flow = Dataflow("flow")
    numbers(flow).key_by(str).process("count", Counting)
    assert "Physical plan: 2 chains, 2 subtasks, 1 channel, 128 key groups" in flow.explain()
    text = flow.explain(Config(parallelism=2, max_parallelism=10))
    assert "Physical plan: 2 chains, 4 subtasks, 4 channels, 10 key groups" in text
    assert "key groups: count[0] 0..4, count[1] 5..9" in text


class OneWay(ListSource[int]):
    rewindable = False


def test_explain_refuses_what_would_not_run() -> None:
    flow = Dataflow("flow")
    with pytest.raises(InvalidDataflow, match="has no source"):
        flow.explain()
    flow.source("in", OneWay([1])).print()
    flow.explain()
    checkpoints = Checkpoints("file:///nowhere", interval=dt.timedelta(seconds=1))
    with pytest.raises(InvalidDataflow, match="source 'in' .*can't be rewound"):
        flow.explain(Config(checkpoints=checkpoints))
    flow.source("wide", ListSource([1]), parallelism=9).print()
    with pytest.raises(InvalidConfig, match="'wide' has parallelism 9"):
        flow.explain(Config(max_parallelism=8))


def test_to_mermaid_draws_what_is_there() -> None:
    flow = Dataflow("flow")
    numbers(flow).key_by(str).map(abs)
    assert flow.to_mermaid().splitlines()[2:] == ['    n1["map-1<br/>abs"]', '    n0 -->|"key group"| n1']
    assert repr(flow) == "<Dataflow 'flow'>"
