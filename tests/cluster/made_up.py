"""A cluster in one process: real workers and a real coordinator's side, over a made-up network."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from streamactors.checkpoint.storage.contract import Files
from streamactors.clock import SYSTEM, Clock
from streamactors.cluster.deployed import ClusterDeployment, RemoteAttempt
from streamactors.cluster.wire import COORDINATOR, Wire
from streamactors.cluster.worker import Worker
from streamactors.cluster.workers import Times
from streamactors.graph.placement import Strategy
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.messages import Reports
from streamactors.runtime.snapshot_storage import StoredSnapshots
from streamactors.testing.network import FAIR, MadeUpNetwork, Weather


class ByReference:
    """What goes to another worker stays in this process, and only its number travels."""

    def __init__(self) -> None:
        self._objects: list[Any] = []

    def ship(self, value: Any) -> bytes:
        self._objects.append(value)
        return str(len(self._objects) - 1).encode()

    def unship(self, data: bytes) -> Any:
        return self._objects[int(data)]


class MadeUpCluster:
    """`count` workers; one that is killed or replaced gets a successor before the next attempt."""

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        weather: Weather = FAIR,
        silent: bool = False,
        files: Files | None = None,
        times: Times | None = None,
        strategy: Strategy = "spread",
        clock: Clock = SYSTEM,
        zombies: bool = False,
        known: bool = False,
    ) -> None:
        """`zombies`: who is replaced lives on, as one does that nobody can reach to end it; `known`: and the job is
        told so, which is why it waits."""
        self.count = count
        self.network = MadeUpNetwork(seed, weather, silent=silent)
        self.replaced: list[int] = []
        self.attempts: list[RemoteAttempt] = []
        self.workers: dict[int, Worker] = {}
        self.undead: list[Worker] = []
        self._zombies = zombies
        self._known = known
        self._cords: dict[int, _Cord] = {}
        self._by_reference = ByReference()
        self.files = files
        self._clock = clock
        self._times = times or Times()
        self._dying: list[asyncio.Task[None]] = []
        self._strategy: Strategy = strategy
        self.deployment = self._coordinator()

    def _coordinator(self) -> ClusterDeployment:
        cord = self._cords[COORDINATOR] = _Cord(self.network.wire(COORDINATOR))
        deployment = ClusterDeployment(self, cord, ship=self.ship, strategy=self._strategy, times=self._times)
        self.network.attach(COORDINATOR, deployment.received)
        return deployment

    def succeed(self) -> None:
        """The coordinator dies, and another process takes its place; the workers know nothing of it."""
        self._cords[COORDINATOR].cut = True
        self.deployment = self._coordinator()

    def ship(self, value: Any) -> bytes:
        return self._by_reference.ship(value)

    def unship(self, data: bytes) -> Any:
        return self._by_reference.unship(data)

    async def ready(self, replace: Collection[int]) -> Collection[int]:
        for number in replace:
            self.replaced.append(number)
            self._bury(number, dead=not self._zombies)
        for number in range(self.count):
            if number not in self.workers:
                self._start(number)
        return replace if self._known else ()

    async def __call__(
        self, spec: AttemptSpec, storage: StoredSnapshots, reports: Reports, clock: Clock
    ) -> RemoteAttempt:
        attempt = await self.deployment(spec, storage, reports, clock)
        self.attempts.append(attempt)
        return attempt

    def _start(self, number: int) -> None:
        cord, unship = _Cord(self.network.wire(number)), self.unship
        worker = Worker(number, cord, unship=unship, clock=self._clock, files=self.files, times=self._times)
        self.workers[number], self._cords[number] = worker, cord
        self.network.attach(number, worker.received)

    def kill(self, number: int, *, told: bool = True) -> None:
        """As by SIGKILL: nothing that it does reaches anybody any more. `told`: whoever keeps the workers knows."""
        self._bury(number)
        if told:
            self.deployment.worker_lost(number, "its process has died")

    def _bury(self, number: int, *, dead: bool = True) -> None:
        worker = self.workers.pop(number, None)
        if worker is not None and dead:
            self.network.detach(number)
            self._cords[number].cut = True
            if worker._assignment is not None:
                worker._assignment._line.cut()
            self._dying.append(asyncio.get_running_loop().create_task(worker.close()))
        elif worker is not None:
            self.undead.append(worker)

    async def close(self) -> None:
        for number in list(self.workers):
            await self.workers[number].close()
        for worker in self.undead:
            await worker.close()
        await asyncio.gather(*self._dying)


class _Cord:
    """A process's way out. Once cut, it is dead: nothing that it sends goes anywhere, and nobody tells it so."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.cut = False

    async def call(self, peer: int, message: bytes) -> None:
        if self.cut:
            await asyncio.get_running_loop().create_future()
        await self._wire.call(peer, message)


@asynccontextmanager
async def made_up(count: int, **options: Any) -> AsyncIterator[MadeUpCluster]:
    cluster = MadeUpCluster(count, **options)
    try:
        yield cluster
    finally:
        await cluster.close()
