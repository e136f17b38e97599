"""What is simulated: a flow, how it is run, and what must come of it; and the command that replays one run of it."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from streamactors.api.dataflow import Dataflow
from streamactors.config import Config
from streamactors.testing.simulation.faults import Faults
from streamactors.testing.simulation.result import Check

FlowFactory = Callable[..., Dataflow]
"""Makes the flow anew for every process: with the World as its one argument, or with none."""

COMMAND: Final = "python -m streamactors.testing.simulation"


@dataclass(frozen=True)
class Scenario:
    """A flow with how it is to be run. `mode` names the checkpointing mode where `config` is drawn; `arguments` name
    the scenario on the command line."""

    flow: FlowFactory
    config: Config | None = None
    faults: Faults = field(default_factory=Faults)
    check: Check | None = None
    mode: str = "aligned"
    arguments: str | None = None
    usual_faults: Faults = field(default_factory=Faults)
    """Those that `arguments` stand for: a replay names what differs from them."""


def replay(scenario: Scenario, seed: int) -> str:
    """The command, for the end of an error message."""
    faults = scenario.faults.as_options(scenario.usual_faults)
    words = [COMMAND, scenario.arguments or _address(scenario.flow), f"--seed {seed}"]
    if faults:
        words.append(f"--faults {faults}")
    line = f"Replay: {' '.join(words)}"
    if scenario.arguments is None and (scenario.config is not None or scenario.check is not None):
        line += "\n(The command knows no config and no check: put them into a Scenario at module level, and name that.)"
    if _hashes_fixed():
        return line
    return f"{line}\n(Text hashes at random in this process. If that run is another one, set PYTHONHASHSEED=0 here.)"


def _address(flow: Any) -> str:
    module, name = getattr(flow, "__module__", None), getattr(flow, "__qualname__", "<")
    return f"{module}:{name}" if module and "<" not in name else "<module>:<a factory or Scenario at module level>"


def _hashes_fixed() -> bool:
    return not sys.flags.hash_randomization or os.environ.get("PYTHONHASHSEED", "random") != "random"
