"""What each step adds to the graph."""

import functools
from typing import Any

import pytest

from connectors.memory import ListSink, ListSource
from streamactors.api.dataflow import Dataflow, KeyedStream, Stream, graph_with_sink
from streamactors.elements import DeadLetter, OutputTag
from streamactors.errors import InvalidDataflow
from streamactors.graph.logical import Broadcast, Edge, Forward, Keyed, Node, Partitioning, Rebalance
from streamactors.operators.base import Context, KeyedOperator, Operator, OperatorSpec
from streamactors.operators.process import ProcessSpec, ReduceSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.stateless import FunctionSpec, PrintSpec

LATE = OutputTag("late", int)


class Typed(ListSource[float]):
    element_type = float


class Doubling(Operator[int, float]):
    def process(self, value: int, ctx: Context[None, float], /) -> None:
        ctx.emit(2.0 * value)


class Counting(KeyedOperator[str, int, str]):
    def __init__(self, start: int = 0) -> None:
        self.start = start

    def process(self, value: int, ctx: Context[str, str], /) -> None:
        ctx.emit(ctx.key)


def key(value: int) -> str:
    return str(value)


def other_key(value: int) -> int:
    return value


def even(value: int) -> bool:
    return value % 2 == 0


def add(left: int, right: int) -> int:
    return left + right


@pytest.fixture
def flow() -> Dataflow:
    return Dataflow("flow")


@pytest.fixture
def numbers(flow: Dataflow) -> Stream[int]:
    return flow.source("numbers", ListSource([1, 2, 3]))


def last(flow: Dataflow) -> Node:
    return flow.graph().nodes[-1]


def last_spec(flow: Dataflow) -> OperatorSpec:
    spec = last(flow).spec
    assert isinstance(spec, OperatorSpec)
    return spec


def test_stateless_steps(flow: Dataflow, numbers: Stream[int]) -> None:
    numbers.map(key).filter(bool).flat_map(list).print("label")
    _, *nodes = flow.graph().nodes
    assert [node.uid for node in nodes] == ["map-1", "filter-2", "flat_map-3", "print-4"]
    assert [node.spec for node in nodes] == [
        FunctionSpec("map", key),
        FunctionSpec("filter", bool),
        FunctionSpec("flat_map", list),
        PrintSpec("label"),
    ]
    assert [node.inputs for node in nodes] == [(Edge(place, Forward()),) for place in range(4)]
    assert not any(node.named for node in nodes)


def test_every_step_takes_name_parallelism_and_chain(flow: Dataflow, numbers: Stream[int]) -> None:
    keyed = numbers.key_by(key)
    options: dict[str, Any] = {"name": "shown", "parallelism": 3, "chain": False}
    numbers.map(key, **options)
    numbers.filter(even, **options)
    numbers.flat_map(range, **options)
    numbers.print(**options)
    numbers.process("process", Doubling, **options)
    numbers.sink("sink", ListSink(), **options)
    keyed.filter(even, **options)
    keyed.process("keyed", Counting, **options)
    keyed.reduce("reduce", add, **options)
    _, *nodes = flow.graph().nodes
    assert len(nodes) == 9
    assert {(node.name, node.parallelism, node.chain) for node in nodes} == {("shown", 3, False)}
    assert [node.uid for node in nodes if node.named] == ["process", "sink", "keyed", "reduce"]


def test_the_defaults_are_left_to_the_plan(flow: Dataflow, numbers: Stream[int]) -> None:
    numbers.map(key)
    node = last(flow)
    assert (node.name, node.parallelism, node.chain) == ("map-1", None, True)


def test_steps_with_a_uid(flow: Dataflow, numbers: Stream[int]) -> None:
    sink = ListSink[float]()
    assert numbers.process("double", Doubling).sink("out", sink) is flow
    _, double, out = flow.graph().nodes
    assert (double.uid, double.name, double.named, double.spec) == (
        "double",
        "double",
        True,
        ProcessSpec(Doubling, keyed=False),
    )
    assert (out.uid, out.spec, out.inputs) == ("out", SinkSpec(sink), (Edge(1, Forward()),))


def test_a_handle_may_be_used_again(flow: Dataflow, numbers: Stream[int]) -> None:
    numbers.map(key)
    numbers.map(key)
    assert [edge.upstream for _, *nodes in [flow.graph().nodes] for node in nodes for edge in node.inputs] == [0, 0]


def test_graphs_taken_earlier_stay_as_they_were(flow: Dataflow, numbers: Stream[int]) -> None:
    before = flow.graph()
    numbers.print()
    assert len(before.nodes) == 1
    assert len(flow.graph().nodes) == 2


