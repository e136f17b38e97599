"""For tests of operators, flows and connectors: harnesses, deterministic simulation, and a real Kafka broker."""

from streamactors.elements import Watermark
from streamactors.sources import CRASH
from streamactors.testing.feed import CHECKPOINT, At
from streamactors.testing.flows import FlowResult, run_flow
from streamactors.testing.harness import HarnessSnapshot, OperatorHarness
from streamactors.testing.kafka_broker import KafkaBroker
from streamactors.testing.kafka_topics import KafkaTopics, session_broker
from streamactors.testing.simulation import Faults, Scenario, SimulationResult, World, simulate
from streamactors.testing.steps import Windowing

__all__ = [
    "CHECKPOINT",
    "CRASH",
    "At",
    "Faults",
    "FlowResult",
    "HarnessSnapshot",
    "KafkaBroker",
    "KafkaTopics",
    "OperatorHarness",
    "Scenario",
    "SimulationResult",
    "Watermark",
    "Windowing",
    "World",
    "run_flow",
    "session_broker",
    "simulate",
]
