"""Connecting two streams: what goes into the graph, and what is refused while a flow is built."""

import textwrap
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSource
from streamactors.api.inference import operator_type
from streamactors.graph.edges import edge_keys
from streamactors.graph.logical import Broadcast, Edge, Forward, Keyed, Node, Rebalance
from streamactors.graph.planner import plan
from streamactors.operators.two_inputs import BroadcastProcessSpec, CoProcessSpec

LATE = sa.OutputTag("late", int)
DEAD = sa.OutputTag("dead", sa.DeadLetter)


class Both(sa.CoOperator[int, int, str]):
    def process_left(self, value: int, ctx: sa.Context[None, str]) -> None: ...
    def process_right(self, value: int, ctx: sa.Context[None, str]) -> None: ...


class KeyedBoth(sa.KeyedCoOperator[int, int, int, float]):
    def process_left(self, value: int, ctx: sa.Context[int, float]) -> None: ...
    def process_right(self, value: int, ctx: sa.Context[int, float]) -> None: ...


class Judge(sa.KeyedBroadcastOperator[int, int, int, bytes]):
    rules = sa.BroadcastState(int, int)

    def process(self, value: int, ctx: sa.Context[int, bytes]) -> None: ...
    def process_broadcast(self, value: int, ctx: sa.Context[None, bytes]) -> None: ...


class Single(sa.Operator[int, int]):
    def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        ctx.emit_to(LATE, value)


def key(value: int) -> int:
    return value % 3


def other_key(value: int) -> int:
    return value % 5


@pytest.fixture
def flow() -> sa.Dataflow:
    return sa.Dataflow("flow")


@pytest.fixture
def orders(flow: sa.Dataflow) -> sa.Stream[int]:
    return flow.source("orders", ListSource([1]))


@pytest.fixture
def rules(flow: sa.Dataflow) -> sa.Stream[int]:
    return flow.source("rules", ListSource([1]))


def last(flow: sa.Dataflow) -> Node:
    return flow.graph().nodes[-1]


