"""One flow: whether it can be loaded, planned and run with its settings; its storage, sources and sinks."""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from streamactors.api.dataflow import Dataflow
from streamactors.cli.doctor.storage import of_folder, of_storage
from streamactors.config import Config, RocksDB, require_supported
from streamactors.diagnosis import Finding, PlannedStep
from streamactors.errors import StreamactorsError
from streamactors.graph.logical import Node, SourceSpec
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planned import planned
from streamactors.operators.sink import SinkSpec
from streamactors.state.backends import require_installed

_LOG = logging.LoggerAdapter(logging.getLogger("streamactors.doctor"), {})


async def of_flow(flow: Dataflow, config: Config, seconds: float) -> list[Finding]:
    """`seconds` that each source and sink may take to answer."""
    try:
        require_supported(config)
        require_installed(config.state_backend)
        plan = planned(flow.graph(), config)
    except StreamactorsError as error:
        return [Finding("problem", f"flow {flow.name}", str(error))]
    told = f"steps: {len(plan.node)}, subtasks: {len(plan.subtasks)}, execution: {plan.execution}"
    findings = [Finding("ok", f"flow {flow.name}", told), *_promises(flow, config, plan), *_folders(config, plan)]
    findings += await _storage(config)
    answers = [_asked(node, _step(flow, node, plan, config), seconds) for node in flow.graph().nodes]
    return [*findings, *(found for answer in await asyncio.gather(*answers) for found in answer)]


async def _storage(config: Config) -> list[Finding]:
    if config.checkpoints is None:
        return []
    try:
        return await of_storage(config.checkpoints.storage, config.checkpoints.storage_options)
    except StreamactorsError as error:
        return [Finding("problem", "storage", str(error))]


def _promises(flow: Dataflow, config: Config, plan: PhysicalPlan) -> Iterator[Finding]:
    sources = [node.spec.source for node in flow.graph().nodes if isinstance(node.spec, SourceSpec)]
    if config.checkpoints is None and plan.execution == "streaming" and not all(source.bounded for source in sources):
        yield Finding(
            "warning",
            "checkpoints",
            "none: after a crash or a restart the job begins anew",
            "Config(checkpoints=…), or --storage and --interval",
        )


def _folders(config: Config, plan: PhysicalPlan) -> Iterator[Finding]:
    if config.state_backend == "rocksdb" or isinstance(config.state_backend, RocksDB):
        folder = config.state_backend.folder if isinstance(config.state_backend, RocksDB) else None
        yield from of_folder("rocksdb", folder, "RocksDB(folder=…)")
    if plan.execution == "batch":
        yield from of_folder("sort folder", config.sort_folder, "Config(sort_folder=…)")


# --------------------------------------------------------------------------------------------------- sources and sinks
def _step(flow: Dataflow, node: Node, plan: PhysicalPlan, config: Config) -> PlannedStep:
    checkpoints = config.checkpoints
    return PlannedStep(
        flow=flow.name,
        uid=node.uid,
        parallelism=plan.node[node.uid][0].parallelism,
        checkpointing=checkpoints is not None,
        exactly_once=checkpoints is not None and checkpoints.mode == "exactly-once",
        checkpoint_timeout=0.0 if checkpoints is None else checkpoints.timeout.total_seconds(),
        log=_LOG,
    )


async def _asked(node: Node, step: PlannedStep, seconds: float) -> Sequence[Finding]:
    """Named after the step."""
    what = f"{node.kind} {node.uid}"
    try:
        async with asyncio.timeout(seconds):
            return [replace(found, check=f"{what}: {found.check}") for found in await _diagnosed(node.spec, step)]
    except TimeoutError:
        remedy = "check its address and the network, or wait for longer: --timeout"
        return [Finding("problem", what, f"no answer within {seconds:g} s", remedy)]
    except StreamactorsError as error:
        return [Finding("problem", what, str(error))]
    except Exception as error:  # of a connector that is not ours
        return [Finding("problem", what, f"{type(error).__name__}: {error}")]


async def _diagnosed(spec: Any, step: PlannedStep) -> Sequence[Finding]:
    asked: Awaitable[Sequence[Finding]]
    match spec:
        case SourceSpec(source=source):
            asked = source.diagnose(step)
        case SinkSpec(sink=sink):
            asked = sink.diagnose(step)
        case _:
            return ()
    return await asked
