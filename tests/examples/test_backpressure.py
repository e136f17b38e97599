"""The example of back-pressure: an unaligned checkpoint passes what an aligned one waits for."""

import pytest

from examples.backpressure import compare

pytestmark = pytest.mark.slow


async def test_unaligned_barriers_pass_what_aligned_ones_wait_for() -> None:
    lines: list[str] = []
    longest = await compare(2.0, lines.append)
    assert 0 < longest["unaligned"] < longest["aligned"] / 2
    bytes_in_flight = {line.split()[0]: line for line in lines if "bytes" in line}
    assert " 0 bytes in flight" in bytes_in_flight["aligned"]
    assert " 0 bytes in flight" not in bytes_in_flight["unaligned"]
