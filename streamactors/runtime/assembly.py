"""Building one subtask from the plan: its links, state, input, outputs and protocol. Nothing runs yet."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.modes import barrier_protocol
from streamactors.clock import Clock
from streamactors.config import Checkpoints, StateBackend
from streamactors.elements import Batch, Element
from streamactors.graph.edges import PlanEdges, edge_keys
from streamactors.graph.execution import Intake, gathering_subtasks, intake
from streamactors.graph.logical import Broadcast, Node, SourceSpec
from streamactors.graph.physical import ChannelId, PhysicalPlan, SubtaskId, Vertex
from streamactors.metrics import MetricGroup
from streamactors.operators.async_io.link import AsyncLink
from streamactors.operators.base import Link, LinkContext, OperatorContext, OperatorSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.timestamps import RefusedRecords
from streamactors.runtime.alarm import Alarm
from streamactors.runtime.backlog import Backlog, BacklogReader
from streamactors.runtime.barriers import Barriers
from streamactors.runtime.bounded.inputs import SortedInput
from streamactors.runtime.bounded.runs import RunFormat
from streamactors.runtime.bounded.sorter import Sorter
from streamactors.runtime.chain import Chain, LinkSlot
from streamactors.runtime.channel import Channel, Demanding
from streamactors.runtime.event_time import InputTimes, Lanes
from streamactors.runtime.inflight import Captures, Route
from streamactors.runtime.inputs import Input, MailboxInput, SourceInput, SourceTime
from streamactors.runtime.load import Load
from streamactors.runtime.messages import Failed, NodeRestore, Reports
from streamactors.runtime.nodes import NodeRuntime
from streamactors.runtime.restore import Restores
from streamactors.runtime.routing import Output, Outputs, router
from streamactors.runtime.snapshot import Snapshots, SnapshotStorage
from streamactors.runtime.subtask import Subtask
from streamactors.runtime.sweeping import Sweeper
from streamactors.sinks import SinkContext, alone
from streamactors.sources import SPLITS, SourceContext
from streamactors.state.backend import KeyedBackend
from streamactors.state.backends import full_every, keyed_backend
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.operator_lists import OperatorLists
from streamactors.state.serialisation.serializers import AnySerializer
from streamactors.time.alignment import AlignmentGroups
from streamactors.time.progress import EventTime


@dataclass(frozen=True)
class AttemptSpec:
    """What all subtasks of one attempt have in common. `checkpoints` None: none are taken."""

    plan: PhysicalPlan
    run: int
    attempt: int
    checkpoints: Checkpoints | None
    mailbox_capacity: int
    restores: Restores = field(default_factory=dict)
    backlogs: Mapping[SubtaskId, Backlog] = field(default_factory=dict)
    committed: bool = False
    """A receipt says that the restored transactions are committed."""
    widest: Mapping[str, int] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    state_backend: str | StateBackend = "heap"
    sort_memory: int = 512 << 20
    sort_folder: str | None = None
    rescaled: bool = False
    """Whether the parallelism is another than the job was started with."""

    @property
    def batch(self) -> bool:
        return self.plan.execution == "batch"

    @property
    def committing(self) -> bool:
        """Whether sinks write in transactions, which the job commits."""
        return self.checkpoints is not None or self.batch

    @cached_property
    def sort_share(self) -> int:
        """Bytes that each subtask may take for sorting."""
        return self.sort_memory // max(1, gathering_subtasks(self.plan))

    @property
    def overtaking(self) -> bool:
        """Whether a barrier may overtake records."""
        return self.checkpoints is not None and self.checkpoints.may_overtake

    @cached_property
    def carries_groups(self) -> bool:
        """Whether records may be in flight behind a keyed step, where they have to find the owner of their key."""
        specs = [node.spec for vertex in self.plan.vertices for node in vertex.nodes]
        calls = any(isinstance(spec, OperatorSpec) and spec.holds_calls for spec in specs)
        return self.overtaking or (calls and self.checkpoints is not None)

    @cached_property
    def event_time(self) -> bool:
        """Whether there are watermarks."""
        return any(node.spec.gives_time for vertex in self.plan.vertices for node in vertex.nodes)

    @cached_property
    def timed(self) -> frozenset[str]:
        """The uids of the nodes that watermarks come to."""
        found: set[str] = set()
        for vertex in self.plan.vertices:  # in topological order
            entering = (edge.upstream for edge in self.plan.edges if edge.downstream == vertex.uid)
            timed = any(self._leaving(upstream) in found for upstream in entering)
            for node in vertex.nodes:
                timed = timed or node.spec.gives_time
                if timed:
                    found.add(node.uid)
        return frozenset(found)

    def _leaving(self, vertex: str) -> str:
        """The last node of a vertex: watermarks go through all of it."""
        return self.plan.vertex[vertex].nodes[-1].uid

    @cached_property
    def edges(self) -> PlanEdges:
        return edge_keys(self.plan)

    @cached_property
    def codec(self) -> FrameCodec:
        return FrameCodec()

    @cached_property
    def originals(self) -> AnySerializer:
        """Of the inputs of calls."""
        return AnySerializer()


@dataclass(frozen=True)
class Surroundings:
    """What a subtask is given to reach the others."""

    channel: Callable[[ChannelId], Channel]
    storage: SnapshotStorage | None
    reports: Reports
    governor: Governor
    clock: Clock
    alignment: AlignmentGroups = field(default_factory=AlignmentGroups)
    check_alive: Callable[[], None] = alone
    """See `SinkContext`."""


def assemble(spec: AttemptSpec, id: SubtaskId, mailbox: Mailbox[Element], around: Surroundings) -> Subtask:
    return _Assembly(spec, id, mailbox, around).build()


class _Assembly:
    """The parts of one subtask while they are put together."""

    def __init__(self, spec: AttemptSpec, id: SubtaskId, mailbox: Mailbox[Element], around: Surroundings) -> None:
        self._spec = spec
        self._id = id
        self._mailbox = mailbox
        self._around = around
        self._vertex: Vertex = spec.plan.vertex[id.vertex]
        self._intake: Intake = intake(spec.plan, self._vertex)
        self._chain = Chain(around.clock.monotonic)
        self._outputs: list[Output] = []
        self._metrics = {node.uid: MetricGroup() for node in self._vertex.nodes}
        operators = [node.uid for node in self._vertex.nodes if isinstance(node.spec, OperatorSpec)]
        self._lists = {uid: OperatorLists(uid, clock=around.clock) for uid in operators}
        routes = [self._route(channel) for channel in spec.plan.channels_in(id)]
        self._captures = Captures(mailbox, routes, spec.codec, mailbox.signal.set)
        self._times = InputTimes([(route.edge.key, route.sender) for route in routes]) if spec.event_time else None
        starts = {node.uid: self._start(node).time for node in self._vertex.nodes}
        groups = self._vertex.key_groups(id.index)
        self._event_times = {
            uid: EventTime(start.current, groups=range(groups.start, groups.stop), ahead=start.ahead, idle=start.idle)
            for uid, start in starts.items()
        }
        self._lanes = Lanes(starts)
        if spec.overtaking:
            self._chain.before_seen = self._captures.before_seen

    def build(self) -> Subtask:
        """Whatever fails, such as a factory of the user's: no backend stays open."""
        backends: dict[str, KeyedBackend | None] = {}
        try:
            for node in self._vertex.nodes:
                backends[node.uid] = self._backend(node)
            return self._built(backends)
        except BaseException:
            for backend in backends.values():
                if backend is not None:
                    backend.close()
            raise

    def _built(self, backends: Mapping[str, KeyedBackend | None]) -> Subtask:
        for place, node in enumerate(self._vertex.nodes):
            self._chain.add(self._slot(place, node, backends[node.uid]))
        source = self._input()
        outputs = Outputs(self._outputs, self._mailbox.signal.set)
        nodes = [self._node(node, backends[node.uid]) for node in self._vertex.nodes]
        for runtime in nodes:
            runtime.check()
        barriers = self._barriers(source, outputs, nodes)
        self._chain.interrupted = barriers.urgent
        return Subtask(
            self._id,
            mailbox=self._mailbox,
            source=source,
            chain=self._chain,
            outputs=outputs,
            nodes=nodes,
            barriers=barriers,
            captures=self._captures,
            times=self._times,
            lanes=self._lanes,
            backlog=self._backlog(),
            checkpointing=self._spec.committing,
            final_commit=self._spec.batch,
            reports=self._around.reports,
            governor=self._around.governor,
            sweeper=self._sweeper([backend for backend in backends.values() if backend is not None]),
            alarm=self._alarm(),
            load=Load(self._around.clock.monotonic),
        )

    def _alarm(self) -> Alarm:
        """In sorted input, processing timers wait for the end of their key."""
        services = [] if self._intake == "sorted" else self._chain.timers
        return Alarm(services, self._around.clock, self._mailbox.signal.set)

    def _sweeper(self, backends: Sequence[KeyedBackend]) -> Sweeper:
        around, id = self._around, self._id
        return Sweeper(backends, around.clock, around.governor, lambda error: around.reports(Failed(id, error)))

    # ---------------------------------------------------------------------------------------------------------- links
    def _backend(self, node: Node) -> KeyedBackend | None:
        if not isinstance(node.spec, OperatorSpec) or not node.spec.keyed_state:
            return None
        groups = self._vertex.key_groups(self._id.index)
        setting, clock = self._spec.state_backend, self._around.clock
        if self._intake == "sorted":  # it holds a few keys at a time
            return HeapBackend(groups, self._vertex.max_parallelism, uid=node.uid, clock=clock)
        return keyed_backend(setting, groups, self._vertex.max_parallelism, uid=node.uid, clock=clock)

    def _slot(self, place: int, node: Node, backend: KeyedBackend | None) -> LinkSlot:
        main: list[Output] = []
        sides: dict[str, list[Output]] = {}
        for number, edge in enumerate(self._spec.plan.edges):
            if (edge.upstream, edge.link) == (self._vertex.uid, place):
                output = self._output(number, node)
                (main if edge.tag is None else sides.setdefault(edge.tag, [])).append(output)
        link, metrics = self._link(place, node, backend), self._metrics[node.uid]
        calls = isinstance(link, AsyncLink) and self._spec.checkpoints is not None
        if place == 0 or not (self._spec.overtaking or calls):
            slot = LinkSlot(link, main, sides, metrics, time=self._event_times[node.uid])
            if self._intake == "sorted" and isinstance(backend, HeapBackend):
                slot.forget = backend.forget
            return slot
        route = self._chained_route(place)
        # An async link says itself what it can't store.
        prove = None if calls else functools.partial(_prove, self._spec.codec, route)
        return LinkSlot(link, main, sides, metrics, route, prove, self._event_times[node.uid])

    def _output(self, number: int, node: Node) -> Output:
        plan = self._spec.plan
        edge = plan.edges[number]
        ids = plan.channels_out(number, self._id)
        channels: Sequence[Channel] = [self._around.channel(id) for id in ids]
        routing = router(edge.partitioning, node.uid, len(channels), plan.vertex[edge.downstream].max_parallelism)
        kinds = {type(channel): channel for channel in channels}.values()  # `isinstance` takes a while, of a protocol
        demanding = next((channel for channel in kinds if isinstance(channel, Demanding)), None)
        prove = None if demanding is None else demanding.prove
        if self._spec.overtaking:
            routes = [self._route(id) for id in ids]
            prove = prove or functools.partial(_prove, self._spec.codec, routes[0])
            output = Output(routing, channels, routes, prove, self._captures.before_seen, name=self._edge_name(number))
        else:
            output = Output(routing, channels, prove=prove, name=self._edge_name(number))
        self._outputs.append(output)
        return output

    def _edge_name(self, number: int) -> str | None:
        """Where a record's name has to tell by which edge it came."""
        reunited = self._spec.plan.edges[number].downstream in self._spec.plan.record_ids.reunited
        return self._spec.edges.exits[number].name if reunited else None

    # ------------------------------------------------------------------------------------------------ in-flight data
    def _route(self, channel: ChannelId) -> Route:
        edge = self._spec.edges.exits[channel.edge]
        return Route(edge.stored, channel.sender.index, channel.receiver.index, edge.shared)

    def _chained_route(self, place: int) -> Route:
        index = self._id.index
        edge = self._spec.edges.chained[self._vertex.uid, place]
        return Route(edge.stored, index, index, edge.shared)

    def _backlog(self) -> BacklogReader | None:
        backlog = self._spec.backlogs.get(self._id)
        if backlog is None or self._around.storage is None:
            return None
        return BacklogReader(backlog, self._around.storage, self._spec.codec, self._vertex.max_parallelism)

    def _link(self, place: int, node: Node, backend: KeyedBackend | None) -> Link | None:
        if isinstance(node.spec, SourceSpec):
            return None
        context = LinkContext(
            node.uid,
            node.name,
            OperatorContext(
                uid=node.uid,
                subtask=self._id.index,
                parallelism=self._vertex.parallelism,
                metrics=self._metrics[node.uid],
                resources=self._spec.resources,
                flow=self._spec.plan.name,
            ),
            backend=backend,
            lists=self._lists.get(node.uid),
            drain=functools.partial(self._chain.drain, place),
            interrupted=self._interrupted,
            time=self._event_times[node.uid],
            watermarks=node.uid in self._spec.timed,
            record_ids=node.uid in self._spec.plan.record_ids.taken,
            passes_ids=node.uid in self._spec.plan.record_ids.given,
            carry_groups=self._spec.carries_groups,
            time_ms=self._around.clock.time_ms,
            clock=self._around.clock,
            keep=None if self._spec.checkpoints is None else self._spec.originals,
            wake=self._mailbox.signal.set,
            starved=self._starved,
            split_times=self._start(node).time.splits,
        )
        if isinstance(node.spec, SinkSpec):
            pending = self._start(node).pending
            return node.spec.sink_link(context, self._sink_context(node), pending, self._spec.committed)
        return node.spec.link(context)

    def _sink_context(self, node: Node) -> SinkContext:
        checkpoints = self._spec.checkpoints
        return SinkContext(
            flow=self._spec.plan.name,
            uid=node.uid,
            subtask=self._id.index,
            parallelism=self._vertex.parallelism,
            widest_parallelism=max(self._vertex.parallelism, self._spec.widest.get(node.uid, 0)),
            checkpointing=self._spec.committing,
            exactly_once=self._spec.committing and (checkpoints is None or checkpoints.mode == "exactly-once"),
            max_concurrent=checkpoints.max_concurrent if checkpoints else 1,
            tolerable_failures=checkpoints.tolerable_failures if checkpoints else 0,
            checkpoint_timeout=checkpoints.timeout.total_seconds() if checkpoints else 0.0,
            run=self._spec.run,
            attempt=self._spec.attempt,
            log=self._log(node),
            metrics=self._metrics[node.uid],
            resources=self._spec.resources,
            check_alive=self._around.check_alive,
        )

    # ---------------------------------------------------------------------------------------------------------- input
    def _input(self) -> Input:
        node = self._vertex.nodes[0]
        if not isinstance(node.spec, SourceSpec):
            channels = self._spec.plan.channels_in(self._id)
            if self._intake != "as it comes":
                return self._sorted_input(channels)
            return MailboxInput(self._mailbox, len(channels))
        context = SourceContext(
            flow=self._spec.plan.name,
            uid=node.uid,
            subtask=self._id.index,
            parallelism=self._vertex.parallelism,
            checkpointing=self._spec.checkpoints is not None,
            log=self._log(node),
            metrics=self._metrics[node.uid],
            resources=self._spec.resources,
        )
        source = SourceInput(
            node.uid,
            node.spec.source.reader(context),
            self._start(node).positions,
            wake=self._mailbox.signal.set,
            limit=lambda: self._chain.slice,
            dead_letters=self._dead_letters(node.spec),
            watermarks=self._source_time(node, node.spec),
            monotonic=self._around.clock.monotonic,
            retain=max(self._spec.checkpoints.retain, 1) if self._spec.checkpoints else 1,
            names_in=self._spec.plan.name if node.uid in self._spec.plan.record_ids.given else None,
        )
        self._metrics[node.uid].gauge(SPLITS, lambda: source.splits)
        return source

    def _sorted_input(self, channels: Sequence[ChannelId]) -> SortedInput:
        edges = [self._spec.plan.edges[channel.edge] for channel in channels]
        sides = [edge.side for edge in edges]
        passing = [place for place, edge in enumerate(edges) if isinstance(edge.partitioning, Broadcast)]
        gathered = [place for place in range(len(edges)) if place not in passing]
        keyed, timed = self._intake == "sorted", self._vertex.uid in self._spec.timed
        sided = keyed and len({sides[place] for place in gathered}) > 1
        link = self._chain.slots[0].link
        hybrid = keyed and not timed and not sided and link is not None and link.timers is None
        sorter = Sorter(
            RunFormat(self._spec.codec, self._spec.edges.exits[channels[gathered[0]].edge].key),
            self._around.clock,
            memory=self._spec.sort_share,
            folder=self._spec.sort_folder,
            max_parallelism=self._vertex.max_parallelism,
            sided=sided,
            timed=keyed and timed,
            by_group=hybrid,
        )
        direct = self._spec.sort_share if hybrid and not passing else 0
        return SortedInput(self._mailbox, sides, passing, sorter, keyed=keyed, direct=direct)

    def _source_time(self, node: Node, spec: SourceSpec) -> SourceTime | None:
        watermarks = spec.watermarks
        if watermarks is None or not spec.gives_time:
            return None
        restored = self._start(node).time.splits
        reached = [stored[0] for stored in restored.values()]
        return SourceTime(
            watermarks.of_splits(restored),
            watermarks.assigner(self._around.clock.time_ms, reached),
            RefusedRecords(node.uid, watermarks.ahead, spec.error_tag, self._metrics[node.uid]),
            functools.partial(self._chain.emit_sides, 0),
            self._around.alignment[watermarks.align_group] if watermarks.aligned else None,
        )

    def _starved(self) -> bool:
        """Whether nothing waits to be processed, or for room."""
        chain, outputs = self._chain, self._outputs
        waiting = chain.busy or chain.working or chain.holding or self._mailbox.queued
        return not waiting and not any(output.unsent for output in outputs)

    def _dead_letters(self, spec: SourceSpec) -> Callable[[Batch], None] | None:
        tag = spec.source.error_tag
        if tag is None:
            return None
        name = tag.name
        return lambda letters: self._chain.emit_sides(0, {name: letters})

    # --------------------------------------------------------------------------------------------------- checkpointing
    def _start(self, node: Node) -> NodeRestore:
        return self._spec.restores.get((self._id, node.uid), NodeRestore())

    def _node(self, node: Node, backend: KeyedBackend | None) -> NodeRuntime:
        return NodeRuntime(
            node.uid,
            is_source=node.is_source,
            backend=backend,
            lists=self._lists.get(node.uid),
            start=self._start(node),
            storage=self._around.storage,
            governor=self._around.governor,
            clock=self._around.clock,
            max_parallelism=self._vertex.max_parallelism,
            incremental=self._spec.checkpoints is not None and self._spec.checkpoints.incremental,
            full_every=full_every(self._spec.state_backend),
        )

    def _barriers(self, source: Input, outputs: Outputs, nodes: Sequence[NodeRuntime]) -> Barriers:
        checkpoints = self._spec.checkpoints
        return Barriers(
            self._id,
            barrier_protocol("exactly-once" if checkpoints is None else checkpoints.mode, source.channels),
            mailbox=self._mailbox,
            source=source,
            chain=self._chain,
            outputs=outputs,
            nodes=nodes,
            captures=self._captures,
            times=self._times,
            snapshots=self._snapshots(),
            reports=self._around.reports,
            clock=self._around.clock,
        )

    def _interrupted(self) -> bool:
        """Whether the subtask has something to do that should not wait for a whole batch."""
        return bool(self._mailbox.control or self._mailbox.announced)

    def _snapshots(self) -> Snapshots | None:
        if self._spec.checkpoints is None or self._around.storage is None:
            return None
        around, groups = self._around, self._vertex.max_parallelism
        return Snapshots(
            self._id, self._around.storage, around.governor, around.reports, self._captures, max_parallelism=groups
        )

    def _log(self, node: Node) -> logging.LoggerAdapter[logging.Logger]:
        about = {"flow": self._spec.plan.name, "uid": node.uid, "subtask": self._id.index}
        return logging.LoggerAdapter(logging.getLogger("streamactors.connector"), about)


def _prove(codec: FrameCodec, route: Route, batch: Batch) -> None:
    """An edge's first record: one that could not be captured is refused now, not at a checkpoint under load."""
    codec.check(batch.values[0], route.edge.key)
