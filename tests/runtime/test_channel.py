"""The contract of channels, within one process (`tests/cluster/test_channels.py` has those between processes)."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from streamactors.clock import Clock
from streamactors.runtime.channel import MailboxChannel
from tests.cluster.virtual import virtually
from tests.runtime.channel_contract import SCRIPTS, Step, keeps_the_contract


@given(SCRIPTS, st.integers(1, 12), st.sampled_from([1, 100, 1 << 20]), st.integers(0, 10_000))
def test_the_contract_of_channels(script: list[Step], quota: int, byte_quota: int, seed: int) -> None:
    async def main(clock: Clock) -> None:
        await keeps_the_contract(lambda mailbox: MailboxChannel(mailbox, 0), script, quota, byte_quota, Random(seed))

    virtually(seed, main)
