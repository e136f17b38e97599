"""Messages over a wire that loses, repeats, delays and reorders: each is accepted once, or the peer is lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.clock import Clock
from streamactors.cluster.delivery import Delivery
from streamactors.cluster.wire import CONTROL, DATA, Epoch, Header, header_of, sealed
from streamactors.errors import ConnectionLost
from streamactors.testing.network import FAIR, STORM, MadeUpNetwork, Weather
from tests.cluster.virtual import virtually
from tests.cluster.workers import EPOCH, Lost


class Peer:
    """One end, that remembers what it has accepted."""

    def __init__(self, network: MadeUpNetwork, me: int, clock: Clock, epoch: Epoch = EPOCH) -> None:
        self.lost = Lost()
        self.accepted: list[bytes] = []
        wire = network.attach(me, self.received)
        self.delivery = Delivery(DATA, epoch, me, wire, clock, self.lost, give_up=10.0)

    def received(self, sender: int, message: bytes) -> None:
        body = self.delivery.accept(sender, message)
        if body is not None:
            self.accepted.append(bytes(body))


@given(st.integers(0, 10_000), st.sampled_from([FAIR, STORM, Weather(loss=0.4), Weather(repeat=0.9, straggle=0.5)]))
def test_each_message_is_accepted_once(seed: int, weather: Weather) -> None:
    async def main(clock: Clock) -> None:
        network = MadeUpNetwork(seed, weather)
        one, other = Peer(network, 0, clock), Peer(network, 1, clock)
        bodies = [b"%d" % number for number in range(30)]
        await asyncio.gather(*(one.delivery.deliver(1, body) for body in bodies))
        await clock.sleep(1.0)  # virtual: what was repeated has come
        assert sorted(other.accepted) == sorted(bodies)
        assert not one.lost.errors

    virtually(seed, main)


@given(st.integers(0, 10_000))
def test_one_after_another_they_keep_their_order(seed: int) -> None:
    async def main(clock: Clock) -> None:
        network = MadeUpNetwork(seed, STORM)
        one, other = Peer(network, 0, clock), Peer(network, 1, clock)
        for number in range(20):
            await one.delivery.deliver(1, b"%d" % number)
        assert other.accepted == [b"%d" % number for number in range(20)]

    virtually(seed, main)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_a_peer_out_of_reach_is_lost_in_bounded_time_and_said_so_once(silent: bool, dead: bool) -> None:
    async def main(clock: Clock) -> None:
        network = MadeUpNetwork(1, silent=silent)
        one, _ = Peer(network, 0, clock), Peer(network, 1, clock)
        (network.detach if dead else network.isolate)(1)
        began = clock.monotonic()
        outcomes = await asyncio.gather(
            one.delivery.deliver(1, b"a"), one.delivery.deliver(1, b"b"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost, ConnectionLost]
        assert 5.0 < clock.monotonic() - began < 11.0
        ((peer, error),) = one.lost.errors
        assert peer == 1 and "worker 1 has taken nothing for 10 s" in str(error)

    virtually(1, main)


@pytest.mark.parametrize("silent", [False, True])
def test_a_short_cut_is_bridged(silent: bool) -> None:
    async def main(clock: Clock) -> None:
        network = MadeUpNetwork(1, silent=silent)
        one, other = Peer(network, 0, clock), Peer(network, 1, clock)
        network.cut(0, 1)
        sent = asyncio.ensure_future(one.delivery.deliver(1, b"a"))
        await clock.sleep(4.0)
        assert not sent.done() and not other.accepted
        network.heal()
        await sent
        assert other.accepted == [b"a"] and not one.lost.errors

    virtually(1, main)


def test_a_message_of_an_older_epoch_changes_nothing() -> None:
    async def main(clock: Clock) -> None:
        network = MadeUpNetwork(1)
        old, new = Peer(network, 0, clock, Epoch(3, 1)), Peer(network, 1, clock, Epoch(3, 2))
        await old.delivery.deliver(1, b"zombie")
        assert not new.accepted and new.delivery.dropped == 1 and not old.lost.errors

    virtually(1, main)


def test_one_of_a_newer_epoch_is_tried_again_until_the_receiver_is_there() -> None:
    async def main(clock: Clock) -> None:
        network = MadeUpNetwork(1)
        one = Peer(network, 0, clock, Epoch(4, 1))
        behind = Peer(network, 1, clock, Epoch(3, 9))
        sent = asyncio.ensure_future(one.delivery.deliver(1, b"a"))
        await clock.sleep(2.0)
        assert not sent.done() and not behind.accepted
        there = Peer(network, 1, clock, Epoch(4, 1))
        await sent
        assert there.accepted == [b"a"] and not behind.accepted

    virtually(1, main)


def test_who_sends_under_another_name_is_not_heard() -> None:
    async def main(clock: Clock) -> None:
        peer = Peer(MadeUpNetwork(1), 1, clock)
        peer.received(0, sealed(Header(DATA, EPOCH, 2, 1), b"a"))
        assert not peer.accepted and peer.delivery.dropped == 1

    virtually(1, main)


def test_a_header_comes_back_as_it_was() -> None:
    header = Header(CONTROL, Epoch(12, 3), -1, 2**40)
    assert header_of(sealed(header, b"body")) == header
    with pytest.raises(ValueError, match="no header"):
        header_of(b"short")


def test_a_call_that_somebody_else_has_cancelled_is_made_again() -> None:
    class Fickle:
        def __init__(self) -> None:
            self.calls = 0

        async def call(self, peer: int, message: bytes) -> None:
            self.calls += 1
            if self.calls < 3:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                future.cancel()
                await future

    async def main(clock: Clock) -> None:
        lost, wire = Lost(), Fickle()
        await Delivery(DATA, EPOCH, 0, wire, clock, lost).deliver(1, b"a")
        assert wire.calls == 3 and not lost.errors

    virtually(1, main)


def test_a_delivery_that_is_cancelled_ends() -> None:
    async def main(clock: Clock) -> None:
        network, lost = MadeUpNetwork(1, silent=True), Lost()
        task = asyncio.ensure_future(Delivery(DATA, EPOCH, 0, network.wire(0), clock, lost).deliver(1, b"a"))
        await clock.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not lost.errors

    virtually(1, main)


def test_a_wire_that_fails_otherwise_is_no_lost_message() -> None:
    class Broken:
        async def call(self, peer: int, message: bytes) -> None:
            raise ValueError("a bug")

    async def main(clock: Clock) -> None:
        lost = Lost()
        with pytest.raises(ValueError, match="a bug"):
            await Delivery(DATA, EPOCH, 0, Broken(), clock, lost).deliver(1, b"a")

    virtually(1, main)
