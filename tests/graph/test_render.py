"""Both graphs as text, word for word."""

import functools
import textwrap
from dataclasses import replace
from typing import Any

from connectors.memory import ListSink, ListSource
from streamactors.graph.logical import Keyed, LogicalGraph, Rebalance, SourceSpec
from streamactors.graph.planner import plan
from streamactors.graph.render import explain, mermaid
from streamactors.operators.base import Context, KeyedOperator
from streamactors.operators.process import ProcessSpec, ReduceSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.stateless import FunctionSpec, PrintSpec
from tests.graph.graphs import Graph


class Orders(ListSource[Any]):
    def describe(self) -> str:
        return "events/*.jsonl"


class Topic(ListSink[Any]):
    def describe(self) -> str:
        return "topic totals"


class RunningTotal(KeyedOperator[str, Any, Any]):
    def __init__(self, limit: float = 0.0) -> None:
        self.limit = limit

    def process(self, value: Any, ctx: Context[str, Any], /) -> None:
        ctx.emit(value)


def parse(line: Any) -> Any:
    return line


def first(left: Any, _: Any) -> Any:
    return left


class Parser:
    def __call__(self, line: Any) -> Any:
        return line


KEYED = Keyed(parse)


def orders() -> LogicalGraph:
    graph = Graph().add("orders", SourceSpec(Orders([1])), parallelism=2)
    graph.add("map-1", FunctionSpec("map", parse), "orders", parallelism=2)
    totals = ProcessSpec(functools.partial(RunningTotal, 10.0), keyed=True)
    graph.add("totals", totals, ("map-1", KEYED), parallelism=4)
    graph.add("out", SinkSpec(Topic()), "totals", parallelism=4)
    graph.add("print-4", PrintSpec("late "), "totals.late")
    return graph.build()


def test_explain_shows_both_graphs() -> None:
    graph = orders()
    assert explain(graph, plan(graph)) == textwrap.dedent(
        """\
        Dataflow test

        Logical graph
          orders   source   events/*.jsonl
          map-1    map      parse           ← orders (forward)
          totals   process  RunningTotal    ← map-1 (key group)
          out      sink     topic totals    ← totals (forward)
          print-4  print                    ← totals.late (forward)

        Physical plan: 3 chains, 7 subtasks, 12 channels, 128 key groups (max parallelism)
          [orders → map-1]  2 subtasks
              map-1 → totals: key group, 2 to 4, 8 channels
          [totals → out]  4 subtasks
              key groups: totals[0] 0..31, totals[1] 32..63, totals[2] 64..95, totals[3] 96..127
              totals.late → print-4: rebalance, 4 to 1, 4 channels
          [print-4]  1 subtask
        """
    )


def test_a_union_is_explained_with_all_its_inputs() -> None:
    source = SourceSpec(Orders([1]))
    graph = Graph().add("left", source).add("right", source)
    both = graph.add("both", ReduceSpec(first, Any), ("left", KEYED), ("right", KEYED))
    made = both.add("map-3", FunctionSpec("map", Parser()), ("both", Rebalance())).build()
    assert explain(made, plan(made, max_parallelism=8)).splitlines()[2:] == [
        "Logical graph",
        "  left   source  events/*.jsonl",
        "  right  source  events/*.jsonl",
        "  both   reduce  first           ← left (key group)  ← right (key group)",
        "  map-3  map     Parser          ← both (rebalance)",
        "",
        "Physical plan: 4 chains, 4 subtasks, 3 channels, 8 key groups (max parallelism)",
        "  [left]  1 subtask",
        "      left → both: key group, 1 to 1, 1 channel",
        "  [right]  1 subtask",
        "      right → both: key group, 1 to 1, 1 channel",
        "  [both]  1 subtask",
        "      key groups: both[0] 0..7",
        "      both → map-3: rebalance, 1 to 1, 1 channel",
        "  [map-3]  1 subtask",
    ]


def test_many_key_groups_are_folded_between_subtasks() -> None:
    graph = Graph().add("in", "source").add("totals", ReduceSpec(first, Any), ("in", KEYED), parallelism=30).build()
    text = explain(graph, plan(graph))
    folded = [line for line in text.splitlines() if "totals[" in line]
    assert len(folded) > 3
    assert all(len(line) <= 100 for line in text.splitlines())
    assert ", ".join(line.removeprefix("      key groups:").strip(" ,") for line in folded) == ", ".join(
        f"totals[{index}] {plan(graph).vertex['totals'].key_groups(index)}" for index in range(30)
    )


def test_mermaid_draws_the_logical_graph() -> None:
    assert mermaid(orders()) == textwrap.dedent(
        """\
        flowchart LR
            n0(["orders<br/>events/*.jsonl"])
            n1["map-1<br/>parse"]
            n2["totals<br/>RunningTotal"]
            n3[("out<br/>topic totals")]
            n4["print-4<br/>print"]
            n0 --> n1
            n1 -->|"key group"| n2
            n2 --> n3
            n2 -.->|"late"| n4
        """
    )


def test_names_given_by_the_user_are_escaped() -> None:
    node = Graph().add("in", SourceSpec(Orders([1]))).build().nodes[0]
    assert mermaid(LogicalGraph("test", (replace(node, name='the "best" & <first>'),))) == (
        'flowchart LR\n    n0(["the #34;best#34; #38; #60;first#62;<br/>in<br/>events/*.jsonl"])\n'
    )


def test_names_given_by_the_user_are_explained() -> None:
    graph = Graph().add("in", "source").add("map-1", FunctionSpec("map", lambda value: value), "in").build()
    named = LogicalGraph("test", (graph.nodes[0], replace(graph.nodes[1], name="parse")))
    row = next(line for line in explain(named, plan(named)).splitlines() if line.startswith("  map-1"))
    assert row.split() == ["map-1", "map", "lambda,", "named", "'parse'", "←", "in", "(forward)"]
