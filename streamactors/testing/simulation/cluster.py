"""The workers of a simulated job: processes beside its coordinator, which they outlive, and what goes wrong with them.

Rules, beside those of every job: whoever dies or is cut off for good is missed within a bounded time, and the attempt
fails; no file is part of a checkpoint that somebody wrote who had been replaced before its attempt began; workers that
are told to end leave no task.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.clock import Clock
from streamactors.cluster.deployed import ClusterDeployment, RemoteAttempt
from streamactors.cluster.wire import COORDINATOR
from streamactors.cluster.worker import Worker
from streamactors.cluster.workers import Times
from streamactors.graph.placement import STRATEGIES
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.messages import Failed, Report, Reports
from streamactors.runtime.snapshot_storage import StoredSnapshots
from streamactors.testing.network import FAIR, STORM, MadeUpNetwork, Weather
from streamactors.testing.simulation.fleet import Fleet
from streamactors.testing.simulation.process import Process, here
from streamactors.testing.simulation.world import World

WEATHERS: Final[dict[str, Weather]] = {
    "fair": FAIR,
    "gusts": Weather(delay=(0.0, 0.01), repeat=0.05, straggle=0.1),
    "losses": Weather(loss=0.05, straggle=0.05),
    "storm": STORM,
}
TIMES: Final = (
    Times(heartbeat=0.2, lost_after=2.0, patience=3.0),
    Times(heartbeat=0.5, lost_after=4.0, patience=6.0),
    Times(),
)
CUT_SECONDS: Final = 30.0
PAUSES: Final = (0.05, 0.5, 2.0, 5.0, 15.0, 40.0)
"""Seconds: what nobody notices, what is just noticed, and what is given up before it is over."""
TOLD_SECONDS: Final = 0.5
"""Within them whoever keeps the workers may learn that one has died."""
UNDEAD: Final = 0.5
"""The share of those who are replaced, though they live, that nobody can reach to end them."""
ENDING_SECONDS: Final = 120.0


class Bench:
    """Objects that go from process to process as they are: their numbers travel."""

    def __init__(self) -> None:
        self._objects: list[Any] = []

    def ship(self, value: Any) -> bytes:
        self._objects.append(value)
        return str(len(self._objects) - 1).encode()

    def unship(self, data: bytes) -> Any:
        return self._objects[int(data)]


@dataclass(eq=False)
class Hand:
    """A worker and its process."""

    number: int
    process: Process
    worker: Worker


class Watched:
    """An attempt over workers, see `runtime.deployment.Deployed`; what it does not know of goes to `inner`."""

    def __init__(self) -> None:
        self.inner: RemoteAttempt | None = None
        self.noticed = False
        """That something is wrong, or that it is over."""
        self.delayed = False
        """The coordinator was paused meanwhile, and has noticed nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def shut_down(self) -> None:
        self.noticed = True
        assert self.inner is not None
        await self.inner.shut_down()

    def needs(self, number: int) -> bool:
        """Whether that worker has anything of it."""
        return self.inner is not None and any(self.inner.placement.slices[number : number + 1])


