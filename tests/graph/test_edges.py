"""Edges are named alike whatever the chaining and the parallelism."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from streamactors.checkpoint.manifest import EdgeKey, InFlightEdge
from streamactors.graph.edges import edge_keys
from streamactors.graph.logical import Broadcast, Forward, Keyed, LogicalGraph, Node, Rebalance
from streamactors.graph.planner import plan
from tests.graph.graphs import Graph, graphs, identity, leaving


def expected(graph: LogicalGraph) -> list[EdgeKey]:
    """From the logical graph alone: every input of every step, told from the others that are alike by its number."""
    keys: list[EdgeKey] = []
    for node in graph.nodes:
        seen: dict[tuple[str, str | None, int], int] = {}
        for edge in node.inputs:
            upstream = graph.nodes[edge.upstream].uid
            ordinal = seen.get((upstream, edge.tag, edge.side), 0)
            seen[upstream, edge.tag, edge.side] = ordinal + 1
            keys.append(EdgeKey(upstream, node.uid, edge.tag, ordinal, edge.side))
    return keys


@given(graphs(), st.integers(1, 3), st.data())
def test_every_edge_has_one_name_in_every_plan(graph: LogicalGraph, parallelism: int, data: st.DataObject) -> None:
    def otherwise(node: Node) -> Node:
        return replace(node, chain=data.draw(st.booleans()), parallelism=data.draw(st.sampled_from([None, 1, 2])))

    for version in (graph, LogicalGraph(graph.name, tuple(map(otherwise, graph.nodes)))):
        planned = plan(version, parallelism=parallelism)
        edges = edge_keys(planned)
        assert sorted(edges.by_key, key=str) == sorted(expected(graph), key=str)
        assert len(edges.by_key) == len(edges.exits) + len(edges.chained)
        for exit, edge in zip(planned.edges, edges.exits, strict=True):
            assert (leaving(planned, exit).uid, exit.downstream, exit.tag, exit.side) == (
                edge.key.upstream,
                edge.key.downstream,
                edge.key.tag,
                edge.key.side,
            )
            assert (edge.vertex, edge.place, edge.partitioning) == (exit.downstream, 0, exit.partitioning)
        for (vertex, place), edge in edges.chained.items():
            nodes = planned.vertex[vertex].nodes
            assert (edge.key.upstream, edge.key.downstream) == (nodes[place - 1].uid, nodes[place].uid)
            assert (edge.vertex, edge.place, edge.kind) == (vertex, place, "forward")


def test_edges_that_are_alike_count_in_the_order_of_the_inputs() -> None:
    """A union of a stream with itself, keyed once and once not."""
    graph = Graph().add("source", "source").add("join", "map", ("source", Rebalance()), ("source", Keyed(identity)))
    edges = edge_keys(plan(graph.add("sink", "sink", "join").build(), parallelism=2))
    assert [edge.stored for edge in edges.exits] == [
        InFlightEdge(EdgeKey("source", "join"), "rebalance"),
        InFlightEdge(EdgeKey("source", "join", None, 1), "keyed"),
    ]
    assert edges.chained["join", 1].stored == InFlightEdge(EdgeKey("join", "sink"), "forward")


def test_edges_in_words() -> None:
    assert str(EdgeKey("orders", "totals")) == "'orders' → 'totals'"
    assert str(EdgeKey("orders", "totals", "late", 1)) == "'orders' → 'totals' (side output 'late') (no. 2)"


def test_kinds_are_those_of_the_plan() -> None:
    graph = Graph().add("source", "source", parallelism=2)
    graph.add("all", "map", ("source", Broadcast())).add("wide", "map", ("source", Forward()), parallelism=3)
    graph.add("a", "sink", "all").add("b", "sink", "wide", parallelism=3)
    kinds = {str(edge.key): edge.kind for edge in edge_keys(plan(graph.build(), parallelism=2)).by_key.values()}
    assert kinds == {
        "'source' → 'all'": "broadcast",
        "'source' → 'wide'": "rebalance",
        "'all' → 'a'": "forward",
        "'wide' → 'b'": "forward",
    }
