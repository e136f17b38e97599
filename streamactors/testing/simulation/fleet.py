"""Simulated processes side by side, each with a loop of its own, on one virtual time.

Invariants. Whose step is next is drawn among those that have one to take. One that is paused takes none, and finds
later than it thought when it goes on. Time jumps when nobody has anything to do. Processes reach each other by what is
on its way between them alone, which outlives its sender (`between`).
"""

import contextlib
import sys
from asyncio import events
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from streamactors.testing.simulation.loop import SimulatedTask, SimulationLoop, VirtualTime
from streamactors.testing.simulation.trace import Trace


def _nothing() -> None:
    """Goes wrong."""


class Fleet:
    """`disturb` is called before every step, when no process runs."""

    def __init__(self, random: Random, trace: Trace, time: VirtualTime) -> None:
        self.time = time
        self.between = SimulationLoop(random, trace, time, order="fifo")
        self.disturb: Callable[[], None] = _nothing
        self.steps = 0
        self.stuck = False
        """Nobody had anything to do, nor a timer to wait for."""
        self._random = random.random
        self._trace = trace
        self._loops = [self.between]
        self._paused: set[SimulationLoop] = set()
        self._complaints: list[str] = []

    def join(self, loop: SimulationLoop) -> None:
        self._loops.append(loop)

    def leave(self, loop: SimulationLoop) -> None:
        self._loops.remove(loop)
        self._paused.discard(loop)
        self._complaints += loop.complaints

    def pause(self, loop: SimulationLoop, seconds: float) -> None:
        self._paused.add(loop)
        self.between.call_later(seconds, self.resume, loop)

    def resume(self, loop: SimulationLoop) -> None:
        self._paused.discard(loop)

    def end(self) -> None:
        """Nothing is on its way any more."""
        self.between.bury()

    @property
    def complaints(self) -> list[str]:
        return [*self._complaints, *(complaint for loop in self._loops for complaint in loop.complaints)]

    def unfinished(self) -> list[SimulatedTask[Any]]:
        return [task for loop in self._loops for task in loop.unfinished()]

    # -------------------------------------------------------------------------------------------------------- running
    def run(self, until: Callable[[], bool], before_step: Callable[[], bool] = lambda: True) -> None:
        """Until that is so, nobody has anything to do any more, or `before_step` says no."""
        with _hooks_kept():
            while not until():
                self.disturb()
                if not before_step() or not self._step():
                    return

    def rest(self, seconds: float) -> None:
        """Let time pass."""
        until = self.time.now + seconds
        self.between.call_at(until, _nothing)
        self.run(lambda: self.time.now >= until)

    def _step(self) -> bool:
        runnable = [loop for loop in self._loops if loop not in self._paused and loop.runnable()]
        if not runnable:
            return self._jump()
        choice = int(self._random() * len(runnable)) if len(runnable) > 1 else 0
        self._trace.decided(choice, len(runnable))
        loop = runnable[choice]
        self.steps += 1
        events._set_running_loop(loop)
        sys.set_asyncgen_hooks(*loop.hooks)
        try:
            loop.step()
        finally:
            events._set_running_loop(None)
        return True

    def _jump(self) -> bool:
        timers = [loop.next_timer() for loop in self._loops if loop not in self._paused]
        due = min((timer for timer in timers if timer is not None), default=None)
        if due is None:
            self.stuck = True
            return False
        self.time.now = max(self.time.now, due)
        return True


@contextlib.contextmanager
def _hooks_kept() -> Iterator[None]:
    """A generator remembers by them whose it is, so that each loop has its own while it takes a step."""
    hooks = sys.get_asyncgen_hooks()
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)
