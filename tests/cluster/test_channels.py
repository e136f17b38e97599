"""Channels between workers: the contract of all channels on good and bad networks, and what is theirs alone."""

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.actors.mailbox import Mailbox
from streamactors.clock import Clock
from streamactors.cluster import exchange as exchanges
from streamactors.cluster import outbox
from streamactors.elements import Element
from streamactors.runtime.channel import Channel
from streamactors.testing.network import FAIR, STORM, MadeUpNetwork, Weather
from tests.cluster.virtual import virtually
from tests.cluster.workers import Lost, channel_id, connected, exchange
from tests.runtime.channel_contract import SCRIPTS, Step, keeps_the_contract

pytestmark = pytest.mark.slow

WEATHERS = st.sampled_from([FAIR, STORM, Weather(straggle=0.4), Weather(loss=0.3), Weather(repeat=0.5)])
QUOTAS = st.integers(1, 12)
BYTES = st.sampled_from([1, 100, 1 << 20])


@given(SCRIPTS, QUOTAS, BYTES, WEATHERS, st.integers(0, 10_000))
@settings(max_examples=150)
def test_the_contract_of_channels(script: list[Step], quota: int, byte_quota: int, weather: Weather, seed: int) -> None:
    async def main(clock: Clock) -> None:
        await carried([script], quota, byte_quota, weather, seed, clock)

    virtually(seed, main)


@given(st.lists(SCRIPTS, min_size=2, max_size=4), QUOTAS, WEATHERS, st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_contract_of_several_channels_side_by_side(
    scripts: list[list[Step]], quota: int, weather: Weather, seed: int
) -> None:
    async def main(clock: Clock) -> None:
        await carried(scripts, quota, 1 << 20, weather, seed, clock)

    virtually(seed, main)


@given(st.lists(SCRIPTS, min_size=1, max_size=3), st.integers(1, 30), WEATHERS, st.integers(0, 10_000))
@settings(max_examples=50)
def test_the_contract_of_channels_whose_packets_are_small(
    scripts: list[list[Step]], quota: int, weather: Weather, seed: int
) -> None:
    """So that batches are sent in parts, packets side by side, and senders wait for them to leave."""

    async def main(clock: Clock) -> None:
        await carried(scripts, quota, 1 << 20, weather, seed, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchanges, "PIECE_RECORDS", 3)
        for limit, value in {"PACKET_BYTES": 300, "LARGE": 100, "FULL": 400, "PACKET_ELEMENTS": 4}.items():
            patch.setattr(outbox, limit, value)
        virtually(seed, main)


@given(SCRIPTS, QUOTAS, st.booleans(), st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_contract_of_channels_that_are_cut_for_a_while(
    script: list[Step], quota: int, silent: bool, seed: int
) -> None:
    async def main(clock: Clock) -> None:
        network = MadeUpNetwork(seed, silent=silent)
        cutting = asyncio.ensure_future(cut_now_and_then(network, Random(seed), clock))
        await carried([script], quota, 1 << 20, FAIR, seed, clock, network)
        cutting.cancel()
        await asyncio.wait([cutting])

    virtually(seed, main)


async def cut_now_and_then(network: MadeUpNetwork, random: Random, clock: Clock) -> None:
    for _ in range(5):
        await clock.sleep(random.random() * 0.02)
        network.cut(0, 1)
        await clock.sleep(random.random() * 2.0)
        network.heal()


async def carried(
    scripts: list[list[Step]],
    quota: int,
    byte_quota: int,
    weather: Weather,
    seed: int,
    clock: Clock,
    network: MadeUpNetwork | None = None,
) -> None:
    network, lost, random = network or MadeUpNetwork(seed, weather), Lost(), Random(seed)
    ends = [exchange(me, network.wire(me), clock, lost, give_up=60.0) for me in (0, 1)]
    for me, end in enumerate(ends):
        network.attach(me, end.received)

    async def run(number: int) -> None:
        def opened(mailbox: Mailbox[Element]) -> Channel:
            return connected(ends[0], ends[1], mailbox, id=channel_id(number, number))

        await keeps_the_contract(opened, scripts[number], quota, byte_quota, random)

    await asyncio.gather(*map(run, range(len(scripts))))
    await asyncio.gather(*(end.close() for end in ends))
    assert not lost.errors
