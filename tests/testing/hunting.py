"""The hunt for mutants: runs begin with seed 0, dealt out over the mutant's scenarios; no seed is picked."""

from dataclasses import dataclass, replace
from typing import Final

from streamactors.errors import SimulationFailed
from streamactors.testing.simulation import Faults, scenario, simulate
from tests.testing import cluster_mutations, mutations, state_mutations
from tests.testing.mutants import MUTANTS

PLANTED: Final = (mutations, state_mutations, cluster_mutations)
"""The modules that know them."""
SEEDS: Final = 300
"""A mutant must be caught within so many."""


@dataclass(frozen=True)
class Catch:
    """`runs` made until it was caught, the last of them being this one. `symptom` is what the simulation said."""

    topology: str
    mode: str
    seed: int
    runs: int
    symptom: str


def hunt(name: str) -> Catch | None:
    """Seed after seed until the mutant is caught; None if it never is."""
    hunted = MUTANTS[name]
    with hunted.planted():
        for seed in range(SEEDS):
            topology, mode = hunted.place(seed)
            symptom = run(topology, mode, seed, hunted.faults)
            if symptom is not None:
                return Catch(topology, mode, seed, seed + 1, symptom)
    return None


def run(topology: str, mode: str, seed: int, faults: str) -> str | None:
    """What the simulation found wrong; None if nothing."""
    made = replace(mutations.OWN[topology], mode=mode) if topology in mutations.OWN else scenario(topology, mode)
    here = "" if "workers=" in faults else "workers=,"  # those of one process are hunted in one process
    try:
        simulate(made, seed=seed, faults=Faults.from_options(here + faults, made.faults))
    except SimulationFailed as failure:
        return str(failure).splitlines()[0].partition(": ")[2]
    return None