def test_each_input_has_its_side(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    out = (
        orders.union(orders).connect(rules.rebalance()).process("both", Both, name="Both", parallelism=2, on_error=DEAD)
    )
    node = last(flow)
    assert node.inputs == (Edge(0, Forward()), Edge(0, Forward()), Edge(1, Rebalance(), side=1))
    assert node.spec == CoProcessSpec(Both, keyed=False, on_error=DEAD)
    assert (node.uid, node.name, node.parallelism, node.chain) == ("both", "Both", 2, True)
    assert type(out) is sa.Stream and out.map(str)._edges == (Edge(3, Forward()),)


def test_by_key(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    by_key = orders.connect(rules).key_by(key, other_key)
    assert type(by_key) is sa.KeyedConnectedStreams
    by_key.process("both", KeyedBoth, chain=False)
    node = last(flow)
    assert node.inputs == (Edge(0, Keyed(key)), Edge(1, Keyed(other_key), side=1))
    assert node.spec == CoProcessSpec(KeyedBoth, keyed=True) and not node.chain
    by_key.process("plain", Both)
    assert last(flow).spec == CoProcessSpec(Both, keyed=True)


def test_two_keyed_streams_stay_keyed(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    both = orders.key_by(key).filter(bool).connect(rules.key_by(other_key))
    assert type(both) is sa.KeyedConnectedStreams
    both.process("both", KeyedBoth)
    left, right = last(flow).inputs
    assert isinstance(left.partitioning, Keyed) and right == Edge(1, Keyed(other_key), side=1)
    both.key_by(other_key, key).process("again", KeyedBoth)
    assert [edge.partitioning for edge in last(flow).inputs] == [Keyed(other_key), Keyed(key)]


@pytest.mark.parametrize("swapped", [False, True])
def test_keys_on_one_side_alone(
    flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int], swapped: bool
) -> None:
    """The records go by their key; the operator has none."""
    streams: list[sa.Stream[int]] = [orders.key_by(key), rules.broadcast()]
    left, right = reversed(streams) if swapped else streams
    both = left.connect(right)
    assert type(both) is sa.ConnectedStreams
    both.process("both", Both)
    kinds = [type(edge.partitioning) for edge in last(flow).inputs]
    assert kinds == ([Broadcast, Keyed] if swapped else [Keyed, Broadcast])
    with pytest.raises(
        sa.InvalidDataflow, match="KeyedBoth is a KeyedCoOperator on a stream without keys: key_by first"
    ):
        both.process("keyed", KeyedBoth)  # type: ignore[arg-type]


def test_broadcast(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    late = orders.process("single", Single).side_output(LATE)
    late.key_by(key).connect_broadcast(rules.key_by(key)).process("judge", Judge, parallelism=3, on_error=DEAD)
    node = last(flow)
    assert node.inputs == (Edge(2, Keyed(key), "late"), Edge(1, Broadcast(), side=1))
    assert node.spec == BroadcastProcessSpec(Judge, keyed=True, on_error=DEAD) and node.spec.keyed_state


def test_what_they_emit() -> None:
    assert [operator_type(made) for made in (Both, KeyedBoth, Judge)] == [str, float, bytes]


def test_heads_its_chain(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    orders.connect(rules).process("both", Both).map(str)
    chains = [[node.uid for node in vertex.nodes] for vertex in plan(flow.graph()).vertices]
    assert chains == [["orders"], ["rules"], ["both", "map-3"]]


def test_edges_of_one_stream_on_both_sides_are_told_apart(flow: sa.Dataflow, orders: sa.Stream[int]) -> None:
    """Whichever other inputs there are."""
    orders.union(orders).connect(orders).process("both", Both)
    names = [(edge.key.ordinal, edge.key.side, str(edge.key)) for edge in edge_keys(plan(flow.graph())).exits]
    assert names == [
        (0, 0, "'orders' → 'both'"),
        (1, 0, "'orders' → 'both' (no. 2)"),
        (0, 1, "'orders' → 'both' (second input)"),
    ]


def test_is_explained_and_drawn(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    both = orders.connect(rules).key_by(key, key).process("both", KeyedBoth).map(int)
    both.connect(orders).process("plain", Both, parallelism=2)
    orders.key_by(key).connect_broadcast(rules).process("judge", Judge, parallelism=2)
    text = flow.explain(sa.Config(max_parallelism=4))
    assert text == textwrap.dedent(
        """\
        Dataflow flow

        Logical graph
          orders  source   ListSource of 1
          rules   source   ListSource of 1
          both    process  KeyedBoth        ← orders (left, key group)  ← rules (right, key group)
          map-3   map      int              ← both (forward)
          plain   process  Both             ← map-3 (left, forward)  ← orders (right, forward)
          judge   process  Judge            ← orders (key group)  ← rules (broadcast)

        Physical plan: 5 chains, 7 subtasks, 10 channels, 4 key groups (max parallelism)
          [orders]  1 subtask
              orders → both: left, key group, 1 to 1, 1 channel
              orders → plain: right, rebalance, 1 to 2, 2 channels
              orders → judge: key group, 1 to 2, 2 channels
          [rules]  1 subtask
              rules → both: right, key group, 1 to 1, 1 channel
              rules → judge: broadcast, 1 to 2, 2 channels
          [both → map-3]  1 subtask
              key groups: both[0] 0..3
              map-3 → plain: left, rebalance, 1 to 2, 2 channels
          [plain]  2 subtasks
          [judge]  2 subtasks
              key groups: judge[0] 0..1, judge[1] 2..3
        """
    )
    drawn = flow.to_mermaid().splitlines()
    assert '    n0 -->|"left / key group"| n2' in drawn and '    n1 -->|"right / key group"| n2' in drawn
    assert '    n3 -->|"left"| n4' in drawn and '    n1 -->|"broadcast"| n5' in drawn
    assert '    n0 -->|"key group"| n5' in drawn


# --------------------------------------------------------------------------------------------------- what is refused
def test_only_streams_of_the_same_flow(orders: sa.Stream[int]) -> None:
    other = sa.Dataflow("other").source("rules", ListSource([1]))
    for connect in (orders.connect, orders.key_by(key).connect, orders.key_by(key).connect_broadcast):
        refused: Any = connect
        with pytest.raises(sa.InvalidDataflow, match="were built from two Dataflow objects"):
            refused(other)
        with pytest.raises(sa.InvalidDataflow, match=r"connect(_broadcast)? takes a stream, not \[1\]"):
            refused([1])


def test_operators_in_the_wrong_place(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    connected: Any = orders.connect(rules)
    broadcast: Any = orders.key_by(key).connect_broadcast(rules)
    plain: Any = orders
    for place, operator, words in (
        (connected, Judge, "Judge is a KeyedBroadcastOperator, used as stream.*connect_broadcast"),
        (connected, Single, r"Single is an Operator, used as stream\.process"),
        (broadcast, Both, r"Both is a CoOperator, used as left\.connect"),
        (plain, KeyedBoth, r"KeyedBoth is a KeyedCoOperator, used as left\.connect\(right\)\.key_by"),
        (plain.key_by(key), Judge, "Judge is a KeyedBroadcastOperator"),
    ):
        with pytest.raises(sa.InvalidDataflow, match=f"operator 'step': {words}"):
            place.process("step", operator)
        with pytest.raises(sa.InvalidDataflow, match="process needs a uid first"):
            place.process(operator)
        with pytest.raises(sa.InvalidDataflow, match="on_error is 'fail' or an OutputTag"):
            place.process("step", operator, on_error="skip")
    with pytest.raises(sa.InvalidDataflow, match="map takes a function, and Judge is an operator"):
        plain.map(Judge)
    assert len(flow.graph().nodes) == 2


def test_keys_are_given_by_plain_functions(orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    async def later(value: int) -> int:
        return value

    with pytest.raises(sa.InvalidDataflow, match="key_by takes a plain function"):
        orders.connect(rules).key_by(key, later)


def test_dead_letters_are_not_lost(flow: sa.Dataflow, orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    orders.connect(rules).process("both", Both, on_error=DEAD)
    with pytest.raises(sa.InvalidDataflow, match="'both' sends its dead letters to side output 'dead', which nothing"):
        plan(flow.graph())


def test_is_shown_with_its_streams(orders: sa.Stream[int], rules: sa.Stream[int]) -> None:
    assert repr(orders.connect(rules)) == (
        "<ConnectedStreams <Stream of orders in dataflow 'flow'>, <Stream of rules in dataflow 'flow'>>"
    )
    assert repr(orders.key_by(key).connect_broadcast(rules)).startswith("<BroadcastConnectedStreams <KeyedStream of or")
