"""Jobs that nobody holds: they outlive the program that has started them, and are found again by their names.

What they are and how they have ended lies in the cluster's own store: settings hold secrets, which have no place among
checkpoints, and it ends with the cluster, as they do. See `keeper` for what runs them.
"""

import os
from typing import Final, Protocol
from urllib.parse import quote, unquote

import msgspec

from streamactors.config import Config, Ray
from streamactors.errors import InvalidConfig

END_KEPT: Final = 24 * 3600.0
"""Seconds for which the end of a job is told."""

Answer = tuple[int, bytes]
"""An HTTP status and a body."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a job has ended. `told`: its status, as its control had it; None where it never came to that."""

    flow: str
    token: str
    ended_ms: int
    status: str
    error: str | None = None
    told: bytes | None = None


class Cluster(Protocol):
    """Where detached jobs run, for whoever looks for them. Every call blocks, and raises ConnectionLost."""

    def flows(self) -> list[str]:
        """The names of those that run."""

    def ask(self, flow: str, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
        """Of a job's control. Raises JobNotRunning; TimeoutError after `timeout` seconds."""

    def ending(self, flow: str) -> Ending | None:
        """Of the latest job of that name, if it has ended within `END_KEPT`."""


def refuse_to_detach(config: Config) -> Ray:
    """The settings of a job that may outlive this process. Raises InvalidConfig."""
    if not isinstance(deployment := config.deployment, Ray):
        raise InvalidConfig(
            "--detach: this job runs in this very process, and ends with it: run it on a Ray cluster, by "
            'deployment = "ray" and ray.address, or as a service'
        )
    if address_of(deployment) in (None, "local"):
        raise InvalidConfig(
            "--detach: the Ray that is started for one job ends with this process: say which cluster to join, such as "
            "ray.address = 'auto' for that of this node"
        )
    return deployment


def address_of(settings: Ray) -> str | None:
    """Of the cluster to join: its own, else what Ray's environment variable says."""
    return settings.address or os.environ.get("RAY_ADDRESS") or None


# ----------------------------------------------------------------------------------------------------------------- keys
SUBMISSIONS: Final = "job/"


def submission_key(flow: str, token: str) -> str:
    return f"{SUBMISSIONS}{quote(flow, safe='')}/{token}"


def keeper_key(flow: str, token: str) -> str:
    """Of which keeper it is at present."""
    return f"keeper/{quote(flow, safe='')}/{token}"


def ending_key(flow: str) -> str:
    return f"ended/{quote(flow, safe='')}"


def flow_of(key: str) -> str:
    return unquote(key.split("/")[1])
