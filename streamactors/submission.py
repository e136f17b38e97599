"""What is to be run: a flow and its configuration, checked, and the job that runs them.

A module of its own, since whoever imports the library need not run a job, and all that runs one takes long to load.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from streamactors.checkpoint.storage.contract import Files
from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.clock import SYSTEM, Clock
from streamactors.config import Config, Ray, Restart, require_supported
from streamactors.deploy.detached import refuse_to_detach
from streamactors.deploy.elsewhere import collect_on_ray, detach_on_ray, held_on_ray
from streamactors.deploy.keeper import Attend
from streamactors.deploy.local import deploy_locally
from streamactors.errors import InvalidConfig
from streamactors.graph.execution import choose_execution, why
from streamactors.graph.logical import LogicalGraph
from streamactors.graph.parallelism import Parallelism
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planned import placed
from streamactors.graph.planner import plan
from streamactors.listsink import ListSink
from streamactors.runtime.handled import HandledJob
from streamactors.runtime.job import Job, JobSpec
from streamactors.sinks import WriterSink
from streamactors.state.backends import require_installed

log = logging.getLogger("streamactors.job")


def job_here(
    graph: LogicalGraph,
    config: Config | None,
    *,
    restore: str | None,
    fresh: bool,
    resources: Mapping[str, Any] | None,
    drop_state: Collection[str] = (),
    claim: bool = False,
    clock: Clock = SYSTEM,
    files: Files | None = None,
) -> Job:
    """In this process, wherever it would be deployed."""
    spec = _spec(graph, config, restore, fresh, resources, drop_state, claim)
    return Job(spec, deploy=deploy_locally, clock=clock, files=files)


def deployed_job(
    graph: LogicalGraph,
    config: Config | None,
    *,
    restore: str | None,
    fresh: bool,
    resources: Mapping[str, Any] | None,
    drop_state: Collection[str] = (),
    claim: bool = False,
) -> HandledJob:
    """The job, here, or what stands for it where it runs elsewhere."""
    spec = _spec(graph, config, restore, fresh, resources, drop_state, claim)
    if isinstance(deployment := spec.config.deployment, Ray):
        return held_on_ray(_from_anywhere(spec), deployment)
    return Job(spec, deploy=deploy_locally, clock=SYSTEM)


async def collected(graph_with: Callable[[WriterSink[Any]], LogicalGraph], config: Config | None) -> list[Any]:
    """Run a flow afresh, wherever it is deployed, and return what has come to the sink that `graph_with` puts into
    it."""
    fresh = config is not None and config.checkpoints is not None
    if config is not None and isinstance(config.deployment, Ray):

        def spec_of(sink: WriterSink[Any]) -> JobSpec:
            return _from_anywhere(_spec(graph_with(sink), config, "latest", fresh, None, (), False))

        return await collect_on_ray(spec_of, config.deployment)
    here: ListSink[Any] = ListSink()
    await job_here(graph_with(here), config, restore="latest", fresh=fresh, resources=None).run()
    return here.values


async def detach(
    graph: LogicalGraph,
    config: Config,
    attend: Attend,
    *,
    restore: str | None,
    fresh: bool,
    drop_state: Collection[str] = (),
    claim: bool = False,
) -> None:
    """Start a job that outlives this process. Returns once it runs; raises what keeps it from."""
    deployment = refuse_to_detach(config)
    spec = _spec(graph, config, restore, fresh, None, drop_state, claim)
    await detach_on_ray(_from_anywhere(spec), deployment, attend)


def _from_anywhere(spec: JobSpec) -> JobSpec:
    """A relative path means something else in another process: and a storage that is empty there, a new beginning."""
    config, checkpoints, restore = spec.config, spec.config.checkpoints, spec.restore
    if checkpoints is not None:
        checkpoints = dataclasses.replace(checkpoints, storage=normalise_uri(checkpoints.storage))
        config = dataclasses.replace(config, checkpoints=checkpoints)
    if restore not in (None, "latest"):
        restore = normalise_uri(restore)
    return dataclasses.replace(spec, config=config, restore=restore, folder=os.getcwd())


def _spec(
    graph: LogicalGraph,
    config: Config | None,
    restore: str | None,
    fresh: bool,
    resources: Mapping[str, Any] | None,
    drop_state: Collection[str],
    claim: bool,
) -> JobSpec:
    config = config or Config()
    require_supported(config)
    config = _executed(graph, config, restore=restore)
    require_installed(config.state_backend)
    _check_autoscale(graph, config)

    def make_plan(max_parallelism: int | None, parallelism: Parallelism) -> PhysicalPlan:
        made = plan(
            graph,
            parallelism=parallelism.default,
            steps=parallelism.steps,
            max_parallelism=max_parallelism,
            checkpointing=config.checkpoints is not None,
            execution="batch" if config.execution == "batch" else "streaming",
        )
        placed(made, config)  # so that too few slots are refused, also to a rescale, before anything is touched
        return made

    # What is wrong with the flow is said before anything is opened.
    make_plan(config.max_parallelism, Parallelism(config.parallelism))
    return JobSpec(graph.name, make_plan, config, restore, fresh, tuple(drop_state), resources or {}, claim)


def _executed(graph: LogicalGraph, config: Config, *, restore: str | None) -> Config:
    """As it will run: `auto` decided; in batch without checkpoints, whatever else was asked for."""
    checkpointing, restarts = config.checkpoints is not None, config.restart not in (None, Restart.none())
    execution = choose_execution(graph, config.execution, checkpointing=checkpointing, restarts=restarts)
    if config.execution == "auto":
        log.info("%s: execution %r (%s)", graph.name, execution, why(graph, "auto", checkpointing=checkpointing))
    if execution == "streaming":
        return dataclasses.replace(config, execution=execution)
    if restore not in (None, "latest"):
        raise InvalidConfig(
            f"restore={restore!r}: execution = 'batch' begins from the start and restores nothing: leave restore out, "
            "or use execution = 'streaming'"
        )
    if checkpointing:
        log.warning("%s: execution = 'batch' takes no checkpoints: those that are configured are left out", graph.name)
    if config.autoscale is not None:
        log.warning("%s: execution = 'batch' is not rescaled: autoscale is left out", graph.name)
    return dataclasses.replace(config, execution=execution, checkpoints=None, autoscale=None)


def _check_autoscale(graph: LogicalGraph, config: Config) -> None:
    steps = () if config.autoscale is None else config.autoscale.steps or ()
    there = [node.uid for node in graph.nodes]
    if unknown := [step for step in steps if step not in there]:
        raise InvalidConfig(f"autoscale.steps: the flow has no step {unknown[0]!r}; it has: {', '.join(there)}")
