"""Coroutines on virtual time, with seeded scheduling: nothing waits for real, and what hangs is found at once."""

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from streamactors.testing.simulation.clock import SimulatedClock
from streamactors.testing.simulation.loop import SimulationLoop, VirtualTime
from streamactors.testing.simulation.trace import Trace

T = TypeVar("T")


def virtually(seed: int, main: Callable[[SimulatedClock], Coroutine[Any, Any, T]]) -> T:
    """What `main(clock)` gives. Fails where it waits for what never comes, leaves a task, or lets an error pass
    unseen."""
    time = VirtualTime(Random(f"time {seed}"), 0.0, 0.00005)
    loop = SimulationLoop(Random(f"schedule {seed}"), Trace(), time, order="uniform")
    clock = SimulatedClock(time, Random(f"clock {seed}"))
    try:
        task = loop.create_task(main(clock), name="main")
        try:
            result = loop.run_until_complete(task)
        except RuntimeError:
            assert not loop.stuck, f"stuck at {time.now:.3f} s: {[other.get_name() for other in loop.unfinished()]}"
            raise
        assert not loop.unfinished(), f"left running: {[other.get_name() for other in loop.unfinished()]}"
        assert not loop.complaints, loop.complaints
        return result
    finally:
        loop.bury()
