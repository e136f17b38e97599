"""What an exchange does beside the contract of channels: packets, encoding, epochs, failures, and its end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Ahead, Mailbox
from streamactors.checkpoint.frames import FrameCodec, _sealed
from streamactors.checkpoint.manifest import EdgeKey
from streamactors.clock import Clock
from streamactors.cluster import outbox
from streamactors.cluster.exchange import Exchange
from streamactors.cluster.packet import Packet, Records, Taken, unpacked
from streamactors.cluster.wire import DATA, Epoch, Header, body_of, sealed
from streamactors.elements import END, IDLE, Barrier, Batch, Element, EndOfKeys, Watermark
from streamactors.errors import ConnectionLost, IncompatibleState, UnserialisableValue
from streamactors.runtime import routing
from streamactors.runtime.channel import Channel, Demanding, MailboxChannel
from streamactors.runtime.routing import ForwardRouter, Output, RebalanceRouter
from streamactors.testing.network import MadeUpNetwork
from tests.cluster.virtual import virtually
from tests.cluster.workers import EPOCH, Lost, channel_id, connected, exchange


class HeldWire:
    """Every call waits until the test lets it through, in any order, to where its messages go."""

    def __init__(self) -> None:
        self.to: Callable[[int, bytes], None] = lambda peer, message: None
        self.calls: list[tuple[bytes, asyncio.Future[None]]] = []
        self._news = asyncio.Event()

    async def call(self, peer: int, message: bytes) -> None:
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls.append((message, taken))
        self._news.set()
        await taken

    async def waiting(self, count: int) -> list[Packet]:
        """Once so many calls wait, and whatever else is ready has run."""
        while len(self.calls) < count:
            self._news.clear()
            await self._news.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(self.calls) == count
        return [unpacked(body_of(message)) for message, _ in self.calls]

    def let(self, place: int = 0) -> None:
        message, taken = self.calls.pop(place)
        self.to(0, message)
        taken.set_result(None)


class Pair:
    """Worker 0 sends to worker 1 over a held wire; what worker 1 says goes back at once."""

    def __init__(self, clock: Clock, quota: int = 4096, **options: Any) -> None:
        self.wire = HeldWire()
        self.lost = Lost()
        self.mailbox: Mailbox[Element] = Mailbox(1, quota)
        network = MadeUpNetwork(1)
        self.sender = exchange(0, self.wire, clock, self.lost, **options)
        self.receiver = exchange(1, network.wire(1), clock, self.lost, **options)
        network.attach(0, self.sender.received)
        self.wire.to = self.receiver.received
        self.channel: Channel = connected(self.sender, self.receiver, self.mailbox)

    async def close(self) -> None:
        await self.sender.close()
        await self.receiver.close()

    async def taken(self, count: int) -> list[Element]:
        elements: list[Element] = []
        while len(elements) < count:
            while (item := self.mailbox.take()) is not None:
                elements.append(item[1])
            if len(elements) < count:
                await self.mailbox.signal.wait()
        return elements


Test = Callable[[Pair], Coroutine[Any, Any, None]]


def with_pair(test: Test, **options: Any) -> None:
    async def main(clock: Clock) -> None:
        pair = Pair(clock, **options)
        await test(pair)
        await pair.close()

    virtually(3, main)


def values(elements: list[Element]) -> list[Any]:
    return [value for element in elements if isinstance(element, Batch) for value in element.values]


# -------------------------------------------------------------------------------------------------------------- packets
def test_what_is_sent_in_one_turn_leaves_in_one_packet_and_so_does_what_follows_while_it_is_under_way() -> None:
    async def test(pair: Pair) -> None:
        for number in range(5):
            pair.channel.send(Batch([number]))
        (packet,) = await pair.wire.waiting(1)
        assert len(packet.frames) == 5
        for number in range(5, 8):
            pair.channel.send(Batch([number]))
            await asyncio.sleep(0)
        await pair.wire.waiting(1)
        pair.wire.let()
        (packet,) = await pair.wire.waiting(1)
        assert len(packet.frames) == 3
        pair.wire.let()
        assert values(await pair.taken(8)) == list(range(8))

    with_pair(test)


def test_full_packets_travel_side_by_side_and_no_more_than_a_few() -> None:
    async def test(pair: Pair) -> None:
        for _ in range(80):
            pair.channel.send(Batch([bytes(100_000)]))
        packets = await pair.wire.waiting(outbox.SIDE_BY_SIDE)
        assert [len(packet.frames) for packet in packets] == [10] * 4
        pair.wire.let(2)  # in any order
        await pair.wire.waiting(4)
        while pair.wire.calls:
            pair.wire.let()
            for _ in range(50):
                await asyncio.sleep(0)
        assert len(await pair.taken(80)) == 80

    with_pair(test)


def test_senders_wait_while_too_much_waits_and_go_on_when_it_has_left() -> None:
    async def test(pair: Pair) -> None:
        for _ in range(50):  # turns, in each of which a megabyte may be put
            while pair.channel.room():
                pair.channel.send(Batch([bytes(100_000)]))
            await asyncio.sleep(0)
        await pair.wire.waiting(outbox.SIDE_BY_SIDE)
        woken = asyncio.Event()
        pair.channel.notify_room(woken.set)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not woken.is_set() and pair.channel.room() == 0, "four packets are under way, and as much waits"
        while pair.wire.calls:
            pair.wire.let()
            for _ in range(50):
                await asyncio.sleep(0)
        assert woken.is_set() and pair.channel.room() > 0

    with_pair(test)


def test_an_emission_of_many_megabytes_is_encoded_over_many_turns() -> None:
    codec = CountingCodec()

    async def test(pair: Pair) -> None:
        output = Output(ForwardRouter(), [pair.channel])
        output.stage(Batch([bytes(50_000)] * 600))
        output.seal()
        room, turns = asyncio.Event(), list[int]()
        room.set()
        pulling = asyncio.ensure_future(pair.taken(30_000_000 // routing.PORTION_BYTES))
        done = False
        while not done:
            await room.wait()
            room.clear()
            before = codec.bytes
            done = output.flush(room.set, lambda barrier: None)
            turns.append(codec.bytes - before)
            while pair.wire.calls:
                pair.wire.let()
        assert sum(turns) >= 30_000_000
        assert max(turns) <= outbox.TURN_BYTES + 2 * routing.PORTION_BYTES
        pulling.cancel()

    with_pair(test, codec=codec)


def test_watermarks_that_wait_take_each_others_place() -> None:
    async def test(pair: Pair) -> None:
        pair.channel.send(Batch(["a"]))
        await pair.wire.waiting(1)
        for element in (Watermark(1), Watermark(2), IDLE, Watermark(3), Batch(["b"]), Watermark(4)):
            pair.channel.send(element)
        pair.wire.let()
        await pair.wire.waiting(1)
        pair.wire.let()
        taken = await pair.taken(6)
        assert [element for element in taken if not isinstance(element, Batch)] == [
            Watermark(2), IDLE, Watermark(3), Watermark(4)
        ]  # fmt: skip

    with_pair(test)


def test_every_kind_of_element_comes_as_it_was() -> None:
    elements: list[Element] = [
        Watermark(-5, merged=True, groups=(3, 9)),
        IDLE,
        Barrier(7, "file:///savepoint"),
        Barrier(8, overtakes=True, overtakes_at=12),
        EndOfKeys(1, 4),
        END,
    ]

    async def test(pair: Pair) -> None:
        for element in elements:
            pair.channel.send(element)
        await pair.wire.waiting(2)  # the one that overtakes for itself
        pair.wire.let()
        pair.wire.let()
        assert await pair.taken(len(elements)) == elements

    with_pair(test)


# ------------------------------------------------------------------------------------------------------------- encoding
def test_a_batch_has_all_its_columns_and_their_types() -> None:
    sent = Batch(
        [{"a": (1, 2)}, {"b": {3}}], [5, None], [("k", 1), ("k", True)], [3, 4], (7, 8), "orders[3]@",
        ("orders", "3"), ["x", None],
    )  # fmt: skip

    async def test(pair: Pair) -> None:
        pair.channel.send(sent)
        await pair.wire.waiting(1)
        pair.wire.let()
        (taken,) = await pair.taken(1)
        assert isinstance(taken, Batch)
        for column in Batch.__slots__:
            ours, theirs = getattr(sent, column), getattr(taken, column)
            assert repr(list(ours) if column == "origins" else ours) == repr(theirs), column

    with_pair(test)


def test_what_is_changed_after_it_was_sent_arrives_as_it_was() -> None:
    async def test(pair: Pair) -> None:
        record = ["as sent"]
        pair.channel.send(Batch([record]))
        record[0] = "changed"
        await pair.wire.waiting(1)
        pair.wire.let()
        assert values(await pair.taken(1)) == [["as sent"]]

    with_pair(test)


def test_a_large_batch_is_encoded_in_parts_and_arrives_whole() -> None:
    async def test(pair: Pair) -> None:
        pair.channel.send(Batch(range(3000)))
        (packet,) = await pair.wire.waiting(1)
        assert len(packet.frames) == 3
        pair.wire.let()
        assert values(await pair.taken(3)) == list(range(3000))

    with_pair(test)


class CountingCodec(FrameCodec):
    def __init__(self) -> None:
        super().__init__()
        self.encoded = self.decoded = self.bytes = 0

    def encode_to_send(self, batch: Batch, edge: EdgeKey) -> bytes:
        self.encoded += 1
        data = super().encode_to_send(batch, edge)
        self.bytes += len(data)
        return data

    def decode_sent(self, data: bytes, edge: EdgeKey) -> Batch:
        self.decoded += 1
        return super().decode_sent(data, edge)


def test_a_batch_for_several_receivers_is_encoded_sent_and_decoded_once() -> None:
    codec = CountingCodec()

    async def test(pair: Pair) -> None:
        mailboxes = [pair.mailbox, Mailbox[Element](1, 100), Mailbox[Element](1, 100)]
        channels = [pair.channel] + [
            connected(pair.sender, pair.receiver, mailbox, id=channel_id(0, index))
            for index, mailbox in enumerate(mailboxes[1:], start=1)
        ]
        batch = Batch(["to all"])
        for channel in channels:
            channel.send(batch)
        (packet,) = await pair.wire.waiting(1)
        assert len(packet.frames) == 1 and len(packet.parts) == 3
        pair.wire.let()
        for mailbox in mailboxes:
            pair.mailbox = mailbox
            assert values(await pair.taken(1)) == ["to all"]
        assert (codec.encoded, codec.decoded) == (1, 1)

    with_pair(test, codec=codec)


def test_a_record_that_can_not_be_sent_is_refused_at_once_and_the_edge_is_named() -> None:
    async def test(pair: Pair) -> None:
        refused = (
            r"records or keys of type builtins.function on the edge 'up' → 'down' can't be sent to another process"
        )
        with pytest.raises(UnserialisableValue, match=refused):
            pair.channel.send(Batch([lambda: None]))
        with pytest.raises(UnserialisableValue, match=refused):
            pair.channel.send(Batch([1], keys=[lambda: None]))

    with_pair(test)


def test_the_first_record_of_an_edge_is_proved_wherever_it_goes() -> None:
    """By the output, of which only some channels lead to other processes."""

    async def test(pair: Pair) -> None:
        assert isinstance(pair.channel, Demanding)
        local = MailboxChannel(Mailbox(1, 100), 0)
        assert not isinstance(local, Demanding)
        output = Output(RebalanceRouter(2), [local, pair.channel], prove=pair.channel.prove)
        with pytest.raises(UnserialisableValue, match="'up' → 'down' can't be sent to another process"):
            output.stage(Batch([lambda: None]))

    with_pair(test)


def test_decoding_gives_way_between_batches() -> None:
    """By a clock by which every decoding takes longer than a turn may."""
    seen: list[int] = []
    now = 0.0

    class SlowCodec(CountingCodec):
        def decode_sent(self, data: bytes, edge: EdgeKey) -> Batch:
            nonlocal now
            now += 0.01
            return super().decode_sent(data, edge)

    async def main(clock: Clock) -> None:
        wire, mailbox, lost = HeldWire(), Mailbox[Element](1, 100), Lost()
        sender = exchange(0, wire, clock, lost)
        governor = Governor(lambda: now)
        receiver = Exchange(EPOCH, 1, wire, SlowCodec(), clock, governor, lost, [EdgeKey("up", "down")])
        channel = connected(sender, receiver, mailbox)
        for number in range(20):
            channel.send(Batch([number]))
        await wire.waiting(1)
        wire.to = receiver.received
        wire.let()
        while mailbox.queued < 20:
            seen.append(mailbox.queued)
            await asyncio.sleep(0)
        assert len(set(seen)) > 5
        await sender.close()
        await receiver.close()

    virtually(3, main)


# ------------------------------------------------------------------------------------------------------------- barriers
def test_a_barrier_that_overtakes_leaves_at_once_and_is_told_of_ahead_of_what_it_has_overtaken() -> None:
    ahead = Barrier(2, overtakes=True)

    async def test(pair: Pair) -> None:
        pair.channel.send(Batch(["under way"]))
        await pair.wire.waiting(1)
        pair.channel.send(Barrier(1))
        pair.channel.send(Batch(["waits"]))
        pair.channel.send(ahead)
        _, packet = await pair.wire.waiting(2)
        assert not packet.frames and packet.parts[0][1][0].number == 4
        pair.wire.let(1)
        assert not pair.mailbox.announced, "the one ahead of it is to be told of first"
        pair.wire.let(0)
        await pair.wire.waiting(1)
        pair.wire.let()
        assert [type(e) for e in await pair.taken(4)] == [Batch, Barrier, Batch, Barrier]
        told = [element.item if isinstance(element, Ahead) else element for _, element in pair.mailbox.announced]
        assert told == [Barrier(1), ahead, ahead]
        assert [type(element) for _, element in pair.mailbox.announced] == [Barrier, Ahead, Barrier]

    with_pair(test)


def test_one_that_comes_in_its_turn_is_told_of_once() -> None:
    async def test(pair: Pair) -> None:
        pair.channel.send(Barrier(1, overtakes=True))
        await pair.wire.waiting(1)
        pair.wire.let()
        assert list(pair.mailbox.announced) == [(0, Barrier(1, overtakes=True))]

    with_pair(test)


# -------------------------------------------------------------------------------------------------------- back-pressure
def test_the_sender_is_held_to_the_receivers_bounds_in_records_and_bytes() -> None:
    async def main(clock: Clock) -> None:
        network, lost = MadeUpNetwork(1), Lost()
        ends = [exchange(me, network.wire(me), clock, lost) for me in (0, 1)]
        for me, end in enumerate(ends):
            network.attach(me, end.received)
        mailbox: Mailbox[Element] = Mailbox(1, 8, byte_capacity=2000)
        channel = connected(ends[0], ends[1], mailbox)
        channel.send(Batch(range(8)))
        assert channel.room() == 0
        with pytest.raises(OverflowError, match="1 records sent, room for 0"):
            channel.send(Batch([8]))
        woken = asyncio.Event()
        channel.notify_room(woken.set)
        await clock.sleep(1)
        assert mailbox.queued == 8 and not woken.is_set()
        mailbox.take()
        await woken.wait()
        assert channel.room() == 8
        channel.send(Batch([bytes(3000)]))
        assert channel.room() == 0, "by bytes"
        channel.notify_room(woken.set)
        woken.clear()
        while mailbox.take() is None:
            await mailbox.signal.wait()
        await woken.wait()
        assert channel.room() == 8
        for end in ends:
            await end.close()

    virtually(3, main)


def test_a_grant_that_comes_late_takes_no_room_back() -> None:
    async def test(pair: Pair) -> None:
        pair.channel.send(Batch(range(100)))
        granted = pair.sender._channels[0, 0, 0].granted
        granted(60, 600)
        granted(20, 200)
        assert pair.channel.room() == pair.channel.quota - 40

    with_pair(test)


# ------------------------------------------------------------------------------------------------- failures and the end
class Unknown(msgspec.Struct):
    number: int


def test_a_record_whose_class_the_receiver_lacks_fails_it_and_names_the_edge() -> None:
    async def test(pair: Pair) -> None:
        frame = FrameCodec().encode_to_send(Batch([Unknown(1)]), EdgeKey("up", "down"))
        name = f"{Unknown.__module__}.{Unknown.__qualname__}".encode()
        strange = frame[5:].replace(name, name[:-1] + b"m")
        packet = Packet([_sealed(strange)], [((0, 0, 0), [Records(1, 0, 1, 10)])], [])
        pair.wire.to(0, sealed(Header(DATA, EPOCH, 0, 1), msgspec.msgpack.encode(packet)))
        peer, error = await pair.lost.first()
        assert peer == 0 and isinstance(error, IncompatibleState)
        assert "'up' → 'down'" in str(error) and "Every worker needs the same modules" in str(error)

    with_pair(test)


@pytest.mark.parametrize(
    "body",
    [b"nonsense", msgspec.msgpack.encode(Packet([], [], [Taken((5, 5, 5), 1, 1)])),
     msgspec.msgpack.encode(Packet([], [((0, 0, 0), [Records(1, 3, 1, 1)])], []))],
)  # fmt: skip
def test_what_can_not_be_delivered_is_said(body: bytes) -> None:
    async def test(pair: Pair) -> None:
        pair.wire.to(0, sealed(Header(DATA, EPOCH, 0, 1), body))
        ((peer, error),) = pair.lost.errors
        assert peer == 0 and isinstance(error, ConnectionLost) and "what worker 0 has sent" in str(error)

    with_pair(test)


def test_a_peer_that_is_lost_is_said_once_and_nothing_more_is_tried() -> None:
    async def main(clock: Clock) -> None:
        network, lost = MadeUpNetwork(1), Lost()
        sender = exchange(0, network.wire(0), clock, lost, give_up=5.0)
        channel = sender.channel(channel_id(), 1, 100, 1000)
        channel.send(Batch([1]))
        channel.send(Barrier(1, overtakes=True))
        await lost.first()
        await clock.sleep(10.0)
        tried = network.messages.total()
        channel.send(Batch([2]))
        await clock.sleep(10.0)
        assert network.messages.total() == tried
        ((peer, error),) = lost.errors
        assert peer == 1 and isinstance(error, ConnectionLost) and error.retryable
        await sender.close()

    virtually(1, main)


def test_a_wire_that_fails_in_another_way_is_said() -> None:
    class Broken:
        async def call(self, peer: int, message: bytes) -> None:
            raise ValueError("a bug")

    async def main(clock: Clock) -> None:
        lost = Lost()
        sender = exchange(0, Broken(), clock, lost)
        sender.channel(channel_id(), 1, 100, 1000).send(Batch([1]))
        assert str((await lost.first())[1]) == "a bug"
        await sender.close()

    virtually(1, main)


@pytest.mark.parametrize("busy", [False, True])
def test_an_element_that_can_not_be_packed_is_said(busy: bool) -> None:
    async def test(pair: Pair) -> None:
        if busy:
            pair.channel.send(Batch([1]))
            await pair.wire.waiting(1)
        pair.channel.send(Watermark(2**70))
        for _ in range(10):
            await asyncio.sleep(0)
        if busy:
            pair.wire.let()
        peer, error = await pair.lost.first()
        assert peer == 1 and isinstance(error, OverflowError)

    with_pair(test)


def test_once_closed_nothing_is_sent_or_delivered_and_a_newer_epoch_is_still_refused() -> None:
    async def test(pair: Pair) -> None:
        pair.channel.send(Batch([1]))
        await pair.wire.waiting(1)
        await pair.receiver.close()
        message = pair.wire.calls[0][0]
        pair.wire.to(0, message)
        assert pair.receiver._decoding is None and not pair.mailbox.queued
        newer = sealed(Header(DATA, Epoch(1, 2), 0, 1), b"")
        with pytest.raises(ConnectionLost, match="not there yet"):
            pair.wire.to(0, newer)
        pair.channel.send(Batch([2]))
        await pair.sender.close()
        pair.channel.send(Batch([3]))
        pair.channel.send(Barrier(1, overtakes=True))
        await pair.wire.waiting(1)

    with_pair(test)


def test_it_closes_in_the_middle_of_everything() -> None:
    async def test(pair: Pair) -> None:
        for _ in range(50):
            pair.channel.send(Batch([bytes(100_000)]))
        await pair.wire.waiting(4)
        pair.wire.let()
        await pair.close()

    with_pair(test)
