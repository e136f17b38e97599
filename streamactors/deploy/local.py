"""All subtasks in this process, on the loop that starts the job."""

import functools
from collections.abc import Callable
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.actors.supervisor import Supervisor
from streamactors.clock import Clock
from streamactors.elements import Barrier, Element
from streamactors.graph.physical import ChannelId, Exit, SubtaskId
from streamactors.runtime.assembly import AttemptSpec, Surroundings, assemble
from streamactors.runtime.chain import LinkSlot
from streamactors.runtime.channel import Channel, MailboxChannel
from streamactors.runtime.info import ChannelFill
from streamactors.runtime.messages import Control, Failed, Reports, Stopped
from streamactors.runtime.nodes import NodeRuntime
from streamactors.runtime.snapshot import SnapshotStorage
from streamactors.runtime.subtask import Subtask

PATIENCE = 10.0
"""Seconds that a cancelled subtask may take to release what it holds."""


ChannelWrapper = Callable[[ChannelId, Channel], Channel]
"""What stands in for a channel, such as one that stalls by seed."""


class LocalAttempt:
    """The subtasks of one attempt and the tasks that run them."""

    def __init__(
        self,
        spec: AttemptSpec,
        storage: SnapshotStorage | None,
        reports: Reports,
        clock: Clock,
        wrap: ChannelWrapper | None = None,
    ) -> None:
        self._reports = reports
        self._wrap = wrap
        self._supervisor = Supervisor(self._ended)
        plan = spec.plan
        inputs = {id: plan.channels_in(id) for id in plan.subtasks}
        self._mailboxes: dict[SubtaskId, Mailbox[Element]] = {
            id: Mailbox(len(channels), spec.mailbox_capacity) for id, channels in inputs.items()
        }
        self._inputs = inputs
        self._edges = plan.edges
        places = {channel: place for channels in inputs.values() for place, channel in enumerate(channels)}
        governor = Governor.of_running_loop(clock.monotonic)
        around = Surroundings(functools.partial(self._channel, places), storage, reports, governor, clock)
        self._names = {str(id): id for id in plan.subtasks}
        self._subtasks: dict[SubtaskId, Subtask] = {}
        try:
            for id in plan.subtasks:
                self._subtasks[id] = assemble(spec, id, self._mailboxes[id], around)
        except BaseException:
            self._revoke_state()
            raise

    def _revoke_state(self) -> None:
        for subtask in self._subtasks.values():
            subtask.revoke_state()

    def start(self) -> None:
        for id, subtask in self._subtasks.items():
            self._supervisor.spawn(str(id), subtask)

    def send(self, subtask: SubtaskId, message: Control) -> None:
        self._mailboxes[subtask].send_control(message)

    def metrics(self) -> dict[str, Any]:
        return {str(id): read_metrics(subtask) for id, subtask in self._subtasks.items()}

    def channels(self, subtask: SubtaskId) -> list[ChannelFill]:
        mailbox = self._mailboxes[subtask]
        return [
            _fill(mailbox, place, self._edges[channel.edge], str(channel.sender))
            for place, channel in enumerate(self._inputs[subtask])
        ]

    async def shut_down(self) -> None:
        for subtask in self._subtasks.values():
            subtask.abandon()
        for stuck in await self._supervisor.shut_down(PATIENCE):
            self._subtasks[self._names[stuck]].revoke_state()

    def _channel(self, places: dict[ChannelId, int], id: ChannelId) -> Channel:
        channel = MailboxChannel(self._mailboxes[id.receiver], places[id])
        return channel if self._wrap is None else self._wrap(id, channel)

    def _ended(self, name: str, error: BaseException | None) -> None:
        id = self._names[name]
        self._reports(Stopped(id) if error is None else Failed(id, error))


async def deploy_locally(
    spec: AttemptSpec,
    storage: SnapshotStorage | None,
    reports: Reports,
    clock: Clock,
    wrap: ChannelWrapper | None = None,
) -> LocalAttempt:
    """`wrap` is given every channel, and gives what is used in its place."""
    attempt = LocalAttempt(spec, storage, reports, clock, wrap)
    attempt.start()
    return attempt


def read_metrics(subtask: Subtask) -> dict[str, Any]:
    """Counts of one subtask: records in and out by node, what is queued, what is unsent."""
    nodes = {node.uid: _read_node(node, slot) for node, slot in zip(subtask.nodes, subtask.chain.slots, strict=True)}
    busy, idle, held_back = subtask.load.read()
    return {
        "vertex": subtask.id.vertex,
        "index": subtask.id.index,
        "busy_seconds": busy,
        "idle_seconds": idle,
        "backpressured_seconds": held_back,
        "queued": subtask.mailbox.queued,
        "capacity": subtask.mailbox.quota * subtask.mailbox.channels,
        "blocked": subtask.mailbox.blocked,
        "unsent": subtask.outputs.unsent,
        "snapshot_seconds": subtask.barriers.snapshot_seconds,
        "nodes": nodes,
    }


def _read_node(node: NodeRuntime, slot: LinkSlot) -> dict[str, Any]:
    own = slot.metrics.tell()
    return {
        **own.flat(),  # first: what the user calls `records_in` too does not stand in for ours
        "records_in": slot.records_in,
        "records_out": slot.records_out,
        "undelivered": slot.undelivered,
        "entries": dict(node.entries()),
        "watermark": slot.time.current,
        "idle": slot.time.idle,
        "own": own,
    }


def _fill(mailbox: Mailbox[Element], place: int, edge: Exit, sender: str) -> ChannelFill:
    elements = list(mailbox.items(place))
    queued, size = mailbox.fill(place)
    barriers = tuple(element.checkpoint for element in elements if isinstance(element, Barrier))
    blocked = place in mailbox.blocked
    return ChannelFill(sender, edge.tag, edge.side, queued, mailbox.quota, size, len(elements), blocked, barriers)
