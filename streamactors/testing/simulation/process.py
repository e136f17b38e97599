"""One simulated process: its loop, its clock, and what it may still reach."""

from random import Random
from typing import Final

from streamactors.errors import Crashed, Disturbed
from streamactors.testing.simulation.clock import SimulatedClock
from streamactors.testing.simulation.faults import MARK, Fate
from streamactors.testing.simulation.local_state import LocalState
from streamactors.testing.simulation.loop import Order, SimulationLoop, VirtualTime
from streamactors.testing.simulation.trace import Trace

ORDERS: Final[tuple[Order, ...]] = ("uniform", "uniform", "priorities", "fifo")
STEP_SECONDS: Final = (0.00002, 0.0001, 0.0003, 0.001)
"""How long a step takes at most: slow processes make small slices, and find their turn's budget spent."""
LATENCY: Final = 0.002
"""Of a request or of an operation of the disk, at most, in seconds, where nothing is slow."""


class Process:
    """`alive` until it ends, however it does: then every operation of its handles raises Crashed."""

    def __init__(self, number: int, fate: Fate, trace: Trace, now: float) -> None:
        draw = fate.random(f"process {number}")
        self.number = number
        self.fate = fate
        self.trace = trace
        self.alive = True
        self.progress = now
        """When something was last read or written; in the future while something takes its time."""
        self.lingering = 0
        """Operations outside that take their time at the moment."""
        order, step_seconds = draw.choice(ORDERS), draw.choice(STEP_SECONDS)
        time = VirtualTime(fate.random(f"time {number}"), now, step_seconds)
        self.loop = SimulationLoop(fate.random(f"schedule {number}"), trace, time, order=order)
        self.clock = SimulatedClock(time, fate.random(f"clock {number}"))
        self.local = LocalState(fate.random(f"local state {number}"))
        self._draw: Random = fate.random(f"latency {number}")
        trace.note(f"process {number} begins at {now:.6f}, order {order}, step {step_seconds}")

    def check_alive(self) -> None:
        if not self.alive:
            raise Crashed

    def note(self, line: str) -> None:
        self.trace.note(line)

    def advance(self, line: str) -> None:
        """Something was read or written: it gets on."""
        self.trace.note(line)
        self.progress = max(self.progress, self.loop.time())

    async def pause(self) -> None:
        """What an operation outside takes at least: one step of the loop."""
        self.check_alive()
        await self.clock.sleep(self._draw.random() * LATENCY if self._draw.random() < 0.5 else 0)
        self.check_alive()

    async def linger(self, kind: str, seconds: float) -> None:
        """Up to so many seconds more, if it strikes."""
        if self.fate.strikes(kind):
            taken = self._draw.random() * seconds
            self.note(f"{kind}: {taken:.6f} s")
            self.lingering += 1
            try:
                await self.take_time(taken)
            finally:
                self.lingering -= 1

    async def take_time(self, seconds: float) -> None:
        self.progress = max(self.progress, self.loop.time() + seconds)
        await self.clock.sleep(seconds)
        self.check_alive()

    def fail(self, kind: str, what: str) -> None:
        """Raises Disturbed, if it strikes."""
        if self.fate.strikes(kind):
            self.note(f"{kind}: {what}")
            raise Disturbed(f"{MARK}: {what}")

    def often(self) -> bool:
        """One time in ten."""
        return self._draw.random() < 0.1

    def up_to(self, most: int) -> int:
        return 1 + int(self._draw.random() * most)

    def chosen(self, among: int) -> int:
        return int(self._draw.random() * among)
