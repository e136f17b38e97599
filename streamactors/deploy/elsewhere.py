"""The way to deployments that need an extra: imported only when a job is to be run there."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from streamactors.config import Ray
from streamactors.deploy.detached import Cluster
from streamactors.deploy.keeper import Attend
from streamactors.errors import MissingExtra
from streamactors.runtime.handled import HandledJob
from streamactors.runtime.job import JobSpec
from streamactors.sinks import WriterSink


def held_on_ray(spec: JobSpec, settings: Ray) -> HandledJob:
    """Raises MissingExtra; InvalidDataflow for what can't be sent to other processes."""
    job: HandledJob = _ray(settings.address).held_on_ray(spec, settings)
    return job


async def collect_on_ray(spec_of: Callable[[WriterSink[Any]], JobSpec], settings: Ray) -> list[Any]:
    """What has come to the sink that `spec_of` is given. Raises as `held_on_ray`, and what the job does."""
    values: list[Any] = await _ray(settings.address).collect_on_ray(spec_of, settings)
    return values


async def detach_on_ray(spec: JobSpec, settings: Ray, attend: Attend) -> None:
    """Returns once the job runs, whoever leaves. Raises MissingExtra, and what keeps it from running."""
    await _ray(settings.address).detach_on_ray(spec, settings, attend)


def cluster_at(address: str) -> AbstractContextManager[Cluster]:
    """Raises MissingExtra, and ClusterUnfit on entering."""
    cluster: AbstractContextManager[Cluster] = _ray(address).cluster_at(address)
    return cluster


def _ray(address: str | None) -> Any:
    _set_up_ray(address)
    try:
        from streamactors.deploy import ray
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] != "ray":
            raise
        raise MissingExtra("deployment = Ray(…) needs the extra `ray`: pip install 'streamactors[ray]'") from error
    return ray


def _set_up_ray(address: str | None) -> None:
    """What Ray reads when it is imported, and the user has not set: it tells its makers nothing, it leaves none out of
    lines that differ in their numbers only, and where it is started for one job on this machine, it listens on the
    loopback only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if address is None and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
