"""What one worker has of one attempt: its slice, the channels to the others, and its way to the checkpoint storage.

Invariant: what fails while it is put together leaves nothing open; closing it ends the subtasks first, then their
storage, then their channels.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Protocol

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint import layout
from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.opening import open_files
from streamactors.clock import Clock
from streamactors.cluster.exchange import Exchange
from streamactors.cluster.messages import RestoredFrom, Vitals
from streamactors.cluster.slice import Slice
from streamactors.cluster.storage import Ask, WorkerSnapshots, reopened
from streamactors.cluster.wire import Epoch, Wire
from streamactors.cluster.workers import Times
from streamactors.elements import Element
from streamactors.errors import ClusterUnfit
from streamactors.graph.logical import Forward
from streamactors.graph.physical import ChannelId, PhysicalPlan, SubtaskId
from streamactors.graph.placement import Placement
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.channel import Channel
from streamactors.runtime.messages import CheckpointComplete, Control, Reports
from streamactors.time.alignment import AlignmentGroups


@dataclasses.dataclass(frozen=True)
class Ways:
    """How a part reaches everything else. `ask`: see `storage.Ask`; `on_lost`: another worker can't be reached;
    `check_alive`: see `SinkContext`."""

    reports: Reports
    ask: Ask
    on_lost: Callable[[int, BaseException], None]
    alignment: AlignmentGroups
    check_alive: Callable[[], None]


class Home(Protocol):
    """The worker's process, in all attempts. `files` replaces what the checkpoint storage is reached by."""

    number: int
    wire: Wire
    clock: Clock
    files: Files | None
    times: Times


class Part:
    """Made by `assembled`; nothing of it runs before `start`."""

    def __init__(
        self, plan: PhysicalPlan, slice: Slice, exchange: Exchange, storage: WorkerSnapshots, closing: AsyncExitStack
    ) -> None:
        self.exchange = exchange
        self.storage = storage
        self._plan = plan
        self._slice = slice
        self._closing = closing

    @classmethod
    async def assembled(
        cls,
        home: Home,
        epoch: Epoch,
        spec: AttemptSpec,
        placement: Placement,
        restored: RestoredFrom | None,
        ways: Ways,
    ) -> "Part":
        async with AsyncExitStack() as closing:  # the last one entered is closed first
            files = await _files(home, spec, closing)
            if files is not None:
                await _refuse_another_storage(files, spec, home.number)
            exchange = _exchange(home, epoch, spec, ways)
            closing.push_async_callback(exchange.close)
            storage = WorkerSnapshots(
                None if restored is None or files is None else reopened(restored, files, spec.plan.name),
                home.clock,
                files=files,
                flow=spec.plan.name,
                epoch=epoch,
                worker=home.number,
                ask=ways.ask,
            )
            closing.push_async_callback(storage.close)
            slice = Slice(
                spec,
                placement.slices[home.number],
                storage,
                ways.reports,
                home.clock,
                elsewhere=_Outlets(spec, placement, exchange),
                alignment=ways.alignment,
                check_alive=ways.check_alive,
            )
            closing.push_async_callback(slice.shut_down)
            _admit(slice, placement, exchange)
            return cls(spec.plan, slice, exchange, storage, closing.pop_all())

    def start(self) -> None:
        self._slice.start()

    def subtask(self, number: int) -> SubtaskId:
        """By its place in the plan."""
        return self._plan.subtasks[number]

    def send(self, subtask: SubtaskId, control: Control) -> None:
        if isinstance(control, CheckpointComplete):
            self.storage.completed(control.checkpoint)
        self._slice.send(subtask, control)

    def vitals(self) -> Vitals:
        return Vitals(self._slice.metrics(), self._slice.filled(), self.storage.bytes_read)

    async def close(self) -> None:
        await self._closing.aclose()


async def _files(home: Home, spec: AttemptSpec, closing: AsyncExitStack) -> Files | None:
    if spec.checkpoints is None or home.files is not None:
        return None if spec.checkpoints is None else home.files
    files = open_files(spec.checkpoints.storage, clock=home.clock, options=spec.checkpoints.storage_options)
    closing.push_async_callback(files.close)
    return files


async def _refuse_another_storage(files: Files, spec: AttemptSpec, worker: int) -> None:
    """Before anything is restored from it, or taken for a checkpoint there."""
    flow = layout.flow_folder(spec.plan.name)
    if await files.stat(f"{flow}/{layout.run_folder(spec.run)}/{layout.EPOCH}") is None:
        raise ClusterUnfit(
            f"worker {worker} does not find the checkpoints of the job in {files.uri_of(flow)}: each node has a folder "
            "of its own there. Give a storage that all nodes reach: an object store, or a shared folder"
        )


def _exchange(home: Home, epoch: Epoch, spec: AttemptSpec, ways: Ways) -> Exchange:
    governor = Governor.of_running_loop(home.clock.monotonic)
    edges = [edge.key for edge in spec.edges.exits]
    give_up = home.times.lost_after
    return Exchange(epoch, home.number, home.wire, spec.codec, home.clock, governor, ways.on_lost, edges, give_up)


def _admit(slice: Slice, placement: Placement, exchange: Exchange) -> None:
    for receiver, channels in slice.inputs.items():
        for place, channel in enumerate(channels):
            if placement.crosses(channel):
                exchange.admit(channel, slice.mailboxes[receiver], place, placement.worker_of(channel.sender))


class _Outlets:
    """The channels to the slices of others."""

    def __init__(self, spec: AttemptSpec, placement: Placement, exchange: Exchange) -> None:
        self._spec = spec
        self._placement = placement
        self._exchange = exchange
        self._like: dict[str, Mailbox[Element]] = {}
        """By vertex one such as each of its subtasks has, for the quotas."""

    def __call__(self, id: ChannelId) -> Channel:
        vertex = id.receiver.vertex
        if vertex not in self._like:
            self._like[vertex] = Mailbox(_inputs(self._spec.plan, vertex), self._spec.mailbox_capacity)
        like = self._like[vertex]
        return self._exchange.channel(id, self._placement.worker_of(id.receiver), like.quota, like.byte_quota)


def _inputs(plan: PhysicalPlan, vertex: str) -> int:
    """Channels into each subtask of a vertex."""
    into = (edge for edge in plan.edges if edge.downstream == vertex)
    return sum(1 if isinstance(edge.partitioning, Forward) else plan.vertex[edge.upstream].parallelism for edge in into)
