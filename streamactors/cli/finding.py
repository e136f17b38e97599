"""Which job a command means: of this machine's, and of a Ray cluster's detached ones where one is named."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Final

import typer

from streamactors.deploy.detached import Cluster, Ending
from streamactors.errors import AmbiguousJob, NoSuchJob, StreamactorsError
from streamactors.observe import registry
from streamactors.observe.client import Job
from streamactors.observe.clusters import detached_jobs, not_in
from streamactors.observe.registry import RunningJob

RAY_ADDRESS: Final = "RAY_ADDRESS"

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help=f"Look among the detached jobs of this Ray cluster too, such as auto; or set {RAY_ADDRESS}.",
    ),
]


@contextmanager
def all_jobs(ray: str | None) -> Iterator[list[Job]]:
    """Of this machine and of the cluster, which answers while the block lasts. Raises ClusterUnfit for a cluster that
    was asked for by name; one that the environment names may be away."""
    local = _registered()
    with ExitStack() as stack:
        yield [*local, *_detached(_joined(ray, stack), local)]


@contextmanager
def found(wanted: str | None, ray: str | None) -> Iterator[Job]:
    """The job that is meant. Raises NoSuchJob, ClusterUnfit."""
    with found_or_ended(wanted, ray) as (job, ending):
        if job is None:
            assert ending is not None
            raise NoSuchJob(f"job {ending.flow!r} does not run any more: {how_it_ended(ending)}")
        yield job


@contextmanager
def found_or_ended(wanted: str | None, ray: str | None) -> Iterator[tuple[Job | None, Ending | None]]:
    """As `found`; a detached job that has ended too, where none of that name runs."""
    local = _registered()
    with ExitStack() as stack:
        if ray is None and (job := _meant(wanted, local)) is not None:
            yield job, None  # without asking a cluster, which takes seconds
            return
        cluster = _joined(ray, stack)
        jobs: list[Job] = [*local, *_detached(cluster, local)]
        try:
            job = registry.find(wanted, jobs)
        except AmbiguousJob:
            raise
        except NoSuchJob:
            ending = None if cluster is None or wanted is None else cluster.ending(wanted)
            if ending is None:
                raise
            yield None, ending
            return
        yield job, None


def how_it_ended(ending: Ending) -> str:
    return ending.status + (f": {ending.error}" if ending.error else "")


def _meant(wanted: str | None, local: list[RunningJob]) -> Job | None:
    """None where that needs the cluster to be asked."""
    if wanted is None and os.environ.get(RAY_ADDRESS):
        return None
    try:
        return registry.find(wanted, local)
    except AmbiguousJob:
        raise
    except NoSuchJob:
        if not os.environ.get(RAY_ADDRESS):
            raise
        return None


def _registered() -> list[RunningJob]:
    jobs, refused = registry.running()
    for reason in refused:
        _warn(reason)
    return jobs


def _joined(ray: str | None, stack: ExitStack) -> Cluster | None:
    address = ray or os.environ.get(RAY_ADDRESS)
    if not address:
        return None
    from streamactors.deploy.elsewhere import cluster_at  # who looks on this machine only does not pay for it

    try:
        return stack.enter_context(cluster_at(address))
    except StreamactorsError as error:
        if ray is not None:
            raise
        _warn(f"{RAY_ADDRESS}: {error}")
        return None


def _detached(cluster: Cluster | None, local: list[RunningJob]) -> list[Job]:
    if cluster is None:
        return []
    jobs, silent = detached_jobs(cluster)
    for reason in silent:
        _warn(reason)
    return list(not_in([job.entry for job in local], jobs))


def _warn(reason: str) -> None:
    typer.echo(f"warning: {reason}", err=True)
