"""The physical plan: chains of nodes with their subtasks, and the channels between them. Frozen data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from streamactors.graph.logical import Broadcast, Forward, Keyed, Node, Partitioning, Rebalance
from streamactors.graph.record_ids import RecordIds
from streamactors.state.key_groups import KeyGroupRange, subtask_range

Execution = Literal["streaming", "batch"]


@dataclass(frozen=True, order=True, slots=True)
class SubtaskId:
    """Subtask `index` of vertex `vertex` (its uid)."""

    vertex: str
    index: int

    def __str__(self) -> str:
        return f"{self.vertex}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Vertex:
    """A chain of nodes that run in one actor; `nodes[0]` takes the input. Its uid is the first node's."""

    nodes: tuple[Node, ...]
    parallelism: int
    max_parallelism: int

    @property
    def uid(self) -> str:
        return self.nodes[0].uid

    @property
    def is_source(self) -> bool:
        return self.nodes[0].is_source

    @property
    def name(self) -> str:
        return " → ".join(node.name for node in self.nodes)

    def subtasks(self) -> Iterator[SubtaskId]:
        return (SubtaskId(self.uid, index) for index in range(self.parallelism))

    def key_groups(self, index: int) -> KeyGroupRange:
        return subtask_range(index, self.parallelism, self.max_parallelism)


@dataclass(frozen=True, slots=True)
class Exit:
    """A physical edge: leaves node `link` (its place in the chain) of vertex `upstream`, enters input `side` of vertex
    `downstream`."""

    upstream: str
    link: int
    downstream: str
    partitioning: Partitioning
    tag: str | None = None
    side: int = 0


@dataclass(frozen=True, slots=True)
class ChannelId:
    """One channel: edge `edge` of the plan, from one subtask to another."""

    edge: int
    sender: SubtaskId
    receiver: SubtaskId


@dataclass(frozen=True)
class PhysicalPlan:
    """Vertices in topological order."""

    name: str
    vertices: tuple[Vertex, ...]
    edges: tuple[Exit, ...]
    execution: Execution = "streaming"
    record_ids: RecordIds = field(default_factory=RecordIds)

    @cached_property
    def vertex(self) -> dict[str, Vertex]:
        return {vertex.uid: vertex for vertex in self.vertices}

    @cached_property
    def subtasks(self) -> tuple[SubtaskId, ...]:
        return tuple(subtask for vertex in self.vertices for subtask in vertex.subtasks())

    @cached_property
    def sources(self) -> tuple[SubtaskId, ...]:
        return tuple(subtask for vertex in self.vertices if vertex.is_source for subtask in vertex.subtasks())

    @cached_property
    def node(self) -> dict[str, tuple[Vertex, Node]]:
        """By node uid."""
        return {node.uid: (vertex, node) for vertex in self.vertices for node in vertex.nodes}

    @cached_property
    def forward_groups(self) -> tuple[tuple[Vertex, ...], ...]:
        """Chains that forward edges connect, which makes them equally wide; in topological order."""
        group = {vertex.uid: [vertex.uid] for vertex in self.vertices}
        for edge in self.edges:
            one, other = group[edge.upstream], group[edge.downstream]
            if isinstance(edge.partitioning, Forward) and one is not other:
                one.extend(other)
                group.update(dict.fromkeys(other, one))
        joined = {id(uids): set(uids) for uids in group.values()}
        return tuple(tuple(vertex for vertex in self.vertices if vertex.uid in uids) for uids in joined.values())

    def channels_out(self, edge: int, sender: SubtaskId) -> list[ChannelId]:
        """The channels of one edge from one sender, ordered by receiver."""
        leave = self.edges[edge]
        receivers = self.vertex[leave.downstream].subtasks()
        if isinstance(leave.partitioning, Forward):
            receivers = (SubtaskId(leave.downstream, sender.index) for _ in range(1))
        return [ChannelId(edge, sender, receiver) for receiver in receivers]

    def channels_in(self, receiver: SubtaskId) -> list[ChannelId]:
        """The input channels of a subtask, in the order that numbers them in its mailbox."""
        return [
            ChannelId(number, sender, receiver)
            for number, edge in enumerate(self.edges)
            if edge.downstream == receiver.vertex
            for sender in self._senders(edge, receiver)
        ]

    def _senders(self, edge: Exit, receiver: SubtaskId) -> Iterable[SubtaskId]:
        if isinstance(edge.partitioning, Forward):
            return (SubtaskId(edge.upstream, receiver.index),)
        return self.vertex[edge.upstream].subtasks()

    def channel_count(self, edge: Exit) -> int:
        up, down = self.vertex[edge.upstream].parallelism, self.vertex[edge.downstream].parallelism
        return up if isinstance(edge.partitioning, Forward) else up * down


def partitioning_name(partitioning: Partitioning) -> str:
    names = {Forward: "forward", Rebalance: "rebalance", Broadcast: "broadcast", Keyed: "key group"}
    return names[type(partitioning)]
