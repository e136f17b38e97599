"""The plan and the placement by which a flow would run under a Config, for whoever shows them. Pure."""

from streamactors.config import Config, Ray, Restart
from streamactors.graph.execution import choose_execution
from streamactors.graph.logical import LogicalGraph
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.placement import Placement, place
from streamactors.graph.planner import plan


def planned(graph: LogicalGraph, config: Config) -> PhysicalPlan:
    """Raises InvalidDataflow or InvalidConfig where it would not run."""
    checkpointing = config.checkpoints is not None
    restarts = config.restart not in (None, Restart.none())
    execution = choose_execution(graph, config.execution, checkpointing=checkpointing, restarts=restarts)
    return plan(
        graph,
        parallelism=config.parallelism,
        max_parallelism=config.max_parallelism,
        checkpointing=checkpointing and execution == "streaming",
        execution=execution,
    )


def placed(plan: PhysicalPlan, config: Config, workers: int | None = None) -> Placement | None:
    """`workers`: on so many, else on those of the deployment; None where there are none."""
    if isinstance(ray := config.deployment, Ray):
        return place(plan, workers or ray.workers, ray.strategy, slots=ray.slots)
    return None if workers is None else place(plan, workers)
