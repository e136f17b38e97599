"""What holds for the plan of any graph."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from streamactors.graph.logical import Forward, LogicalGraph, Partitioning, Rebalance
from streamactors.graph.physical import ChannelId, PhysicalPlan
from streamactors.graph.planner import plan
from tests.graph.graphs import graphs, leaving


def planned_graph(graph: LogicalGraph, parallelism: int) -> tuple[LogicalGraph, PhysicalPlan, int]:
    return graph, plan(graph, parallelism=parallelism), parallelism


PLANNED = st.builds(planned_graph, graphs(), st.integers(1, 4))


def chained_edges(made: PhysicalPlan) -> Counter[tuple[str, str, str | None]]:
    return Counter(
        (before.uid, after.uid, None)
        for vertex in made.vertices
        for before, after in zip(vertex.nodes, vertex.nodes[1:], strict=False)
    )


@given(PLANNED)
def test_every_node_is_in_one_vertex(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    graph, made, parallelism = planned
    placed = [node for vertex in made.vertices for node in vertex.nodes]
    assert sorted(placed, key=lambda node: node.id) == list(graph.nodes)
    for vertex in made.vertices:
        assert {node.parallelism or parallelism for node in vertex.nodes} == {vertex.parallelism}


@given(PLANNED)
def test_every_edge_is_realised_once(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    graph, made, _ = planned
    wanted = Counter(
        (graph.nodes[edge.upstream].uid, node.uid, edge.tag) for node in graph.nodes for edge in node.inputs
    )
    leaves = Counter((leaving(made, edge).uid, edge.downstream, edge.tag) for edge in made.edges)
    assert chained_edges(made) + leaves == wanted


@given(PLANNED)
def test_chains_are_sound(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    _, made, _ = planned
    for vertex in made.vertices:
        for node in vertex.nodes[1:]:
            assert len(node.inputs) == 1
            assert isinstance(node.inputs[0].partitioning, Forward)
            assert node.inputs[0].tag is None
            assert not node.is_source
        if len(vertex.nodes) > 1:
            assert all(node.chain for node in vertex.nodes)


@given(PLANNED)
def test_chains_are_as_long_as_they_can_be(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    _, made, _ = planned
    for edge in made.edges:
        up, down = made.vertex[edge.upstream], made.vertex[edge.downstream]
        at_end = edge.link == len(up.nodes) - 1
        both = up.nodes[-1].chain and down.nodes[0].chain
        same = isinstance(down.nodes[0].inputs[0].partitioning, Forward) and up.parallelism == down.parallelism
        assert not (at_end and both and same and edge.tag is None and len(down.nodes[0].inputs) == 1)


@given(PLANNED)
def test_vertices_come_in_topological_order(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    _, made, _ = planned
    place = {vertex.uid: index for index, vertex in enumerate(made.vertices)}
    assert all(place[edge.upstream] < place[edge.downstream] for edge in made.edges)


@given(PLANNED)
def test_both_ends_know_the_same_channels(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    _, made, _ = planned
    out: list[ChannelId] = []
    for number, edge in enumerate(made.edges):
        sent = [
            channel for sender in made.vertex[edge.upstream].subtasks() for channel in made.channels_out(number, sender)
        ]
        assert len(sent) == made.channel_count(edge)
        out += sent
    received = [channel for subtask in made.subtasks for channel in made.channels_in(subtask)]
    assert Counter(out) == Counter(received)
    assert max(Counter(out).values(), default=1) == 1


@given(PLANNED)
def test_every_subtask_is_fed_by_each_of_its_edges(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    _, made, _ = planned
    for subtask in made.subtasks:
        into = {number for number, edge in enumerate(made.edges) if edge.downstream == subtask.vertex}
        assert {channel.edge for channel in made.channels_in(subtask)} == into
        assert bool(into) != made.vertex[subtask.vertex].is_source


@given(PLANNED)
def test_partitionings_are_kept_but_for_forward_between_widths(planned: tuple[LogicalGraph, PhysicalPlan, int]) -> None:
    graph, made, parallelism = planned
    chained = chained_edges(made)
    wanted: Counter[tuple[str, str, Partitioning]] = Counter()
    for node in graph.nodes:
        for edge in node.inputs:
            upstream = graph.nodes[edge.upstream]
            same = (node.parallelism or parallelism) == (upstream.parallelism or parallelism)
            if (upstream.uid, node.uid, edge.tag) not in chained:
                kept = same or not isinstance(edge.partitioning, Forward)
                wanted[upstream.uid, node.uid, edge.partitioning if kept else Rebalance()] += 1
    found = Counter((leaving(made, edge).uid, edge.downstream, edge.partitioning) for edge in made.edges)
    assert found == wanted


@given(graphs(), st.integers(1, 4), st.integers(4, 300))
def test_key_groups_are_dealt_out_whole_and_once(graph: LogicalGraph, parallelism: int, groups: int) -> None:
    for vertex in plan(graph, parallelism=parallelism, max_parallelism=groups).vertices:
        owned = [group for index in range(vertex.parallelism) for group in vertex.key_groups(index)]
        assert owned == list(range(groups))
        assert all(len(vertex.key_groups(index)) > 0 for index in range(vertex.parallelism))