# ------------------------------------------------------------------------------------------------------------- keyed
def test_key_by_adds_no_step(flow: Dataflow, numbers: Stream[int]) -> None:
    keyed = numbers.key_by(key)
    assert isinstance(keyed, KeyedStream)
    assert len(flow.graph().nodes) == 1
    keyed.reduce("sum", add)
    assert last(flow).inputs == (Edge(0, Keyed(key)),)
    assert last(flow).spec == ReduceSpec(add, Any)


def test_keyed_process_is_told_that_it_is_keyed(flow: Dataflow, numbers: Stream[int]) -> None:
    numbers.key_by(key).process("count", functools.partial(Counting, 3))
    spec = last_spec(flow)
    assert isinstance(spec, ProcessSpec)
    assert (spec.keyed, spec.keyed_state) == (True, True)
    numbers.key_by(key).process("double", Doubling)
    assert last(flow).inputs == (Edge(0, Keyed(key)),)


def test_a_filter_of_a_keyed_stream_goes_before_the_exchange(flow: Dataflow, numbers: Stream[int]) -> None:
    filtered = numbers.key_by(key).filter(even)
    assert isinstance(filtered, KeyedStream)
    assert last(flow).inputs == (Edge(0, Forward()),)
    filtered.filter(bool).reduce("sum", add)
    _, first, second, reduced = flow.graph().nodes
    assert (first.inputs, second.inputs) == ((Edge(0, Forward()),), (Edge(1, Forward()),))
    assert reduced.inputs == (Edge(2, Keyed(key)),)


def test_other_stateless_steps_of_a_keyed_stream_come_after_the_exchange(flow: Dataflow, numbers: Stream[int]) -> None:
    keyed = numbers.key_by(key)
    keyed.map(key)
    keyed.print()
    keyed.sink("out", ListSink())
    assert [node.inputs for node in flow.graph().nodes[1:]] == [(Edge(0, Keyed(key)),)] * 3


def test_the_last_partitioning_holds(flow: Dataflow, numbers: Stream[int]) -> None:
    cases: list[tuple[Stream[int], Partitioning]] = [
        (numbers.rebalance(), Rebalance()),
        (numbers.broadcast(), Broadcast()),
        (numbers.key_by(key).rebalance(), Rebalance()),
        (numbers.rebalance().key_by(key), Keyed(key)),
        (numbers.key_by(key).key_by(other_key), Keyed(other_key)),
    ]
    for stream, partitioning in cases:
        stream.print()
        assert last(flow).inputs == (Edge(0, partitioning),)
    assert not isinstance(numbers.key_by(key).broadcast(), KeyedStream)


# ------------------------------------------------------------------------------------------------------------- union
def test_union_adds_no_step_and_keeps_each_partitioning(flow: Dataflow, numbers: Stream[int]) -> None:
    more = flow.source("more", ListSource([4]))
    numbers.union(more.rebalance(), numbers.key_by(key)).print()
    assert last(flow).inputs == (Edge(0, Forward()), Edge(1, Rebalance()), Edge(0, Keyed(key)))
    assert len(flow.graph().nodes) == 3


def test_a_union_keyed_is_keyed_on_all_its_edges(flow: Dataflow, numbers: Stream[int]) -> None:
    more = flow.source("more", ListSource([4]))
    numbers.union(more).key_by(key).filter(even).reduce("sum", add)
    _, _, kept, reduced = flow.graph().nodes
    assert kept.inputs == (Edge(0, Forward()), Edge(1, Forward()))
    assert reduced.inputs == (Edge(2, Keyed(key)),)


def test_streams_of_two_flows_do_not_mix(numbers: Stream[int]) -> None:
    foreign = Dataflow("other").source("numbers", ListSource([1]))
    with pytest.raises(InvalidDataflow, match=r"'other'.*'flow'.*two Dataflow objects: build both from one.*notebook"):
        numbers.union(foreign)
    with pytest.raises(InvalidDataflow, match="union takes streams, not 7"):
        numbers.union(7)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- side outputs
def test_a_side_output_leaves_the_step_that_made_the_stream(flow: Dataflow, numbers: Stream[int]) -> None:
    doubled = numbers.process("double", Doubling)
    doubled.side_output(LATE).print()
    assert last(flow).inputs == (Edge(1, Forward(), "late"),)
    doubled.key_by(str).side_output(LATE).key_by(key).reduce("sum", add)
    assert last(flow).inputs == (Edge(1, Keyed(key), "late"),)
    assert last(flow).spec == ReduceSpec(add, int)


def test_the_side_output_of_a_union_leaves_every_step_once(flow: Dataflow, numbers: Stream[int]) -> None:
    left, right = numbers.process("left", Doubling), numbers.process("right", Doubling)
    left.union(right, left).side_output(LATE).print()
    assert last(flow).inputs == (Edge(1, Forward(), "late"), Edge(2, Forward(), "late"))


