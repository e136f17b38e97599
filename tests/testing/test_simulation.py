"""The simulation touches nothing real; a seed gives one run; a mistake is found, and can be replayed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from streamactors.errors import InvalidConfig, SimulationFailed
from streamactors.testing import Faults, SimulationResult, World, simulate
from streamactors.testing.simulation import MODES, TOPOLOGIES, Outcome, run_scenario
from tests.testing import simulated_flows as flows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str, hash_seed: str = "random") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def failing(flow: object, seeds: range = range(60)) -> SimulationFailed:
    for seed in seeds:
        try:
            simulate(flow, seed=seed)  # type: ignore[arg-type]
        except SimulationFailed as failure:
            return failure
    pytest.fail(f"no seed of {seeds} has found the mistake")


# ---------------------------------------------------------------------------------------------------------- determinism
def test_a_seed_gives_the_same_run_twice() -> None:
    first, second = (run_scenario("diamond", "unaligned", 5) for _ in range(2))
    assert first.trace_hash == second.trace_hash
    assert (first.faults, first.steps, first.virtual_seconds) == (second.faults, second.steps, second.virtual_seconds)
    assert run_scenario("diamond", "unaligned", 6).trace_hash != first.trace_hash


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    """However text hashes there: sets of tasks are in order all the same."""
    script = (
        "from streamactors.testing.simulation import MODES, TOPOLOGIES, run_scenario\n"
        "pairs = [(t, m) for n, t in enumerate(TOPOLOGIES) for m in list(MODES)[n % 2 :: 2]]\n"
        "print([run_scenario(topology, mode, 4).trace_hash for topology, mode in pairs])"
    )
    runs = [python("-c", script, hash_seed=seed) for seed in ("0", "1", "4242")]
    assert [run.stderr for run in runs] == ["", "", ""]
    assert len({run.stdout for run in runs}) == 1
    assert len(set(re.findall(r"[0-9a-f]{16}", runs[0].stdout))) == len(TOPOLOGIES) * len(MODES) // 2


def test_on_the_heap_no_thread_no_socket_and_no_file_is_touched() -> None:
    script = """
import sys, tempfile
from dataclasses import replace
from streamactors.testing.simulation import MODES, TOPOLOGIES, scenario
from streamactors.testing.simulation.run import simulate
from tests.testing.simulated_flows import totals

def all_of_them(seeds):
    for seed in seeds:
        for number, topology in enumerate(TOPOLOGIES):
            made = scenario(topology, list(MODES)[(seed + number) % len(MODES)])
            simulate(replace(made, faults=replace(made.faults, backends=())), seed=seed)
    simulate(totals, seed=1)

all_of_them(range(2))  # what is imported late
touched = []
REAL = ("open", "os.", "socket.", "subprocess.", "_thread.", "shutil.", "tempfile.", "fcntl.")
HARMLESS = {"socket.gethostname"}
sys.addaudithook(lambda event, _: touched.append(event) if event.startswith(REAL) and event not in HARMLESS else None)
all_of_them(range(2, 4))
found = touched[:]
assert not found, found[:10]
print("untouched")
"""
    run = python("-c", script)
    assert run.stdout.strip() == "untouched", run.stderr


def test_hours_take_seconds() -> None:
    result = simulate(flows.CALM, seed=1)
    assert result.virtual_seconds > 3600
    assert result.checkpoints > 60
    assert result.cpu_seconds < 60


# -------------------------------------------------------------------------------------------------------- a user's flow
@pytest.mark.parametrize("flow", [flows.totals, flows.reduced])
def test_a_sound_flow_passes_without_a_check_of_its_own(flow: object) -> None:
    results = [simulate(flow, seed=seed) for seed in range(30)]  # type: ignore[arg-type]
    assert sum(result.restores for result in results) > 5
    assert sum(sum(result.faults.values()) for result in results) > 50


def test_a_flow_with_its_own_source_is_run_too() -> None:
    assert simulate(flows.without_a_world, seed=3).processes >= 1


def test_a_check_is_given_the_output_and_the_state() -> None:
    seen: list[Outcome] = []

    def check(outcome: Outcome) -> None:
        seen.append(outcome)
        wanted = [value for values in flows.numbers(outcome.world).values() for value in values]
        assert sorted(value for _, value in outcome.output()) == sorted(wanted)
        totals = {
            key: sum(value for value in wanted if flows.key_of(value) == key) for key in map(flows.key_of, wanted)
        }
        assert outcome.states["total"]["total"] == totals

    for seed in range(5):
        simulate(flows.totals, seed=seed, check=check)
    assert len(seen) == 5


def test_what_a_check_asserts_fails_the_run() -> None:
    def check(outcome: Outcome) -> None:
        assert not outcome.output(), "there is output"

    with pytest.raises(SimulationFailed, match=r"seed 1: there is output[\s\S]*Replay: "):
        simulate(flows.totals, seed=1, check=check)


def test_a_flow_that_keeps_its_state_in_memory_is_found_and_replayed_by_one_command() -> None:
    failure = failing(flows.forgetful)
    command = re.search(r"Replay: python -m (.*)", str(failure))
    assert command is not None
    assert "tests.testing.simulated_flows:forgetful --seed" in command[1]
    run = python("-m", *command[1].split())
    assert run.returncode == 1
    assert str(failure).splitlines()[0] in run.stderr


def test_state_that_is_changed_in_place_is_found() -> None:
    failure = failing(flows.in_place, range(3))
    assert "operator 'seen', state 'seen'" in str(failure) and "changed in place" in str(failure)


def test_a_flow_that_never_ends_is_found() -> None:
    """A record that can't be processed in any attempt."""

    def flow(world: World) -> sa.Dataflow:
        def refuse(value: int) -> int:
            raise ValueError("always")

        made = sa.Dataflow("refusing")
        made.source("numbers", world.source([[1]])).map(refuse).sink("out", world.sink())
        return made

    with pytest.raises(SimulationFailed, match="for no reason that was put in: RecordFailed: .*ValueError: always"):
        simulate(flow, seed=0, faults=Faults.none())


