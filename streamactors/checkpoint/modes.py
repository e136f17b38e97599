"""Which barrier protocol a job's subtasks follow."""

from typing import Literal, assert_never

from streamactors.checkpoint.at_least_once import AtLeastOnceBarriers
from streamactors.checkpoint.exactly_once import ExactlyOnceBarriers
from streamactors.checkpoint.protocol import BarrierProtocol


def barrier_protocol(mode: Literal["exactly-once", "at-least-once"], channels: int) -> BarrierProtocol:
    """For one subtask with `channels` input channels (0: a source)."""
    match mode:
        case "exactly-once":
            return ExactlyOnceBarriers(channels)
        case "at-least-once":
            return AtLeastOnceBarriers(channels)
        case _:
            assert_never(mode)
