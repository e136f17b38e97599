"""What a record costs on its way into another subtask's mailbox: of the same process, and of another one of its node.

Both ends are in this process, so that its CPU time is that of both: encoding, packing, the socket, decoding, the
mailbox. Beside it, what one call of Ray's costs, which is the way to another node.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import uvloop
from rich.table import Table

from benchmarks import events
from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import EdgeKey
from streamactors.clock import SYSTEM
from streamactors.cluster.exchange import Exchange
from streamactors.cluster.sockets import Door, Way
from streamactors.cluster.wire import Epoch
from streamactors.elements import Batch, Element
from streamactors.graph.physical import ChannelId, SubtaskId
from streamactors.runtime.channel import Channel, MailboxChannel
from streamactors.state.key_groups import KeyGrouper

SIZES = (1, 10, 100, 1000)
RECORDS = 200_000
TARGET = 3.0
CAPACITY = 4096


@dataclass(frozen=True)
class Row:
    """Microseconds of CPU for each record. `size`: records a batch."""

    way: str
    size: int
    micros: float

    @property
    def per_batch(self) -> float:
        return self.micros * self.size


class _Socket:
    """Worker 0's way to worker 1, or the other way round."""

    def __init__(self, me: int) -> None:
        self.way = Way(me)

    async def call(self, peer: int, message: bytes) -> None:
        await self.way.call(message)


def measure(records: int = RECORDS) -> list[Row]:
    rows = []
    for size in SIZES:
        count = max(size, min(records, size * 3000))
        batches = _batches(count, size)
        rows.append(Row("mailbox", size, _best(_through_mailbox, batches)))
        rows.append(Row("between workers of a node", size, _best(_between_workers, batches)))
    return rows


def _best(run: Callable[[Sequence[Batch]], Coroutine[Any, Any, float]], batches: Sequence[Batch]) -> float:
    return min(uvloop.run(run(batches)) for _ in range(3))


def _batches(records: int, size: int) -> list[Batch]:
    decode = msgspec.json.Decoder(events.Order).decode
    orders = [decode(line) for line in events.orders(min(records, 20_000), 100_000)]
    values = (orders * (records // len(orders) + 1))[:records]
    keys = [order.customer for order in values]
    whole = Batch(values, None, keys, KeyGrouper(128).groups(keys), range(records), "lines[0]@")
    return [whole.slice(start, start + size) for start in range(0, records - size + 1, size)]


async def _through_mailbox(batches: Sequence[Batch]) -> float:
    mailbox: Mailbox[Element] = Mailbox(1, CAPACITY)
    return await _micros(MailboxChannel(mailbox, 0), mailbox, batches)


async def _between_workers(batches: Sequence[Batch]) -> float:
    mailbox: Mailbox[Element] = Mailbox(1, CAPACITY)
    wires = [_Socket(me) for me in (0, 1)]
    ends = [_exchange(me, wire) for me, wire in enumerate(wires)]
    doors = [Door(end.received, SYSTEM) for end in ends]
    for me, door in enumerate(doors):
        await door.open()
        assert door.name is not None, "sockets with a name and no file are Linux's"
        await wires[1 - me].way.connect(door.name)
    id = ChannelId(0, SubtaskId("up", 0), SubtaskId("down", 0))
    ends[1].admit(id, mailbox, 0, 0)
    try:
        return await _micros(ends[0].channel(id, 1, mailbox.quota, mailbox.byte_quota), mailbox, batches)
    finally:
        for end in ends:
            await end.close()
        for wire in wires:
            wire.way.close()
        for door in doors:
            await door.close()


def _exchange(me: int, wire: _Socket) -> Exchange:
    governor = Governor.of_running_loop(SYSTEM.monotonic)
    return Exchange(Epoch(1, 1), me, wire, FrameCodec(), SYSTEM, governor, _lost, [EdgeKey("up", "down")])


def _lost(peer: int, error: BaseException) -> None:
    raise error


async def _micros(channel: Channel, mailbox: Mailbox[Element], batches: Sequence[Batch]) -> float:
    began = time.process_time()
    async with asyncio.TaskGroup() as both:
        both.create_task(_send(channel, batches))
        both.create_task(_take(mailbox, sum(map(len, batches))))
    return 1e6 * (time.process_time() - began) / sum(map(len, batches))


async def _send(channel: Channel, batches: Sequence[Batch]) -> None:
    room = asyncio.Event()
    for batch in batches:
        while channel.room() < len(batch):
            room.clear()
            channel.notify_room(room.set)
            await room.wait()
        channel.send(batch)


async def _take(mailbox: Mailbox[Element], records: int) -> None:
    """Large batches come in parts."""
    while records:
        while (taken := mailbox.take()) is not None:
            records -= len(taken[1]) if isinstance(taken[1], Batch) else 0
        if records:
            await mailbox.signal.wait()


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title=f"CPU µs for orders of 7 fields, both ends; between workers, in batches: to reach ≤ {TARGET:g}")
    for column in ("way", "records a batch", "µs a record", "µs a batch"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        shown.add_row(row.way, f"{row.size:,}", f"{row.micros:.2f}", f"{row.per_batch:.0f}")
    return shown