def test_a_side_output_has_none_itself(numbers: Stream[int]) -> None:
    side = numbers.process("double", Doubling).side_output(LATE)
    with pytest.raises(InvalidDataflow, match=r"<Stream of double \(late\) in dataflow 'flow'> is a side output"):
        side.side_output(LATE)
    with pytest.raises(InvalidDataflow, match="takes an OutputTag"):
        numbers.side_output("late")  # type: ignore[arg-type]


def test_dead_letters_are_a_side_output(flow: Dataflow, numbers: Stream[int]) -> None:
    dead = OutputTag("dead", DeadLetter)
    numbers.process("double", Doubling, on_error=dead).side_output(dead).print()
    spec = flow.graph().nodes[1].spec
    assert isinstance(spec, ProcessSpec)
    assert spec.error_tag == dead
    with pytest.raises(InvalidDataflow, match=r"'quiet': on_error is 'fail' or an OutputTag, not 'ignore'"):
        numbers.process("quiet", Doubling, on_error="ignore")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ refused
def test_a_refused_step_leaves_no_trace(flow: Dataflow, numbers: Stream[int]) -> None:
    before = flow.graph()
    attempts: list[tuple[Any, str]] = [
        (lambda: numbers.map(3), "map takes a function, not 3"),  # type: ignore[call-overload]
        (lambda: numbers.filter(None), "filter takes a function, not None"),  # type: ignore[arg-type]
        (lambda: numbers.flat_map("x"), "flat_map takes a function"),  # type: ignore[call-overload]
        (lambda: numbers.key_by(1), "key_by takes a function, not 1"),  # type: ignore[arg-type]
        (lambda: numbers.key_by(key).reduce("r", 1), "reduce takes a function, not 1"),  # type: ignore[arg-type]
        (lambda: numbers.map(Counting), r'Counting is an operator: \.process\("my-uid", Counting\)'),
        (lambda: numbers.print(3), "print takes a label, not 3"),  # type: ignore[arg-type]
        (lambda: numbers.map(key, parallelism=0), "'map-1': parallelism=0 is not a whole number from 1 up"),
        (lambda: numbers.map(key, parallelism=True), "parallelism=True is not"),
        (lambda: numbers.map(key, name=""), "name='' is not a line of text"),
        (lambda: numbers.map(key, name="a\nb"), "is not a line of text"),
        (lambda: numbers.process("p", Doubling()), "'p' is given as an instance"),  # type: ignore[arg-type]
        (lambda: numbers.process("p", Counting), "Counting is a KeyedOperator on a stream without keys"),  # type: ignore[arg-type]
        (lambda: numbers.sink("s", ListSink), "sink 's': ListSink is a class: make a sink of it"),  # type: ignore[arg-type]
        (lambda: numbers.sink("s", []), r"a list is no sink: .* streamactors\.sinks\.WriterSink"),  # type: ignore[arg-type]
    ]
    for attempt, message in attempts:
        with pytest.raises(InvalidDataflow, match=message):
            attempt()
    assert flow.graph() == before


def test_a_key_can_not_be_awaited(numbers: Stream[int]) -> None:
    async def key(value: int) -> str:
        return str(value)

    with pytest.raises(InvalidDataflow, match="do what has to be awaited in a map before it"):
        numbers.key_by(key)


# ---------------------------------------------------------------------------------------------------- types of records
def test_the_type_of_the_records_reaches_reduce(flow: Dataflow, numbers: Stream[int]) -> None:
    def reduced(stream: Stream[Any], uid: str) -> Any:
        stream.key_by(str).reduce(uid, lambda left, right: left)
        spec = last_spec(flow)
        assert isinstance(spec, ReduceSpec)
        return spec.element_type

    texts = numbers.map(key)
    assert reduced(numbers, "list") is Any
    assert reduced(flow.source("typed", Typed([1.0])), "source") is float
    assert reduced(texts, "mapped") is str
    assert reduced(texts.filter(bool).rebalance().broadcast().print(), "kept") is str
    assert reduced(texts.union(numbers.map(key)), "same") is str
    assert reduced(texts.union(numbers.process("double", Doubling)), "mixed") is Any  # type: ignore[arg-type]
    assert reduced(numbers.process("double2", Doubling), "processed") is float
    assert reduced(numbers.key_by(key).process("count", Counting), "keyed") is str
    assert reduced(numbers.map(lambda value: value), "lambda") is Any
    assert reduced(numbers.side_output(LATE), "tag") is int


def test_a_sink_can_be_added_to_a_graph_and_not_to_the_flow(flow: Dataflow, numbers: Stream[int]) -> None:
    sink = ListSink[int]()
    graph = graph_with_sink(numbers.key_by(key), "collect", sink)
    assert graph.nodes[-1] == Node(1, "collect", "collect", SinkSpec(sink), (Edge(0, Keyed(key)),))
    assert len(flow.graph().nodes) == 1
