"""Jobs over several workers in the simulation: processes side by side, and what goes wrong between them."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from streamactors.checkpoint.manifest import Manifest
from streamactors.cluster.deployed import RemoteAttempt
from streamactors.errors import ConnectionLost, Crashed, SimulationFailed
from streamactors.testing import Faults, SimulationResult, World, simulate
from streamactors.testing.network import MadeUpNetwork
from streamactors.testing.simulation import scenario
from streamactors.testing.simulation.faults import Fate
from streamactors.testing.simulation.fleet import Fleet
from streamactors.testing.simulation.loop import VirtualTime
from streamactors.testing.simulation.process import Process, here
from streamactors.testing.simulation.trace import Trace
from tests.testing.test_simulation import python

pytestmark = pytest.mark.slow

HARSH = Faults(workers=(2, 3), worker_kills=4, worker_pauses=4, false_deaths=4, cuts=4, spread=0.4)


def over_workers(
    topology: str, mode: str, seed: int, faults: Faults = HARSH, listen: Callable[[str], None] | None = None
) -> SimulationResult:
    return simulate(scenario(topology, mode), seed=seed, faults=faults, listen=listen)


# ---------------------------------------------------------------------------------------------------------- whole runs
def test_whoever_dies_is_cut_off_or_comes_back_breaks_nothing() -> None:
    struck: Counter[str] = Counter()
    told: list[str] = []
    for seed in range(16):
        result = over_workers("pipeline", "unaligned" if seed % 2 else "aligned", seed, listen=told.append)
        struck.update(result.faults)
    assert {"worker_kills", "worker_pauses", "false_deaths", "cuts", "kills", "power_losses"} <= struck.keys()
    assert any("is replaced, and lives on" in line for line in told), "zombies beside their successors"


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    script = (
        "from tests.testing.test_simulation_cluster import over_workers\n"
        "pairs = [('diamond', 'unaligned'), ('called-by-key', 'aligned-timeout'), ('windowed', 'at-least-once')]\n"
        "print([over_workers(topology, mode, 3).trace_hash for topology, mode in pairs])"
    )
    runs = [python("-c", script, hash_seed=seed) for seed in ("0", "4242")]
    assert [run.stderr for run in runs] == ["", ""]
    assert runs[0].stdout == runs[1].stdout != ""


def test_a_job_moves_between_one_process_and_several_workers() -> None:
    told: list[str] = []
    for seed in range(6):
        over_workers("kinds", "aligned", seed, Faults(workers=(0, 1, 4)), told.append)
    assert {"0 workers", "1 workers", "4 workers"} <= set(told)


def test_a_flow_without_a_check_is_compared_with_itself_in_one_process() -> None:
    made = replace(scenario("union", "aligned"), check=None)
    for seed in range(3):
        simulate(made, seed=seed, faults=replace(HARSH, rewinds=0))


def test_that_nobody_notices_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time that hangs on the job's own times, and not only when nothing has happened for long."""
    monkeypatch.setattr(RemoteAttempt, "lost", lambda self, number, why: None)
    calm = Faults.none(workers=(2,), worker_kills=3, spread=0.3)
    found = [failure for seed in range(12) if (failure := failed(seed, calm))]
    assert any("was not noticed" in failure for failure in found), found


def failed(seed: int, faults: Faults) -> str | None:
    try:
        over_workers("pipeline", "aligned", seed, faults)
    except SimulationFailed as failure:
        return str(failure)
    return None


def test_a_file_of_somebody_who_was_replaced_is_no_part_of_a_checkpoint() -> None:
    world = World(Fate(0, Faults.none()), Trace())
    process = world.begin_process()
    manifest = Manifest(flow="f", run=1, attempt=1, checkpoint=1, time_ms=0, operators=(), subtasks=())
    world.timeline.attempt_begins()
    world._published(manifest, "/f/run-1/attempt-1/chk-1/manifest", {"one": process.number}, [])
    assert world.broken == []
    world.timeline.attempt_begins()
    world.replaced(process)
    world._published(manifest, "/f/run-1/attempt-2/chk-2/manifest", {"one": process.number}, [])
    assert "one was written by a worker that had been replaced" in world.broken[0]
    world.end_process()


