"""A flow's graph before it runs: as a Mermaid flowchart, as text, or for programs."""

from pathlib import Path
from typing import Any, Final

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.config import Config, Restart
from streamactors.errors import InvalidConfig, StorageFailed
from streamactors.graph import planner
from streamactors.graph.execution import choose_execution
from streamactors.graph.logical import LogicalGraph
from streamactors.graph.physical import PhysicalPlan
from streamactors.observe.views import graph_of

EXIT_CODES: Final = "Exit codes: 0; 2 refused: there is no such flow, it can't be planned, or a wrong option."
PAGE: Final = "```mermaid\n{}```\n"


def planned(graph: LogicalGraph, config: Config) -> PhysicalPlan:
    """Raises InvalidDataflow or InvalidConfig where it would not run."""
    checkpointing = config.checkpoints is not None
    restarts = config.restart not in (None, Restart.none())
    execution = choose_execution(graph, config.execution, checkpointing=checkpointing, restarts=restarts)
    return planner.plan(
        graph,
        parallelism=config.parallelism,
        max_parallelism=config.max_parallelism,
        checkpointing=checkpointing and execution == "streaming",
        execution=execution,
    )


def described(flow: Dataflow, config: Config) -> dict[str, Any]:
    """Nodes and edges as the REST API has them of a job that runs; `subtasks` and `channels` of the whole plan."""
    plan = planned(flow.graph(), config)
    content: dict[str, Any] = msgspec.to_builtins(graph_of(plan))
    return {
        "name": flow.name,
        "execution": plan.execution,
        "subtasks": len(plan.subtasks),
        "channels": sum(map(plan.channel_count, plan.edges)),
        **content,
        "mermaid": flow.to_mermaid(),
    }


def check_options(*, text: bool, json: bool, output: Path | None) -> None:
    """Raises InvalidConfig for those that don't go together."""
    if text + json + (output is not None) > 1:
        raise InvalidConfig("--text, --json and --output each ask for another form: give one of them")


def save(mermaid: str, path: Path) -> None:
    """A Markdown file shows the picture by itself on GitHub and in most editors; any other gets the bare chart."""
    try:
        path.write_text(PAGE.format(mermaid) if path.suffix == ".md" else mermaid, encoding="utf-8")
    except OSError as error:
        raise StorageFailed(f"can't write {path}: {error.strerror or error}") from error
