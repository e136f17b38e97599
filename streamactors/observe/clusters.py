"""The detached jobs of a cluster, as those who look for jobs see them: beside the ones of this machine's registry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from streamactors.deploy.detached import Cluster, Ending
from streamactors.errors import ConnectionLost, JobNotRunning
from streamactors.observe import model
from streamactors.observe.registry import Entry, told

ANSWERS_WITHIN: Final = 60.0
"""Seconds for a coordinator that may just be started."""


@dataclass(frozen=True, slots=True)
class DetachedJob:
    entry: Entry
    cluster: Cluster

    def __str__(self) -> str:
        return told(self.entry)


def detached_jobs(cluster: Cluster) -> tuple[list[DetachedJob], list[str]]:
    """Those that run; and what was said instead of an answer."""
    found, silent = list[DetachedJob](), list[str]()
    for flow in cluster.flows():
        try:
            status, body = cluster.ask(flow, "GET", "/v1/jobs", b"", ANSWERS_WITHIN)
        except JobNotRunning:
            continue  # it has just ended
        except (TimeoutError, ConnectionLost) as error:
            silent.append(f"{flow}: its coordinator does not answer ({type(error).__name__})")
            continue
        if status == 200:
            found += [DetachedJob(_entry(job), cluster) for job in msgspec.json.decode(body, type=model.Jobs).jobs]
    return found, silent


def _entry(job: model.JobSummary) -> Entry:
    return Entry(flow=job.name, pid=job.pid, started_ms=job.started_ms, storage=job.storage, target=job.target)


def not_in(registered: Sequence[Entry], jobs: Sequence[DetachedJob]) -> list[DetachedJob]:
    """Without those that are on this machine, and in its registry."""
    known = {(entry.flow, entry.pid, entry.started_ms) for entry in registered}
    return [job for job in jobs if (job.entry.flow, job.entry.pid, job.entry.started_ms) not in known]


def last_status(ending: Ending) -> model.JobStatus | None:
    """What the job told of itself when it had ended."""
    return None if ending.told is None else msgspec.json.decode(ending.told, type=model.JobStatus)
