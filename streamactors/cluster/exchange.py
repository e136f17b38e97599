"""All channels between this process and the others, in one attempt.

Invariants. Batches are encoded as they are sent, so that user code may change the records afterwards; one that goes
into several channels in one turn of the loop is encoded once, and decoded once for all subtasks of a process. Decoding
gives way between batches. Once closed, nothing is sent or delivered, and no task is left. Whatever goes wrong,
`on_lost` is told: a channel never has a gap in silence.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.actors.signal import Signal
from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import EdgeKey
from streamactors.clock import Clock
from streamactors.cluster.channels import Inlet, Piece, RemoteChannel
from streamactors.cluster.delivery import GIVE_UP, Delivery, OnLost
from streamactors.cluster.outbox import PeerOutbox
from streamactors.cluster.packet import ChannelName, Packet, Records, element_of, name_of, unpacked
from streamactors.cluster.wire import DATA, Epoch, Wire
from streamactors.elements import Batch, Element
from streamactors.errors import ConnectionLost
from streamactors.graph.physical import ChannelId

PIECE_RECORDS: Final = 1024
PIECE_BYTES: Final = 256 << 10
"""Encoded or decoded in one go, by estimate."""


@dataclass(slots=True)
class _Undecoded:
    """A frame and where it goes: inlets, numbers and sizes."""

    peer: int
    edge: int
    frame: bytes
    targets: list[tuple[Inlet, int, int]] = field(default_factory=list)


class Exchange:
    """`edges[n]` is the key of edge n of the plan (`[exit.key for exit in spec.edges.exits]`); `on_lost(peer, error)`
    fails the attempt."""

    def __init__(
        self,
        epoch: Epoch,
        me: int,
        wire: Wire,
        codec: FrameCodec,
        clock: Clock,
        governor: Governor,
        on_lost: OnLost,
        edges: Sequence[EdgeKey],
        give_up: float = GIVE_UP,
    ) -> None:
        self._delivery = Delivery(DATA, epoch, me, wire, clock, on_lost, give_up)
        self._codec = codec
        self._governor = governor
        self._on_lost = on_lost
        self._edges = edges
        self._channels: dict[ChannelName, RemoteChannel] = {}
        self._inlets: dict[ChannelName, Inlet] = {}
        self._outboxes: dict[int, PeerOutbox] = {}
        self._peers: dict[PeerOutbox, int] = {}
        self._awake: dict[PeerOutbox, None] = {}
        self._turn: asyncio.Handle | None = None
        self._encoded: dict[int, tuple[Batch, list[Piece]]] = {}
        """In this turn, by the identity of the batch, which it keeps alive."""
        self._undecoded: deque[_Undecoded] = deque()
        self._news = Signal()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._decoding: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def dropped(self) -> int:
        """Messages of older epochs, and repeated ones."""
        return self._delivery.dropped

    # --------------------------------------------------------------------------------------------------------- channels
    def channel(self, id: ChannelId, peer: int, quota: int, byte_quota: int) -> RemoteChannel:
        """Out, to a subtask that `peer` holds; the quotas are those of the receiver's mailbox."""
        name, edge = name_of(id), self._edges[id.edge]
        channel = self._channels[name] = RemoteChannel(
            name,
            self._outbox(peer),
            lambda batch: self._pieces(batch, edge),
            lambda batch: self._codec.check_sendable(batch.values[0], edge),
            quota,
            byte_quota,
        )
        return channel

    def admit(self, id: ChannelId, mailbox: Mailbox[Element], place: int, peer: int) -> None:
        """In, from a subtask that `peer` holds, to channel `place` of `mailbox`. Before anything is sent on it."""
        name, outbox = name_of(id), self._outbox(peer)
        self._inlets[name] = Inlet(mailbox, place, lambda records, size: outbox.grant(name, records, size))

    def _outbox(self, peer: int) -> PeerOutbox:
        if peer not in self._outboxes:
            outbox = self._outboxes[peer] = PeerOutbox(self._wake, self._post)
            self._peers[outbox] = peer
        return self._outboxes[peer]

    async def close(self) -> None:
        """No task is left, and nothing is delivered or sent afterwards."""
        self._closed = True
        for outbox in self._outboxes.values():
            outbox.close()
        if self._turn is not None:
            self._turn.cancel()
        self._undecoded.clear()
        self._encoded.clear()
        tasks = [*self._tasks, *([] if self._decoding is None else [self._decoding])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------------------------------------------------- sending
    def _pieces(self, batch: Batch, edge: EdgeKey) -> list[Piece]:
        known = self._encoded.get(id(batch))
        if known is None:
            known = self._encoded[id(batch)] = batch, self._encode(batch, edge)
        return known[1]

    def _encode(self, batch: Batch, edge: EdgeKey) -> list[Piece]:
        length, size = len(batch), batch.estimated_bytes()
        step = max(1, min(PIECE_RECORDS, length * PIECE_BYTES // max(1, size)))
        pieces = []
        for start in range(0, length, step):
            part = batch.slice(start, min(start + step, length))
            share = size * len(part) // max(1, length)
            pieces.append(Piece(self._codec.encode_to_send(part, edge), len(part), share))
        return pieces

    def _wake(self, outbox: PeerOutbox) -> None:
        self._awake[outbox] = None
        if self._turn is None and not self._closed:
            self._turn = asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn = None
        self._encoded.clear()
        awake, self._awake = self._awake, {}
        for outbox in awake:
            try:
                outbox.flush()
            except Exception as error:
                self._fail(outbox, error)

    def _post(self, outbox: PeerOutbox, body: bytes, taken: Callable[[], None]) -> None:
        peer = self._peers[outbox]
        delivery = self._deliver(outbox, peer, body, taken)
        task = asyncio.get_running_loop().create_task(delivery, name=f"packet to {peer}")
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _deliver(self, outbox: PeerOutbox, peer: int, body: bytes, taken: Callable[[], None]) -> None:
        try:
            await self._delivery.deliver(peer, body)
            taken()
        except ConnectionLost:  # and said to be
            outbox.close()
        except Exception as error:
            self._fail(outbox, error)

    def _fail(self, outbox: PeerOutbox, error: Exception) -> None:
        outbox.close()
        self._on_lost(self._peers[outbox], error)

    # -------------------------------------------------------------------------------------------------------- receiving
    def received(self, peer: int, message: bytes) -> None:
        """A message of plane DATA (see `wire.header_of`). Raises ConnectionLost to one of a newer epoch."""
        body = self._delivery.accept(peer, message)
        if body is None or self._closed:
            return
        try:
            self._take(peer, unpacked(body))
        except Exception as error:
            lost = ConnectionLost(f"what worker {peer} has sent can't be delivered: {type(error).__name__}: {error}")
            lost.__cause__ = error
            self._on_lost(peer, lost)

    def _take(self, peer: int, packet: Packet) -> None:
        for taken in packet.taken:
            self._channels[taken.channel].granted(taken.records, taken.bytes)
        frames: dict[int, _Undecoded] = {}
        for name, elements in packet.parts:
            inlet = self._inlets[name]
            for element in elements:
                if isinstance(element, Records):
                    if element.frame not in frames:
                        frame = packet.frames[element.frame]
                        frames[element.frame] = _Undecoded(peer, name[0], frame)
                    frames[element.frame].targets.append((inlet, element.number, element.size))
                else:
                    inlet.arrive(element.number, element_of(element), 0, element.ordinal)
        if frames:
            self._undecoded.extend(frames.values())
            self._decode_soon()

    def _decode_soon(self) -> None:
        if self._decoding is None:
            self._decoding = asyncio.get_running_loop().create_task(self._decode(), name="decode packets")
        self._news.set()

    async def _decode(self) -> None:
        """Batch after batch, in turn with the subtasks of the loop."""
        while True:
            await self._news.wait()
            while self._undecoded:
                undecoded = self._undecoded.popleft()
                try:
                    self._deliver_decoded(undecoded)
                except Exception as error:
                    self._on_lost(undecoded.peer, error)
                    return
                await self._governor.give_way()

    def _deliver_decoded(self, undecoded: _Undecoded) -> None:
        batch = self._codec.decode_sent(undecoded.frame, self._edges[undecoded.edge])
        for inlet, number, size in undecoded.targets:
            inlet.arrive(number, batch, size)
