"""The simulated world: what outlives a process. A flow's factory is given it, and takes source and sink from it."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, TypeVar

from streamactors.checkpoint import layout
from streamactors.checkpoint.manifest import Manifest
from streamactors.checkpoint.storage.uris import local_path
from streamactors.errors import InvalidDataflow
from streamactors.sinks import WriterSink
from streamactors.sources import SplitSource
from streamactors.testing.simulation.broker import Broker, BrokerClient
from streamactors.testing.simulation.disk import Folder
from streamactors.testing.simulation.faults import Fate
from streamactors.testing.simulation.fleet import Fleet
from streamactors.testing.simulation.leaks import leaked
from streamactors.testing.simulation.process import Process, Pulse
from streamactors.testing.simulation.sink import TIMEOUT, SimulatedSink
from streamactors.testing.simulation.source import WAIT_SECONDS, SimulatedSource
from streamactors.testing.simulation.storage import SimulatedDisk
from streamactors.testing.simulation.timeline import Timeline
from streamactors.testing.simulation.trace import Trace

T = TypeVar("T")


class World:
    """Disk, broker and time of one run. Call the factory's draws by `random`: they must be the same at every start."""

    def __init__(self, fate: Fate, trace: Trace) -> None:
        self.seed = fate.seed
        self.fate = fate
        self.trace = trace
        self.broker = Broker()
        self.root = Folder()
        self.timeline = Timeline(self.root)
        self.checkpoints = 0
        self.reused_files = 0
        self.broken: list[str] = []
        """Invariants that were seen to be broken while the run goes on."""
        self.now = 0.0
        self.fleet: Fleet | None = None
        """Where a run has several processes at once."""
        self._beside: list[Process] = []
        self._replaced: dict[int, int] = {}
        """By process that was replaced while it may have lived on, the attempts that had begun before."""
        self._pulse = Pulse(0.0)
        self._processes = 0
        self._process: Process | None = None

    # ---------------------------------------------------------------------------------------------------- for factories
    def random(self, purpose: str) -> Random:
        """A stream of its own for each purpose: the same one again at every start of the process."""
        return self.fate.random(f"user {purpose}")

    def source(
        self, splits: Mapping[str, Sequence[T]] | Sequence[Sequence[T]], *, wait: float = WAIT_SECONDS
    ) -> SplitSource[T]:
        """Bounded and rewindable. `splits` by name, which must differ from every other source's; `wait`: seconds that
        it waits for records now and then."""
        named = splits if isinstance(splits, Mapping) else {f"split {n}": values for n, values in enumerate(splits)}
        self.process.check_alive()
        return SimulatedSource({name: tuple(values) for name, values in named.items()}, wait)

    def sink(self, topic: str = "out", *, transaction_timeout: float = TIMEOUT) -> WriterSink[Any]:
        """Exactly-once under exactly-once checkpoints; `output` tells what it has got."""
        return SimulatedSink(self.client(), topic, transaction_timeout)

    def client(self) -> BrokerClient:
        """For a sink of your own over the simulated broker."""
        self.process.check_alive()
        return BrokerClient(self.broker)

    @property
    def process(self) -> Process:
        """The one that lives now."""
        if self._process is None:
            raise InvalidDataflow("a simulated world gives sources and sinks only while it calls the flow's factory")
        return self._process

    def output(self, topic: str = "out") -> list[Any]:
        """What readers of committed records see, in order."""
        return self.broker.read_committed(topic)

    # -------------------------------------------------------------------------------------------------------- processes
    def begin_process(self) -> Process:
        self._process = self._begin()
        return self._process

    def begin_beside(self) -> Process:
        """Another one, while the first one goes on, or after it."""
        process = self._begin()
        self._beside.append(process)
        return process

    def _begin(self) -> Process:
        self._processes += 1
        now = self.now if self.fleet is None else self.fleet.time.now
        pulse = self._pulse if self.fleet is not None else None
        return Process(self._processes, self.fate, self.trace, now, fleet=self.fleet, pulse=pulse)

    def end_beside(self, process: Process) -> None:
        process.end()
        self._beside.remove(process)

    def end(self) -> None:
        """No process is left."""
        for process in list(self._beside):
            self.end_beside(process)
        if self.fleet is not None:
            self.fleet.end()

    def replaced(self, process: Process) -> None:
        """Nothing that it writes from now on is to be part of the attempt that begins."""
        self._replaced[process.number] = self.timeline.attempts

    def rest(self, seconds: float) -> None:
        """Nothing of the process that has ended runs; others may."""
        if self.fleet is not None:
            self.fleet.rest(seconds)
            self.now = self.fleet.time.now
        else:
            self.now += seconds

    def end_process(self) -> None:
        process = self.process
        process.end()
        self.now = process.loop.time()
        self._process = None

    def disk(self, process: Process) -> SimulatedDisk:
        return SimulatedDisk(self.root, process, self._published)

    def leaked(self, storage: str, flow: str, retain: int) -> list[str]:
        """What lies in the flow's folder and is of no use."""
        folder = self.root.find(f"{local_path(storage)}/{layout.flow_folder(flow)}")
        return leaked(folder, retain) if isinstance(folder, Folder) else []

    def lose_power(self) -> None:
        """What was not durable is lost or not."""
        self.root.lose(self.fate.random(f"power {self._processes}"))

    def go_back(self, draw: Random) -> bool:
        """To an earlier checkpoint, and the log with it. False if there is none."""
        start = self.timeline.go_back(draw)
        if start is not None and start.checkpoint is not None:
            self.broker.go_back(start.checkpoint)
        return start is not None

    def _published(self, content: Manifest, path: str, writers: Mapping[str, int], problems: list[str]) -> None:
        for file, writer in writers.items():
            if self._replaced.get(writer, self.timeline.attempts + 1) <= self.timeline.attempts:
                problems.append(f"{file} was written by a worker that had been replaced")
        self.checkpoints += 1
        self.reused_files += len(content.files) - len(content.own_files)
        self.timeline.published(content, path)
        self.broken += [f"checkpoint {content.checkpoint}: {problem}" for problem in problems]