def test_workers_go_through_the_command_line() -> None:
    text = Faults(workers=(0, 3), weather=("fair",), cuts=4).as_options()
    assert text == "cuts=4,workers=0/3,weather=fair"
    assert Faults.from_options(text).workers == (0, 3)


# ------------------------------------------------------------------------------------------------------ side by side
class Two:
    """Processes, and what they have done."""

    def __init__(self) -> None:
        time = VirtualTime(Random(0), 0.0, 0.001)
        self.fleet = Fleet(Random(1), Trace(), time)
        fate = Fate(0, Faults.none())
        self.one, self.other = (Process(number, fate, Trace(), 0.0, fleet=self.fleet) for number in (1, 2))
        self.seen: list[tuple[int, float]] = []

    async def tick(self, times: int) -> None:
        process = here()
        for _ in range(times):
            self.seen.append((process.number, process.loop.time()))
            await process.clock.sleep(1.0)

    def of(self, process: Process) -> list[float]:
        return [at for number, at in self.seen if number == process.number]

    def end(self) -> None:
        for process in (self.one, self.other):
            if process.alive:
                process.end()
        self.fleet.end()


def test_processes_run_side_by_side_on_one_time() -> None:
    two = Two()
    tasks = [process.loop.create_task(two.tick(5)) for process in (two.one, two.other)]
    two.fleet.run(lambda: all(task.done() for task in tasks))
    assert len(two.seen) == 10 and two.fleet.time.now < 7
    assert not two.fleet.unfinished() and not two.fleet.complaints
    two.end()


def test_one_that_is_paused_takes_no_step_and_finds_later_that_time_has_passed() -> None:
    two = Two()
    tasks = [process.loop.create_task(two.tick(8)) for process in (two.one, two.other)]
    two.fleet.pause(two.one.loop, 5.0)
    two.fleet.run(lambda: all(task.done() for task in tasks))
    assert min(two.of(two.one)) >= 5.0 > two.of(two.other)[1]
    two.end()


def test_what_a_process_has_sent_arrives_though_it_has_died() -> None:
    two = Two()
    network = MadeUpNetwork(0, loop=two.fleet.between)
    received: list[tuple[int, int]] = []
    network.attach(2, lambda sender, message: received.append((sender, here().number)), two.other.loop)
    two.one.loop.create_task(network.carry(1, 2, b"last words"))
    two.fleet.run(lambda: bool(network.messages))
    two.one.end()
    two.fleet.rest(1.0)
    assert received == [(1, 2)], "in the receiver's process"
    with pytest.raises(Crashed):
        here()
    two.end()


def test_nothing_of_a_process_that_has_died_acts_and_the_others_go_on() -> None:
    two = Two()

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await here().pause()
            two.seen.append((here().number, -1.0))

    two.one.loop.create_task(cleans_up())
    two.other.loop.create_task(two.tick(3))
    two.fleet.rest(0.5)
    two.one.end()
    two.fleet.rest(10.0)
    assert len(two.seen) == 3 == len(two.of(two.other))
    two.end()


@pytest.mark.parametrize("silent", [False, True])
def test_calls_to_the_dead(silent: bool) -> None:
    two = Two()
    network = MadeUpNetwork(0, loop=two.fleet.between, silent=silent)
    network.attach(2, lambda sender, message: None, two.other.loop)
    network.detach(2)
    call = two.one.loop.create_task(network.carry(1, 2, b"hello"))
    two.fleet.rest(60.0)
    assert call.done() is not silent
    assert silent or isinstance(call.exception(), ConnectionLost)
    two.end()
