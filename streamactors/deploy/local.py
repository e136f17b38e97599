"""All subtasks in this process, on the loop that starts the job."""

import functools
from collections.abc import Callable
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.actors.supervisor import Supervisor
from streamactors.clock import Clock
from streamactors.elements import Element
from streamactors.graph.physical import ChannelId, SubtaskId
from streamactors.runtime.assembly import AttemptSpec, Surroundings, assemble
from streamactors.runtime.channel import Channel, MailboxChannel
from streamactors.runtime.messages import Control, Failed, Reports, Stopped
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
    nodes = {
        node.uid: {
            **slot.metrics.read(),  # first: what the user calls `records_in` too does not stand in for ours
            "records_in": slot.records_in,
            "records_out": slot.records_out,
            "undelivered": slot.undelivered,
            "entries": dict(node.entries()),
        }
        for node, slot in zip(subtask.nodes, subtask.chain.slots, strict=True)
    }
    return {
        "queued": subtask.mailbox.queued,
        "capacity": subtask.mailbox.quota * subtask.mailbox.channels,
        "blocked": subtask.mailbox.blocked,
        "unsent": subtask.outputs.unsent,
        "snapshot_seconds": subtask.barriers.snapshot_seconds,
        "nodes": nodes,
    }
