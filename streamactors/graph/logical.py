"""The logical graph: what the user built, as frozen data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from streamactors.elements import DeadLetter, OutputTag
from streamactors.operators.base import OperatorSpec
from streamactors.sources import SplitSource
from streamactors.time.watermarks import Watermarks


@dataclass(frozen=True, slots=True)
class Forward:
    """Subtask i to subtask i; becomes `Rebalance` where the parallelism differs."""


@dataclass(frozen=True, slots=True)
class Rebalance:
    """Round-robin over the subtasks downstream, batch by batch."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A copy to every subtask downstream."""


@dataclass(frozen=True, slots=True)
class Keyed:
    """By key group of `selector(value)`."""

    selector: Callable[[Any], Any]


Partitioning = Forward | Rebalance | Broadcast | Keyed


@dataclass(frozen=True, slots=True)
class Edge:
    """Into a node, from node `upstream`; `tag` names the side output it carries, None the main one. `side`: the input
    of the node that it enters, 0, or 1 for the right one of a node with two."""

    upstream: int
    partitioning: Partitioning
    tag: str | None = None
    side: int = 0


@dataclass(frozen=True, slots=True)
class SourceSpec:
    source: SplitSource[Any]
    watermarks: Watermarks[Any] | None = None

    @property
    def kind(self) -> str:
        return "source"

    @property
    def gives_time(self) -> bool:
        """Whether it sends watermarks."""
        return self.watermarks is not None and self.watermarks.generated

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        """Where it sends records that can't be used."""
        return self.source.error_tag

    @property
    def ahead_tag(self) -> OutputTag[Any] | None:
        """Where it sends records that are too far in the future."""
        return None if self.watermarks is None else self.watermarks.ahead


@dataclass(frozen=True, slots=True)
class Node:
    """One step. `uid` is the user's, or made from the step's place (`named` False): then it holds no state."""

    id: int
    uid: str
    name: str
    spec: SourceSpec | OperatorSpec
    inputs: tuple[Edge, ...] = ()
    parallelism: int | None = None
    chain: bool = True
    named: bool = True

    @property
    def kind(self) -> str:
        return self.spec.kind

    @property
    def is_source(self) -> bool:
        return isinstance(self.spec, SourceSpec)


@dataclass(frozen=True)
class LogicalGraph:
    """Nodes in the order they were built, which is topological; a node's id is its index."""

    name: str
    nodes: tuple[Node, ...]

    @cached_property
    def consumers(self) -> dict[int, list[tuple[int, Edge]]]:
        """By node: (consumer, edge), in the order they were built."""
        consumers: dict[int, list[tuple[int, Edge]]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for edge in node.inputs:
                consumers[edge.upstream].append((node.id, edge))
        return consumers
