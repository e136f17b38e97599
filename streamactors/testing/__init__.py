"""For tests of flows and connectors: deterministic simulation, and a real Kafka broker."""

from streamactors.testing.kafka_broker import KafkaBroker
from streamactors.testing.simulation import Faults, Scenario, SimulationResult, World, simulate

__all__ = ["Faults", "KafkaBroker", "Scenario", "SimulationResult", "World", "simulate"]
