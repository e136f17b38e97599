"""2,560 runs: every topology in every mode, some of them over workers. `make simulate SEEDS=20000` makes more."""

from collections import Counter
from dataclasses import replace

import pytest

from streamactors.testing.simulation import MODES, TOPOLOGIES, SimulationResult, run_scenario, scenario

SEEDS = 32
AS_DRAWN = 16
"""So many of them may be over workers, whose runs take twice as long; the others are in one process."""


def run(topology: str, mode: str, seed: int) -> SimulationResult:
    usual = scenario(topology, mode).faults
    return run_scenario(topology, mode, seed, faults=usual if seed < AS_DRAWN else replace(usual, workers=()))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_fault_breaks_it(topology: str, mode: str) -> None:
    struck: Counter[str] = Counter()
    restores = rescales = 0
    for seed in range(SEEDS):
        result = run(topology, mode, seed)
        struck.update(result.faults)
        restores += result.restores
        rescales += result.rescales
    kinds = {"kills", "power_losses", "actor_crashes", "storage_failures", "slow_storage", "channel_stalls", "stops"}
    kinds |= {"savepoints", "rewinds", "rescales"}
    assert kinds <= struck.keys(), "a fault that never strikes proves nothing"
    assert restores > SEEDS / 2 and rescales > SEEDS / 4