def test_the_guide_holds() -> None:
    """Its examples run as they stand there, a few seeds of them."""
    guide = (ROOT / "docs" / "simulation.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", guide, re.DOTALL)).replace("range(100):", "range(10):")
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(code, "docs/simulation.md", "exec"), names)
    tests = [test for name, test in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


# ------------------------------------------------------------------------------------------------------------- refusals
async def test_it_is_refused_inside_a_running_loop() -> None:
    with pytest.raises(InvalidConfig, match="plain `def`"):
        simulate(flows.totals, seed=1)


def test_a_configuration_without_checkpoints_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="under checkpoints"):
        simulate(flows.totals, seed=1, config=sa.Config())


def test_faults_go_through_the_command_line() -> None:
    faults = Faults(kills=0, parallelism=(1, 7), modes=("aligned", "unaligned"), spread=2.5)
    text = faults.as_options()
    assert text == "kills=0,parallelism=1/7,modes=aligned/unaligned,spread=2.5"
    assert Faults.from_options(text) == faults
    with pytest.raises(InvalidConfig, match="'floods' is unknown"):
        Faults.from_options("floods=1")
    with pytest.raises(InvalidConfig, match="whole number"):
        Faults(kills=-1)


# --------------------------------------------------------------------------------------------------------- command line
def test_many_runs_in_worker_processes() -> None:
    run = python("-m", "streamactors.testing.simulation", "--seeds", "24", "--jobs", "2")
    assert run.returncode == 0, run.stderr
    rows = dict(re.findall(r"^([a-zA-Z: ]+?)\s+([\d.]+)$", run.stdout, re.MULTILINE))
    assert rows["runs"] == "24" and rows["failed"] == "0"
    assert int(rows["restores"]) > 0 and int(rows["fault: kills"]) > 0


def test_one_run_and_its_trace() -> None:
    arguments = ("-m", "streamactors.testing.simulation", "--topology", "union", "--mode", "aligned", "--seed", "3")
    plain, traced = python(*arguments), python(*arguments, "--trace")
    assert plain.returncode == traced.returncode == 0
    shown = re.search(r"trace hash (\w+)", plain.stdout)
    assert shown is not None and f"trace hash {shown[1]}" in traced.stdout
    assert len(traced.stdout.splitlines()) > 500


@pytest.mark.parametrize("target", ["nothing", "tests.testing.simulated_flows:missing"])
def test_a_flow_that_is_not_there_is_refused(target: str) -> None:
    run = python("-m", "streamactors.testing.simulation", target, "--seed", "1")
    assert run.returncode == 2 and target in run.stderr


def test_the_result_says_what_has_happened() -> None:
    result = run_scenario("pipeline", "aligned", 2)
    assert isinstance(result, SimulationResult)
    assert result.seed == 2 and result.processes >= 1 and result.attempts >= 1 and result.checkpoints >= 1
