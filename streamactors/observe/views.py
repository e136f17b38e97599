"""What a running job tells of itself, as the documents of `model`.

Reading is a few milliseconds for five hundred subtasks; whoever reads again and again shares one `tick`.
"""

import asyncio
import itertools
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any, Final, Literal

from streamactors.clock import Clock
from streamactors.config import shown
from streamactors.elements import MAX_TIME, MIN_TIME
from streamactors.errors import InvalidRequest, RecordFailed
from streamactors.graph.physical import PhysicalPlan, Vertex, partitioning_name
from streamactors.launch import JobHandle
from streamactors.metrics import BUCKETS, Readings
from streamactors.observe import model
from streamactors.observe.backpressure import LoadMeter, Spent
from streamactors.observe.registry import Entry
from streamactors.observe.state import state_of
from streamactors.runtime.autoscaling.decisions import Decision
from streamactors.runtime.figures import SubtaskCheckpoint
from streamactors.runtime.info import ChannelFill, CheckpointInfo, CheckpointUnderWay, Incident
from streamactors.runtime.progress import input_progress
from streamactors.settings import redacted

WAITING_SHOWN: Final = 20
LONGEST_TRACEBACK: Final = 20_000
"""Characters, of the end."""
_CREDENTIALS: Final = re.compile(r"(\w+://)[^/@\s]+@")

Counts = Mapping[str, Any]
"""Of one subtask, as `JobHandle.metrics` has it."""


