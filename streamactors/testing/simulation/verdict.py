"""What is looked at once a run is over: the last checkpoint's state, and the output beside that of a calm run."""

from collections import Counter

from streamactors.checkpoint.restorable import load
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.graph.logical import LogicalGraph
from streamactors.testing.simulation.chance import stream
from streamactors.testing.simulation.clock import SimulatedClock
from streamactors.testing.simulation.disk import Folder, VolatileDisk
from streamactors.testing.simulation.loop import SimulationLoop, VirtualTime
from streamactors.testing.simulation.result import Check, Outcome
from streamactors.testing.simulation.state import States, read_states
from streamactors.testing.simulation.trace import Trace


def last_states(root: Folder, storage: str, graph: LogicalGraph, now: float) -> dict[str, States]:
    """By operator, of the last checkpoint; read back from the disk in peace. `now`: what has expired is not there."""
    time = VirtualTime(stream(0, "read"), now, 0.0001)
    loop = SimulationLoop(stream(0, "read"), Trace(), time, order="fifo")
    clock = SimulatedClock(time, stream(0, "read"))
    files = LocalFiles(storage, clock=clock, disk=VolatileDisk(root))

    async def read() -> dict[str, States]:
        return await read_states(await load(files, files.uri, flow=graph.name), graph, clock)

    try:
        return loop.run_until_complete(read())
    finally:
        loop.bury()


def same_as(reference: Outcome) -> Check:
    """The same records in any order, and the same state; under at-least-once checkpoints no record less."""

    def check(outcome: Outcome) -> None:
        for topic in reference.world.broker.topics:
            wanted, found = (Counter(map(repr, each.output(topic))) for each in (reference, outcome))
            assert not (lost := wanted - found), f"topic {topic}: lost {_some(lost)}"
            if outcome.exactly_once:
                assert not (extra := found - wanted), f"topic {topic}: doubled or made up {_some(extra)}"
        if outcome.exactly_once:
            for uid, states in reference.states.items():
                assert outcome.states[uid] == states, f"operator {uid}: its state is not that of an undisturbed run"

    return check


def _some(records: Counter[str]) -> str:
    shown = ", ".join(f"{record} ({count} times)" for record, count in records.most_common(5))
    return f"{records.total()} records: {shown}"
