"""Some of the subtasks of one attempt, in this process: all of them, or one worker's.

Invariants. A channel between two subtasks of the slice is the receiver's mailbox; every other one comes from
`elsewhere`. Whatever fails while it is put together, no state stays open. Once it is shut down, whether it ever ran or
not, no state of it is open, and no task left but those that swallow their cancellation: state, emit and storage are
dead to these.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.actors.supervisor import Supervisor
from streamactors.clock import Clock
from streamactors.elements import Barrier, Batch, Element
from streamactors.graph.physical import ChannelId, Exit, SubtaskId
from streamactors.runtime.assembly import AttemptSpec, Surroundings, assemble
from streamactors.runtime.chain import LinkSlot
from streamactors.runtime.channel import Channel, MailboxChannel
from streamactors.runtime.info import ChannelFill
from streamactors.runtime.messages import Control, Failed, Reports, Stopped
from streamactors.runtime.nodes import NodeRuntime
from streamactors.runtime.snapshot import SnapshotStorage
from streamactors.runtime.subtask import Subtask
from streamactors.sinks import alone
from streamactors.time.alignment import AlignmentGroups

PATIENCE: Final = 10.0
"""Seconds that a cancelled subtask may take to release what it holds."""

ChannelWrapper = Callable[[ChannelId, Channel], Channel]
"""What stands in for a channel, such as one that stalls by seed."""

Elsewhere = Callable[[ChannelId], Channel]
"""The way to a subtask that another slice holds."""


class Slice:
    """From `start` until `shut_down`. `elsewhere` None: no subtask is anywhere else."""

    def __init__(
        self,
        spec: AttemptSpec,
        subtasks: Sequence[SubtaskId],
        storage: SnapshotStorage | None,
        reports: Reports,
        clock: Clock,
        *,
        elsewhere: Elsewhere | None = None,
        alignment: AlignmentGroups | None = None,
        check_alive: Callable[[], None] = alone,
        wrap: ChannelWrapper | None = None,
    ) -> None:
        self._reports = reports
        self._wrap = wrap
        self._elsewhere = elsewhere
        self._supervisor = Supervisor(self._ended)
        self._started = False
        plan = spec.plan
        self.inputs: Mapping[SubtaskId, Sequence[ChannelId]] = {id: plan.channels_in(id) for id in subtasks}
        """In the order that numbers them in the mailbox."""
        self.mailboxes: Mapping[SubtaskId, Mailbox[Element]] = {
            id: Mailbox(len(channels), spec.mailbox_capacity) for id, channels in self.inputs.items()
        }
        self._edges = plan.edges
        places = {channel: place for channels in self.inputs.values() for place, channel in enumerate(channels)}
        governor = Governor.of_running_loop(clock.monotonic)
        around = Surroundings(
            functools.partial(self._channel, places),
            storage,
            reports,
            governor,
            clock,
            alignment or AlignmentGroups(),
            check_alive,
        )
        self._names = {str(id): id for id in subtasks}
        self._subtasks: dict[SubtaskId, Subtask] = {}
        try:
            for id in subtasks:
                self._subtasks[id] = assemble(spec, id, self.mailboxes[id], around)
        except BaseException:
            self.revoke_state()
            raise

    @property
    def subtasks(self) -> Iterable[Subtask]:
        return self._subtasks.values()

    def revoke_state(self) -> None:
        """From now on, state raises StateAccessError."""
        for subtask in self._subtasks.values():
            subtask.revoke_state()

    def start(self) -> None:
        self._started = True
        for id, subtask in self._subtasks.items():
            self._supervisor.spawn(str(id), subtask)

    def send(self, subtask: SubtaskId, message: Control) -> None:
        self.mailboxes[subtask].send_control(message)

    def metrics(self) -> dict[str, Any]:
        return {str(id): read_metrics(subtask) for id, subtask in self._subtasks.items()}

    def channels(self, subtask: SubtaskId) -> list[ChannelFill]:
        mailbox = self.mailboxes[subtask]
        return [
            fill_of(mailbox, place, self._edges[channel.edge], str(channel.sender))
            for place, channel in enumerate(self.inputs[subtask])
        ]

    def filled(self) -> dict[str, dict[int, ChannelFill]]:
        """The channels on which anything waits, by subtask and place."""
        return {
            str(id): found
            for id, mailbox in self.mailboxes.items()
            if (found := self._filled(mailbox, self.inputs[id]))
        }

    def _filled(self, mailbox: Mailbox[Element], channels: Sequence[ChannelId]) -> dict[int, ChannelFill]:
        held = {*mailbox.blocked, *(place for place in range(len(channels)) if any(mailbox.items(place)))}
        return {
            place: fill_of(mailbox, place, self._edges[channels[place].edge], str(channels[place].sender))
            for place in sorted(held)
        }

    async def delivered(self) -> None:
        """What is sent is there."""

    async def settle(self, checkpoint: int) -> None:
        """Whoever aborts the checkpoint stops its writers, which are in this process."""

    async def shut_down(self) -> None:
        for subtask in self._subtasks.values():
            subtask.abandon()
        for stuck in await self._supervisor.shut_down(PATIENCE):
            self._subtasks[self._names[stuck]].revoke_state()
        if not self._started:  # else each closes itself
            await self._close_all()

    async def _close_all(self) -> None:
        async with AsyncExitStack() as stack:  # all of them, whatever fails
            for subtask in self._subtasks.values():
                stack.push_async_callback(subtask.close)

    def _channel(self, places: Mapping[ChannelId, int], id: ChannelId) -> Channel:
        mailbox = self.mailboxes.get(id.receiver)
        if mailbox is None:
            assert self._elsewhere is not None, f"nobody holds {id.receiver}"
            return self._elsewhere(id)
        channel = MailboxChannel(mailbox, places[id])
        return channel if self._wrap is None else self._wrap(id, channel)

    def _ended(self, name: str, error: BaseException | None) -> None:
        id = self._names[name]
        self._reports(Stopped(id) if error is None else Failed(id, error))


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
        "progress": None if (told := subtask.progress) is None else (told.done, told.total, told.unit),
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


def fill_of(mailbox: Mailbox[Element], place: int, edge: Exit, sender: str) -> ChannelFill:
    elements = list(mailbox.items(place))
    queued, size = mailbox.fill(place)
    barriers = _barriers(elements)
    blocked = place in mailbox.blocked
    ids, ahead = tuple(id for id, _ in barriers), tuple(records for _, records in barriers)
    return ChannelFill(sender, edge.tag, edge.side, queued, mailbox.quota, size, len(elements), blocked, ids, ahead)


def _barriers(elements: Iterable[Element]) -> list[tuple[int, int]]:
    """Each with the records ahead of it."""
    found: list[tuple[int, int]] = []
    ahead = 0
    for element in elements:
        if isinstance(element, Barrier):
            found.append((element.checkpoint, ahead))
        elif isinstance(element, Batch):
            ahead += len(element)
    return found