class JobView:
    """One job, read only."""

    def __init__(self, handle: JobHandle, entry: Entry, clock: Clock) -> None:
        self._handle = handle
        self._entry = entry
        self._clock = clock
        self._began = clock.monotonic()
        self._loads = LoadMeter()

    @property
    def name(self) -> str:
        return self._handle.name

    # ------------------------------------------------------------------------------------------------------- the whole
    def summary(self) -> model.JobSummary:
        return model.JobSummary(**self._summary())

    def status(self) -> model.JobStatus:
        metrics = self._handle.metrics()
        counts: Mapping[str, Counts] = metrics["subtasks"]
        subtasks = [_subtask(id, count) for id, count in counts.items()]
        return model.JobStatus(
            **self._summary(),
            operators=self._operators(counts),
            subtasks=subtasks,
            autoscale=self._autoscale(metrics),
            restored_parallelism=dict(metrics["restored_parallelism"]),
        )

    async def tick(self) -> model.Tick:
        """In pieces of a few milliseconds, between which the loop is others'. `time_ms` is when it was counted."""
        time_ms, metrics = self._clock.time_ms(), self._handle.metrics()
        counts: Mapping[str, Counts] = metrics["subtasks"]
        await asyncio.sleep(0)
        vertices = _vertices(counts, self._measure(counts))
        await asyncio.sleep(0)
        operators = self._operators(counts)
        completed, failed = self._handle.checkpoint_counts
        return model.Tick(
            time_ms=time_ms,
            job=self.summary(),
            operators=operators,
            vertices=vertices,
            under_way=self._under_way(),
            completed=completed,
            failed=failed,
            exceptions=len(self._handle.incidents),
            autoscale=self._autoscale(metrics),
        )

    def _summary(self) -> dict[str, Any]:
        failures = self._handle.failures
        return {
            "name": self.name,
            "status": self._handle.status,
            "stopping": self._handle.stopping,
            "pid": self._entry.pid,
            "started_ms": self._entry.started_ms,
            "uptime_seconds": round(self._clock.monotonic() - self._began, 3),
            "restarts": self._handle.restarts,
            "storage": self._entry.storage,
            "target": self._entry.target,
            "last_checkpoint": self.last_checkpoint(),
            "last_failure": without_passwords(str(failures[-1])) if failures else None,
            "last_rescale": self.last_rescale(),
        }

    def _counts(self) -> Mapping[str, Counts]:
        counts: Mapping[str, Counts] = self._handle.metrics()["subtasks"]
        return counts

    def _plan(self) -> PhysicalPlan:
        """Of no vertices before the first attempt."""
        return self._handle.plan or PhysicalPlan(self.name, (), ())

    # ----------------------------------------------------------------------------------------------- operators, graph
    def graph(self) -> model.Graph:
        return graph_of(self._plan())

    def _operators(self, subtasks: Mapping[str, Counts]) -> list[model.Operator]:
        plan = self._plan()
        into, out, entries = Counter[str](), Counter[str](), Counter[str]()
        times: defaultdict[str, list[Counts]] = defaultdict(list)
        progress = input_progress(subtasks.values())
        for subtask in subtasks.values():
            for uid, counts in subtask["nodes"].items():
                into[uid] += counts["records_in"]
                out[uid] += counts["records_out"]
                entries[uid] += sum(counts["entries"].values())
                times[uid].append(counts)
        return [
            model.Operator(
                uid=uid,
                name=node.name,
                kind=node.kind,
                parallelism=vertex.parallelism,
                max_parallelism=vertex.max_parallelism,
                records_in=into[uid],
                records_out=out[uid],
                watermark_ms=(spread := _spread(times[uid]))[0],
                skew_ms=spread[1],
                entries=entries[uid],
                progress=None if (told := progress.get(uid)) is None else model.Progress(**asdict(told)),
            )
            for uid, (vertex, node) in plan.node.items()
        ]

    # -------------------------------------------------------------------------------------------------------- subtasks
    def subtasks(self) -> model.Subtasks:
        return model.Subtasks(subtasks=[_subtask(id, counts) for id, counts in self._counts().items()])

    def subtask(self, vertex: str, index: int) -> model.SubtaskDetail:
        """Raises InvalidRequest if there is none such."""
        id, counts = f"{vertex}[{index}]", self._counts()
        if id not in counts:
            raise InvalidRequest(f"job {self.name!r} has no subtask {id!r}", "unknown-subtask", 404)
        channels = self._handle.channels(vertex, index)
        load = self._measure(counts)[id]
        return model.SubtaskDetail(
            subtask=_subtask(id, counts[id]),
            load=load,
            channels=[_channel(fill) for fill in channels],
            under_way=[_seen_by(id, one) for one in self._handle.checkpoints_under_way],
        )

    def backpressure(self) -> model.BackPressure:
        counts = self._counts()
        by_vertex: defaultdict[str, list[model.SubtaskLoad]] = defaultdict(list)
        for id, load in self._measure(counts).items():
            by_vertex[counts[id]["vertex"]].append(_named(id, load))
        return model.BackPressure(
            vertices=[
                model.VertexLoad(
                    vertex=vertex,
                    busy=max(load.busy for load in loads),
                    backpressured=max(load.backpressured for load in loads),
                    subtasks=loads,
                )
                for vertex, loads in by_vertex.items()
            ]
        )

    def _measure(self, counts: Mapping[str, Counts]) -> dict[str, model.Load]:
        return self._loads.measure(self._clock.monotonic(), {id: _spent(count) for id, count in counts.items()})

    # ------------------------------------------------------------------------------------------------------ watermarks
    def watermarks(self) -> model.Watermarks:
        now = self._clock.time_ms()
        times: defaultdict[str, dict[str, Counts]] = defaultdict(dict)
        for id, subtask in self._counts().items():
            for uid, counts in subtask["nodes"].items():
                times[uid][id] = counts
        return model.Watermarks(operators=[_watermarks(uid, subtasks, now) for uid, subtasks in times.items()])

    # ----------------------------------------------------------------------------------------------------- checkpoints
    def checkpoints(self) -> model.Checkpoints:
        completed, failed = self._handle.checkpoint_counts
        given_up = [
            model.CheckpointGivenUp(id=one.id, time_ms=one.time_ms, reason=without_passwords(one.reason))
            for one in reversed(self._handle.checkpoints_given_up)
        ]
        return model.Checkpoints(
            checkpoints=[checkpoint(info) for info in reversed(self._handle.checkpoints)],
            under_way=self._under_way(),
            given_up=given_up,
            completed=completed,
            failed=failed,
        )

    def checkpoint(self, id: int) -> model.CheckpointDetail:
        """Raises InvalidRequest if there is none such, or not any more."""
        for info in reversed(self._handle.checkpoints):
            if info.id == id:
                subtasks = [_part(part) for part in info.subtasks]
                return model.CheckpointDetail(**_checkpoint(info), subtasks=subtasks)
        raise InvalidRequest(f"job {self.name!r} remembers no complete checkpoint {id}", "unknown-checkpoint", 404)

    def state(self) -> model.State:
        completed = self._handle.checkpoints
        if not completed:
            return model.State(checkpoint=None, operators=[])
        return model.State(checkpoint=completed[-1].id, operators=state_of(completed[-1].subtasks))

    def last_checkpoint(self) -> model.Checkpoint | None:
        completed = self._handle.checkpoints
        return checkpoint(completed[-1]) if completed else None

    def last_rescale(self) -> model.Rescale | None:
        info = self._handle.last_rescale
        if info is None:
            return None
        seconds = round(info.pause.total_seconds(), 6)
        return model.Rescale(
            time_ms=info.time_ms, pause_seconds=seconds, before=dict(info.before), after=dict(info.after)
        )

    def _autoscale(self, metrics: Mapping[str, Any]) -> model.Autoscaling | None:
        decision: Decision | None = metrics["autoscale"]
        settings = self._handle.config.autoscale
        if decision is None or settings is None:
            return None
        steps = [model.AutoscaledSteps(**asdict(group)) for group in decision.groups]
        return model.Autoscaling(
            action=decision.action,
            reason=decision.reason,
            dry_run=settings.dry_run,
            parallelism=dict(decision.parallelism),
            steps=steps,
        )

    def completed(self, uri: str) -> model.Checkpoint:
        return next(checkpoint(info) for info in reversed(self._handle.checkpoints) if info.uri == uri)

    def _under_way(self) -> list[model.CheckpointUnderWay]:
        everybody = [str(subtask) for subtask in self._plan().subtasks]
        return [_under_way(one, everybody) for one in self._handle.checkpoints_under_way]

    # ------------------------------------------------------------------------------------------------ failures, config
    def exceptions(self) -> model.Exceptions:
        incidents = [_failure(incident) for incident in reversed(self._handle.incidents)]
        return model.Exceptions(restarts=self._handle.restarts, exceptions=incidents)

    def config(self) -> model.Settings:
        settings = shown(self._handle.config)
        return model.Settings(settings=[model.Setting(name=each.name, value=each.value) for each in settings])


