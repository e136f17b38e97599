"""A flow's graph before it runs: as a Mermaid flowchart, as text, or for programs."""

from pathlib import Path
from typing import Any, Final

import msgspec

from streamactors.api.dataflow import Dataflow
from streamactors.cli.graph_picture import picture
from streamactors.config import Config
from streamactors.errors import InvalidConfig, StorageFailed
from streamactors.graph.placement import Placement
from streamactors.graph.planned import placed, planned
from streamactors.observe.views import graph_of

EXIT_CODES: Final = "Exit codes: 0; 2 refused: there is no such flow, it can't be planned, or a wrong option."
PAGE: Final = "```mermaid\n{}```\n"


def described(flow: Dataflow, config: Config, workers: int | None = None) -> dict[str, Any]:
    """Nodes and edges as the REST API has them of a job that runs; `subtasks` and `channels` of the whole plan; where
    there are several, `workers`: the subtasks of each, and how they were placed."""
    plan = planned(flow.graph(), config)
    placement = placed(plan, config, workers)
    content: dict[str, Any] = msgspec.to_builtins(graph_of(plan))
    return {
        "name": flow.name,
        "execution": plan.execution,
        "subtasks": len(plan.subtasks),
        "channels": sum(map(plan.channel_count, plan.edges)),
        **content,
        **({} if placement is None else _placed(placement)),
        "mermaid": flow.to_mermaid(config, workers=workers),
    }


def _placed(placement: Placement) -> dict[str, Any]:
    slices = [list(map(str, slice)) for slice in placement.slices]
    return {"strategy": placement.strategy, "slots": placement.slots, "workers": slices}


def drawn(flow: Dataflow, config: Config) -> str:
    """As SVG."""
    return picture(flow.name, graph_of(planned(flow.graph(), config)))


def check_options(*, text: bool, json: bool, svg: bool, output: Path | None) -> None:
    """Raises InvalidConfig for those that don't go together."""
    if text + json + (svg or output is not None) > 1:
        raise InvalidConfig("--text, --json and --svg or --output each ask for another form: give one of them")


def save(chart: str, path: Path) -> None:
    """A Markdown file shows the picture by itself on GitHub and in most editors; any other gets the bare chart."""
    try:
        path.write_text(PAGE.format(chart) if path.suffix == ".md" else chart, encoding="utf-8")
    except OSError as error:
        raise StorageFailed(f"can't write {path}: {error.strerror or error}") from error
