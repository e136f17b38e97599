"""Deterministic simulation: a whole job on virtual time, with faults drawn by seed (see docs/simulation.md)."""

from streamactors.testing.simulation.faults import Faults
from streamactors.testing.simulation.many import run_scenario
from streamactors.testing.simulation.result import Check, Outcome, SimulationResult
from streamactors.testing.simulation.run import simulate
from streamactors.testing.simulation.scenario import Scenario
from streamactors.testing.simulation.settings import MODES
from streamactors.testing.simulation.topologies import TOPOLOGIES, scenario
from streamactors.testing.simulation.world import World

__all__ = [
    "MODES",
    "TOPOLOGIES",
    "Check",
    "Faults",
    "Outcome",
    "Scenario",
    "SimulationResult",
    "World",
    "run_scenario",
    "scenario",
    "simulate",
]