# --------------------------------------------------------------------------------------------------------------- pieces
def checkpoint(info: CheckpointInfo) -> model.Checkpoint:
    return model.Checkpoint(**_checkpoint(info))


def _checkpoint(info: CheckpointInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "kind": _kind(savepoint=info.savepoint),
        "uri": redacted(info.uri),
        "time_ms": info.time_ms,
        "seconds": info.duration.total_seconds(),
        "state_bytes": info.state_bytes,
        "uploaded_bytes": info.uploaded_bytes,
        "inflight_bytes": info.inflight_bytes,
    }


def _part(part: SubtaskCheckpoint) -> model.SubtaskCheckpoint:
    return model.SubtaskCheckpoint(
        subtask=part.subtask,
        seconds=part.seconds,
        alignment_seconds=part.figures.alignment,
        synchronous_seconds=part.figures.synchronous,
        asynchronous_seconds=part.figures.asynchronous,
        state_bytes=sum(part.state_bytes.values()),
        inflight_bytes=part.inflight_bytes,
        operators=part.state_bytes,
    )


def _under_way(one: CheckpointUnderWay, everybody: Sequence[str]) -> model.CheckpointUnderWay:
    acknowledged = {part.subtask for part in one.acknowledged}
    waiting = [subtask for subtask in everybody if subtask not in acknowledged]
    return model.CheckpointUnderWay(
        id=one.id,
        seconds=round(one.seconds, 3),
        acknowledged=len(acknowledged),
        waiting_for=waiting[:WAITING_SHOWN],
        kind=_kind(savepoint=one.savepoint),
        quiet_seconds=round(max(0.0, one.quiet_seconds), 3),
    )


def _seen_by(subtask: str, one: CheckpointUnderWay) -> model.SubtaskUnderWay:
    return model.SubtaskUnderWay(
        id=one.id,
        kind=_kind(savepoint=one.savepoint),
        seconds=round(one.seconds, 3),
        acknowledged=any(part.subtask == subtask for part in one.acknowledged),
    )


def _kind(*, savepoint: bool) -> Literal["checkpoint", "savepoint"]:
    return "savepoint" if savepoint else "checkpoint"


def _subtask(id: str, counts: Counts) -> model.Subtask:
    return model.Subtask(
        id=id,
        queued=counts["queued"],
        capacity=counts["capacity"],
        blocked=counts["blocked"],
        unsent=counts["unsent"],
        nodes={uid: _node(node) for uid, node in counts["nodes"].items()},
        vertex=counts["vertex"],
        index=counts["index"],
        busy_seconds=round(counts["busy_seconds"], 6),
        idle_seconds=round(counts["idle_seconds"], 6),
        backpressured_seconds=round(counts["backpressured_seconds"], 6),
    )