@dataclass
class SimulatedCluster:
    """See `cluster.workers.Workers`. A new coordinator `takes over` whatever workers there are."""

    world: World
    fleet: Fleet
    draw: Random
    weather: str
    count: int = 0
    _hands: dict[int, Hand] = field(default_factory=dict)
    """By number; also of those who have died, and nobody knows."""
    _undead: list[Hand] = field(default_factory=list)
    """Replaced, and still alive."""

    def __post_init__(self) -> None:
        draw = self.draw
        seed, silent = draw.getrandbits(32), draw.random() < 0.5
        self.network = MadeUpNetwork(seed, WEATHERS[self.weather], silent=silent, loop=self.fleet.between)
        # In a storm all that is sent in two seconds may be lost, and nobody is to blame.
        self.times = draw.choice(TIMES[1:] if self.weather == "storm" else TIMES)
        self._bench = Bench()
        self._attempt: Watched | None = None
        self._coordinator: Process | None = None
        self._deployment: ClusterDeployment | None = None
        self._storage = ""
        self.fleet.disturb = self._disturb
        self.world.trace.note(f"{self.weather}, silent {silent}, {self.times}")

    # --------------------------------------------------------------------------------------------------- coordinators
    def take_over(self, coordinator: Process, count: int, storage: str) -> None:
        self.count, self._storage = count, storage
        wire = self.network.wire(COORDINATOR)
        strategy = self.draw.choice(STRATEGIES)
        self._deployment = ClusterDeployment(self, wire, ship=self._bench.ship, strategy=strategy, times=self.times)
        self._coordinator = coordinator
        self.network.heal(COORDINATOR)
        self.network.attach(COORDINATOR, self._deployment.received, coordinator.loop)

    def coordinator_ends(self) -> None:
        self.network.detach(COORDINATOR)
        self._coordinator = self._attempt = self._deployment = None

    async def deploy(self, spec: AttemptSpec, storage: StoredSnapshots, reports: Reports, clock: Clock) -> Watched:
        watched = self._attempt = Watched()

        def report(report: Report) -> None:
            watched.noticed = watched.noticed or isinstance(report, Failed)
            reports(report)

        assert self._deployment is not None
        watched.inner = await self._deployment(spec, storage, report, clock)
        return watched

    # ---------------------------------------------------------------------------------------------------------- workers
    async def ready(self, replace: Collection[int]) -> Collection[int]:
        """Who lives on is said to have ended: it is harder to keep it from doing harm at once than after a wait."""
        for number in replace:
            self._replace(number)
        await here().pause()
        for number in range(self.count):
            if number not in self._hands:
                self._start(number)
        return ()

    def _replace(self, number: int) -> None:
        hand = self._hands.pop(number, None)
        if hand is None or not hand.process.alive:
            return
        self.network.detach(number)
        self.world.replaced(hand.process)
        if self.draw.random() < UNDEAD:
            hand.process.note(f"worker {number} is replaced, and lives on")
            self._undead.append(hand)
        else:
            self.world.end_beside(hand.process)

    def _start(self, number: int) -> None:
        process = self.world.begin_beside()
        files = LocalFiles(self._storage, clock=process.clock, disk=self.world.disk(process))
        wire, unship = self.network.wire(number), self._bench.unship
        worker = Worker(number, wire, unship=unship, clock=process.clock, files=files, times=self.times)
        self._hands[number] = Hand(number, process, worker)
        self.network.heal(number)
        self.network.attach(number, worker.received, process.loop)

    @property
    def _living(self) -> list[Hand]:
        return [hand for hand in self._hands.values() if hand.process.alive]

    # ------------------------------------------------------------------------------------------------ what happens
    def _disturb(self) -> None:
        strikes = self.world.fate.strikes
        if strikes("worker_kills"):
            self._in_turn("worker_kills", self._living, self._kill)
        if strikes("worker_pauses"):
            self._in_turn("worker_pauses", [*self._living, *self._undead], self._pause)
        if strikes("false_deaths"):
            self._in_turn("false_deaths", self._living, self._take_for_dead)
        if strikes("cuts"):
            self._in_turn("cuts", self._living, self._cut)

    def _in_turn(self, kind: str, among: list[Hand], happens: Any) -> None:
        if among:
            happens(self.draw.choice(among))
        else:
            self.world.fate.struck[kind] -= 1

    def _kill(self, hand: Hand) -> None:
        hand.process.note(f"worker {hand.number} dies")
        self.network.detach(hand.number)
        self.world.end_beside(hand.process)
        self._to_be_noticed(f"the death of worker {hand.number}", hand.number)
        if self.draw.random() < 0.5:
            self._tell_of_death(hand, dead=True)

    def _tell_of_death(self, hand: Hand, *, dead: bool) -> None:
        coordinator, deployment = self._coordinator, self._deployment
        if coordinator is not None and deployment is not None:
            seconds = self.draw.random() * TOLD_SECONDS
            told = functools.partial(deployment.worker_lost, hand.number, "its process has died", dead=dead)
            coordinator.loop.call_later(seconds, told)

    def _take_for_dead(self, hand: Hand) -> None:
        """As where its node is lost to the cluster: it works on, until it has heard nothing for too long."""
        hand.process.note(f"worker {hand.number} is taken for dead")
        self._tell_of_death(hand, dead=False)

    def _pause(self, hand: Hand) -> None:
        seconds = self.draw.choice(PAUSES) * (0.5 + self.draw.random())
        process, name = hand.process, f"worker {hand.number}"
        if self._coordinator is not None and self.draw.random() < 0.2:
            process, name = self._coordinator, "coordinator"
            if self._attempt is not None:
                self._attempt.delayed = True
        process.note(f"{name} is paused for {seconds:.3f} s")
        process.pulse.progress = max(process.pulse.progress, self.fleet.time.now + seconds)
        self.fleet.pause(process.loop, seconds)

    def _cut(self, hand: Hand) -> None:
        """From the coordinator, for some time or for good; from another worker, whom nobody replaces, for some time."""
        others = [other.number for other in self._living if other is not hand]
        other = self.draw.choice([COORDINATOR, COORDINATOR, *others])
        seconds = self.draw.random() * CUT_SECONDS
        lasts = other == COORDINATOR and self.draw.random() < 0.3
        hand.process.note(f"{hand.number} is cut off from {other} for {'ever' if lasts else f'{seconds:.3f} s'}")
        self.network.cut(hand.number, other)
        if lasts:
            self._to_be_noticed(f"that worker {hand.number} is cut off", hand.number)
        else:
            self.fleet.between.call_later(seconds, self.network.heal, hand.number)

    def _to_be_noticed(self, what: str, number: int) -> None:
        """By its silence, if by nothing else."""
        watched = self._attempt
        if watched is None or not watched.needs(number):
            return
        seconds = 3 * self.times.lost_after + 5.0
        self.fleet.between.call_later(seconds, self._look, watched, f"{what} was not noticed for {seconds:g} s")

    def _look(self, watched: Watched, what: str) -> None:
        if watched is self._attempt and not watched.noticed and not watched.delayed:
            self.world.broken.append(what)

    # ------------------------------------------------------------------------------------------------ end
    def lose_power(self) -> None:
        """All of them."""
        for hand in [*self._living, *self._undead]:
            self.world.end_beside(hand.process)
            self.network.detach(hand.number)
        self._hands.clear()
        self._undead.clear()

    def close(self) -> None:
        """In peace: each ends, and leaves nothing."""
        hands = [*self._living, *self._undead]
        self.network.weather = FAIR
        self.fleet.disturb = _nothing
        tasks = [hand.process.loop.create_task(hand.worker.close(), name="close") for hand in hands]
        for hand in hands:
            self.fleet.resume(hand.process.loop)
        until = self.fleet.time.now + ENDING_SECONDS
        self.fleet.between.call_at(until, _nothing)
        self.fleet.run(lambda: all(not hand.process.loop.unfinished() for hand in hands) or self.fleet.time.now > until)
        for hand, task in zip(hands, tasks, strict=True):
            left = [other.get_name() for other in hand.process.loop.unfinished()]
            if left:
                self.world.broken.append(f"worker {hand.number} was told to end, and left tasks: {left}")
            if task.done() and (error := task.exception()) is not None:
                self.world.broken.append(f"worker {hand.number} was told to end, and failed: {error!r}")
        self.lose_power()


def _nothing() -> None:
    """Goes wrong any more."""
