"""2,480 runs: every topology in every mode, a fifth of them over workers. `make simulate SEEDS=20000` makes more."""

from collections import Counter

import pytest

from streamactors.testing.simulation import MODES, TOPOLOGIES, run_scenario

SEEDS = 31


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_fault_breaks_it(topology: str, mode: str) -> None:
    struck: Counter[str] = Counter()
    restores = rescales = 0
    for seed in range(SEEDS):
        result = run_scenario(topology, mode, seed)
        struck.update(result.faults)
        restores += result.restores
        rescales += result.rescales
    kinds = {"kills", "power_losses", "actor_crashes", "storage_failures", "slow_storage", "channel_stalls", "stops"}
    kinds |= {"savepoints", "rewinds", "rescales"}
    assert kinds <= struck.keys(), "a fault that never strikes proves nothing"
    assert restores > SEEDS / 2 and rescales > SEEDS / 4