def _node(counts: Counts) -> model.Node:
    own: Readings = counts["own"]
    return model.Node(
        records_in=counts["records_in"],
        records_out=counts["records_out"],
        undelivered=counts["undelivered"],
        watermark_ms=_time(counts["watermark"]),
        idle=counts["idle"],
        entries=counts["entries"],
        counters=_finite(own.counters),
        gauges=_finite(own.gauges),
        histograms={
            name: model.Histogram(bounds=list(BUCKETS), counts=list(seen), sum=total)
            for name, (seen, total) in own.histograms.items()
        },
    )


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no other number."""
    return {name: float(value) if isfinite(value) else None for name, value in values.items()}


def _time(watermark: int) -> int | None:
    return watermark if MIN_TIME < watermark < MAX_TIME else None


def _spread(counts: Iterable[Counts]) -> tuple[int | None, int]:
    """The least watermark of those that are not idle, and how far the greatest is ahead of it."""
    told = [time for one in counts if not one["idle"] and (time := _time(one["watermark"])) is not None]
    return (min(told), max(told) - min(told)) if told else (None, 0)


def _watermarks(uid: str, subtasks: Mapping[str, Counts], now: int) -> model.OperatorWatermarks:
    least, skew = _spread(subtasks.values())
    return model.OperatorWatermarks(
        uid=uid,
        watermark_ms=least,
        skew_ms=skew,
        lag_ms=None if least is None else now - least,
        subtasks=[
            model.SubtaskWatermark(subtask=id, watermark_ms=_time(counts["watermark"]), idle=counts["idle"])
            for id, counts in subtasks.items()
        ],
    )


def _channel(fill: ChannelFill) -> model.Channel:
    return model.Channel(
        sender=fill.sender,
        tag=fill.tag,
        side=fill.side,
        queued=fill.queued,
        capacity=fill.capacity,
        bytes=fill.bytes,
        elements=fill.elements,
        blocked=fill.blocked,
        barriers=list(fill.barriers),
        ahead=list(fill.ahead),
    )


def _spent(counts: Counts) -> Spent:
    return counts["busy_seconds"], counts["idle_seconds"], counts["backpressured_seconds"]


def _named(id: str, load: model.Load) -> model.SubtaskLoad:
    return model.SubtaskLoad(
        subtask=id, busy=load.busy, idle=load.idle, backpressured=load.backpressured, seconds=load.seconds
    )


def _vertices(counts: Mapping[str, Counts], loads: Mapping[str, model.Load]) -> list[model.VertexTick]:
    by_vertex: defaultdict[str, list[str]] = defaultdict(list)
    for id, count in counts.items():
        by_vertex[count["vertex"]].append(id)
    return [_vertex(vertex, [counts[id] for id in ids], [loads[id] for id in ids]) for vertex, ids in by_vertex.items()]


def _vertex(vertex: str, counts: Sequence[Counts], loads: Sequence[model.Load]) -> model.VertexTick:
    return model.VertexTick(
        vertex=vertex,
        busy=max(load.busy for load in loads),
        backpressured=max(load.backpressured for load in loads),
        mean_busy=round(sum(load.busy for load in loads) / len(loads), 4),
        mean_backpressured=round(sum(load.backpressured for load in loads) / len(loads), 4),
        queued=sum(count["queued"] for count in counts),
        capacity=sum(count["capacity"] for count in counts),
        unsent=sum(count["unsent"] for count in counts),
        blocked=sum(len(count["blocked"]) for count in counts),
    )


def graph_of(plan: PhysicalPlan) -> model.Graph:
    nodes = [
        model.GraphNode(
            uid=uid,
            name=node.name,
            kind=node.kind,
            vertex=vertex.uid,
            parallelism=vertex.parallelism,
            max_parallelism=vertex.max_parallelism,
        )
        for uid, (vertex, node) in plan.node.items()
    ]
    chained = [edge for vertex in plan.vertices for edge in _chained(vertex)]
    return model.Graph(nodes=nodes, edges=[*chained, *_exits(plan)])


def _chained(vertex: Vertex) -> Iterable[model.GraphEdge]:
    uids = [node.uid for node in vertex.nodes]
    return [model.GraphEdge(upstream=first, downstream=then) for first, then in itertools.pairwise(uids)]


def _exits(plan: PhysicalPlan) -> list[model.GraphEdge]:
    return [
        model.GraphEdge(
            upstream=plan.vertex[edge.upstream].nodes[edge.link].uid,
            downstream=edge.downstream,
            partitioning=partitioning_name(edge.partitioning),
            tag=edge.tag,
            side=edge.side,
            channels=plan.channel_count(edge),
        )
        for edge in plan.edges
    ]


def _failure(incident: Incident) -> model.Failure:
    error = incident.error
    of_record = error if isinstance(error, RecordFailed) else None
    key = None if of_record is None or of_record.key is None else repr(of_record.key)
    lines = "".join(traceback.format_exception(error))
    return model.Failure(
        time_ms=incident.time_ms,
        attempt=incident.attempt,
        kind=type(error).__name__,
        message=without_passwords(str(error)),
        traceback=without_passwords(lines)[-LONGEST_TRACEBACK:],
        operator=None if of_record is None else of_record.uid,
        key=key,
        origin=None if of_record is None else of_record.origin,
    )


def without_passwords(text: str) -> str:
    """Whatever stands before the host of a URI."""
    return _CREDENTIALS.sub(r"\1***@", text)
