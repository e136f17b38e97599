"""Chaining, expansion and what the planner refuses."""

import pytest

from connectors.memory import ListSink, ListSource
from streamactors.elements import DeadLetter, OutputTag
from streamactors.errors import InvalidConfig, InvalidDataflow
from streamactors.graph.logical import Broadcast, Forward, Keyed, Rebalance, SourceSpec
from streamactors.graph.planner import plan
from streamactors.operators.sink import SinkSpec
from tests.graph.graphs import DEAD, Graph, chains, exits, identity

KEYED = Keyed(identity)


def line() -> Graph:
    return Graph().add("in", "source").add("a", "map", "in").add("b", "map", "a").add("out", "sink", "b")


# ------------------------------------------------------------------------------------------------------------- chains
def test_forward_edges_of_equal_parallelism_are_chained() -> None:
    made = plan(line().build(), parallelism=3)
    assert chains(made) == [["in", "a", "b", "out"]]
    assert made.edges == ()
    assert [str(subtask) for subtask in made.subtasks] == ["in[0]", "in[1]", "in[2]"]
    assert made.sources == made.subtasks


def test_a_node_that_is_not_to_be_chained_is_alone() -> None:
    graph = Graph().add("in", "source").add("a", "map", "in", chain=False).add("b", "map", "a").add("c", "map", "b")
    made = plan(graph.build())
    assert chains(made) == [["in"], ["a"], ["b", "c"]]
    assert exits(made) == [("in", "a", Forward, None), ("a", "b", Forward, None)]


def test_another_parallelism_ends_the_chain_and_makes_forward_a_rebalance() -> None:
    graph = Graph().add("in", "source").add("a", "map", "in", parallelism=2).add("b", "map", "a", parallelism=2)
    made = plan(graph.build(), parallelism=3)
    assert chains(made) == [["in"], ["a", "b"]]
    assert exits(made) == [("in", "a", Rebalance, None)]
    assert made.channel_count(made.edges[0]) == 6


@pytest.mark.parametrize("partitioning", [KEYED, Rebalance(), Broadcast()])
def test_an_exchange_ends_the_chain_even_at_parallelism_one(partitioning: Keyed | Rebalance | Broadcast) -> None:
    made = plan(Graph().add("in", "source").add("a", "map", ("in", partitioning)).build())
    assert chains(made) == [["in"], ["a"]]
    assert made.edges[0].partitioning == partitioning


def test_a_union_starts_a_chain() -> None:
    graph = Graph().add("left", "source").add("right", "source").add("both", "map", "left", "right")
    made = plan(graph.add("out", "sink", "both").build(), parallelism=2)
    assert chains(made) == [["left"], ["right"], ["both", "out"]]
    assert exits(made) == [("left", "both", Forward, None), ("right", "both", Forward, None)]
    receiver = made.subtasks[-1]
    assert [str(channel.sender) for channel in made.channels_in(receiver)] == ["left[1]", "right[1]"]


def test_a_stream_joined_with_itself_arrives_twice() -> None:
    made = plan(Graph().add("in", "source").add("twice", "map", "in", "in").build())
    assert exits(made) == [("in", "twice", Forward, None)] * 2
    assert [channel.edge for channel in made.channels_in(made.subtasks[-1])] == [0, 1]


def test_of_several_consumers_the_first_is_chained_and_the_others_leave_the_chain_midway() -> None:
    graph = line().add("second", "sink", "a").add("third", "map", ("a", KEYED))
    made = plan(graph.build())
    assert chains(made) == [["in", "a", "b", "out"], ["second"], ["third"]]
    assert exits(made) == [("a", "second", Forward, None), ("a", "third", Keyed, None)]
    assert [edge.link for edge in made.edges] == [1, 1]


def test_a_chainable_consumer_is_found_behind_one_that_is_not() -> None:
    graph = Graph().add("in", "source").add("keyed", "map", ("in", KEYED)).add("next", "map", "in")
    assert chains(plan(graph.build())) == [["in", "next"], ["keyed"]]


def test_a_side_output_is_never_chained_and_keeps_its_tag() -> None:
    graph = Graph().add("in", "source").add("p", "process", "in").add("late", "sink", "p.late")
    made = plan(graph.build())
    assert chains(made) == [["in", "p"], ["late"]]
    assert exits(made) == [("p", "late", Forward, "late")]
    assert made.edges[0].link == 1


def test_the_input_graph_is_left_as_it_is() -> None:
    graph = line().build()
    assert plan(graph, parallelism=2) == plan(graph, parallelism=2)
    assert [node.parallelism for node in graph.nodes] == [None] * 4


