"""One simulated process: its loop, its clock, and what it may still reach; `here` is the one whose code is running."""

from asyncio import events
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from streamactors.errors import Crashed, Disturbed
from streamactors.testing.simulation.clock import SimulatedClock
from streamactors.testing.simulation.faults import MARK, Fate
from streamactors.testing.simulation.fleet import Fleet
from streamactors.testing.simulation.local_state import LocalState
from streamactors.testing.simulation.loop import Order, SimulatedTask, SimulationLoop, VirtualTime
from streamactors.testing.simulation.trace import Trace

ORDERS: Final[tuple[Order, ...]] = ("uniform", "uniform", "priorities", "fifo")
STEP_SECONDS: Final = (0.00002, 0.0001, 0.0003, 0.001)
"""How long a step takes at most: slow processes make small slices, and find their turn's budget spent."""
LATENCY: Final = 0.002
"""Of a request or of an operation of the disk, at most, in seconds, where nothing is slow."""


@dataclass
class Pulse:
    """`progress`: when something was last read or written; in the future while something takes its time."""

    progress: float


class Process:
    """`alive` until it ends, however it does: then every operation of its handles raises Crashed. `fleet`: the
    processes beside it, if there may be any; `pulse`: theirs."""

    def __init__(
        self,
        number: int,
        fate: Fate,
        trace: Trace,
        now: float,
        *,
        fleet: Fleet | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        draw = fate.random(f"process {number}")
        self.number = number
        self.fate = fate
        self.trace = trace
        self.alive = True
        self.pulse = pulse or Pulse(now)
        self.lingering = 0
        """Operations outside that take their time at the moment."""
        order, step_seconds = draw.choice(ORDERS), draw.choice(STEP_SECONDS)
        time = VirtualTime(fate.random(f"time {number}"), now, step_seconds) if fleet is None else fleet.time
        self.loop = SimulationLoop(fate.random(f"schedule {number}"), trace, time, order=order)
        self.loop.owner = self
        self.clock = SimulatedClock(time, fate.random(f"clock {number}"))
        self.local = LocalState(fate.random(f"local state {number}"))
        self._fleet = fleet
        self._earlier_steps = 0 if fleet is None else fleet.steps
        self._draw: Random = fate.random(f"latency {number}")
        if fleet is not None:
            fleet.join(self.loop)
        trace.note(f"process {number} begins at {now:.6f}, order {order}, step {step_seconds}")

    # ------------------------------------------------------------------------------------------------ with those beside
    def run(self, before_step: Callable[[], bool]) -> None:
        """Until its loop is stopped. `before_step`: before every step of any process; whether it may be taken."""
        if self._fleet is not None:
            self._fleet.run(lambda: self.loop.stopping, before_step)
        else:
            self.loop.before_step = before_step
            self.loop.run_forever()

    @property
    def steps(self) -> int:
        """Of all processes, as long as this one lives."""
        return self.loop.steps if self._fleet is None else self._fleet.steps - self._earlier_steps

    @property
    def stuck(self) -> bool:
        return self.loop.stuck if self._fleet is None else self._fleet.stuck

    @property
    def complaints(self) -> list[str]:
        return self.loop.complaints if self._fleet is None else self._fleet.complaints

    def unfinished(self) -> list[SimulatedTask[Any]]:
        """Tasks of all processes."""
        return self.loop.unfinished() if self._fleet is None else self._fleet.unfinished()

    def end(self) -> None:
        """As by SIGKILL."""
        self.alive = False
        self.loop.bury()
        self.local.destroy()
        if self._fleet is not None:
            self._fleet.leave(self.loop)

    # ---------------------------------------------------------------------------------------------------------- outside
    def check_alive(self) -> None:
        if not self.alive:
            raise Crashed

    def note(self, line: str) -> None:
        self.trace.note(line)

    def advance(self, line: str) -> None:
        """Something was read or written: it gets on."""
        self.trace.note(line)
        self.pulse.progress = max(self.pulse.progress, self.loop.time())

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
        self.pulse.progress = max(self.pulse.progress, self.loop.time() + seconds)
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


def here() -> Process:
    """Raises Crashed where there is none."""
    process = getattr(events._get_running_loop(), "owner", None)
    if not isinstance(process, Process):
        raise Crashed
    return process