# --------------------------------------------------------------------------------------------------------- key groups
@pytest.mark.parametrize(("parallelism", "groups"), [(1, 128), (85, 128), (86, 256), (20_000, 32_768)])
def test_key_groups_follow_the_widest_operator(parallelism: int, groups: int) -> None:
    graph = Graph().add("in", "source").add("wide", "map", "in", parallelism=parallelism).build()
    assert {vertex.max_parallelism for vertex in plan(graph).vertices} == {groups}


def test_a_configured_number_of_key_groups_is_kept() -> None:
    made = plan(line().build(), parallelism=4, max_parallelism=10)
    assert [str(made.vertices[0].key_groups(index)) for index in range(4)] == ["0..2", "3..4", "5..7", "8..9"]


def test_more_subtasks_than_key_groups_are_refused_by_name() -> None:
    graph = Graph().add("in", "source").add("wide", "map", "in", parallelism=9).build()
    with pytest.raises(InvalidConfig, match=r"'wide' has parallelism 9.* max_parallelism of 8.*Config\(max_par"):
        plan(graph, max_parallelism=8)
    with pytest.raises(InvalidConfig, match="'in' has parallelism 40000.* 32768"):
        plan(graph, parallelism=40_000)


@pytest.mark.parametrize("groups", [0, -1, 32_769])
def test_an_impossible_number_of_key_groups_is_refused(groups: int) -> None:
    with pytest.raises(InvalidConfig, match="max_parallelism is .* between 1 and 32768"):
        plan(line().build(), max_parallelism=groups)


# ------------------------------------------------------------------------------------------------------- refused
def test_a_flow_without_a_source_is_refused() -> None:
    with pytest.raises(InvalidDataflow, match="'test' has no source: begin with flow.source"):
        plan(Graph().build())


def test_a_source_that_nothing_consumes_is_refused() -> None:
    with pytest.raises(InvalidDataflow, match="nothing consumes source 'idle'"):
        plan(line().add("idle", "source").build())


def test_an_operator_that_nothing_consumes_is_fine() -> None:
    assert chains(plan(Graph().add("in", "source").add("p", "process", "in").build())) == [["in", "p"]]


def test_dead_letters_that_nothing_takes_are_refused() -> None:
    graph = Graph().add("in", "source").add("p", "routed", "in").add("out", "sink", "p")
    with pytest.raises(InvalidDataflow, match=r"process 'p' sends its dead letters to side output 'dead'.*\.side_out"):
        plan(graph.build())
    plan(graph.add("dead", "sink", "p.dead").build())


class Routed(ListSource[int]):
    @property
    def error_tag(self) -> OutputTag[DeadLetter]:
        return DEAD


def test_so_are_those_of_a_source() -> None:
    graph = Graph().add("in", SourceSpec(Routed([1]))).add("out", "sink", "in")
    with pytest.raises(InvalidDataflow, match="source 'in' sends its dead letters to side output 'dead'"):
        plan(graph.build())
    plan(graph.add("dead", "sink", "in.dead").build())


@pytest.mark.parametrize("kind", ["source", "map"])
def test_a_side_output_that_can_never_be_emitted_is_refused(kind: str) -> None:
    graph = line().add("late", "sink", {"source": "in.late", "map": "a.late"}[kind])
    with pytest.raises(InvalidDataflow, match=f"'late' reads side output 'late' of {kind} .*call side_output on"):
        plan(graph.build())


class OneWay(ListSource[int]):
    rewindable = False


def test_a_source_that_cant_be_rewound_is_refused_under_checkpoints() -> None:
    graph = Graph().add("in", SourceSpec(OneWay([1]))).add("out", "sink", "in").build()
    plan(graph)
    with pytest.raises(InvalidDataflow, match=r"source 'in' \(OneWay\) can't be rewound.*run without checkpoints"):
        plan(graph, checkpointing=True)


class Choosy(ListSink[int]):
    """Exactly-once without checkpoints, say."""

    def validate(self, *, checkpointing: bool) -> None:
        if not checkpointing:
            raise InvalidConfig("exactly-once needs checkpoints")


class ChoosySource(ListSource[int]):
    def validate(self, *, checkpointing: bool) -> None:
        if checkpointing:
            raise InvalidConfig("no group to commit to")


def test_what_a_connector_refuses_is_told_with_the_uid() -> None:
    graph = Graph().add("in", SourceSpec(ChoosySource([1]))).add("out", SinkSpec(Choosy()), "in").build()
    with pytest.raises(InvalidConfig, match="^sink 'out': exactly-once needs checkpoints$"):
        plan(graph)
    with pytest.raises(InvalidConfig, match="^source 'in': no group to commit to$"):
        plan(graph, checkpointing=True)
