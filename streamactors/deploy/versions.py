"""What has to be the same in all processes of a job, since they send each other code and values."""

import importlib.metadata
import platform
from typing import NamedTuple

from streamactors.errors import ClusterUnfit


class About(NamedTuple):
    """Where a process of a job runs, and what has to be the same in all of them."""

    node: str
    python: str
    streamactors: str
    msgspec: str


def about() -> About:
    python = ".".join(platform.python_version_tuple()[:2])
    versions = (importlib.metadata.version(package) for package in ("streamactors", "msgspec"))
    return About(platform.node(), python, *versions)


def refuse_another(who: str, there: About, here: About, starter: str) -> None:
    """Raises ClusterUnfit where `who` has not what `starter` has, which is here."""
    for what, its, ours in list(zip(About._fields, there, here, strict=True))[1:]:
        if its != ours:
            raise ClusterUnfit(
                f"{who} runs with {what} {its} on node {there.node!r}, and {starter} with {what} {ours} on node "
                f"{here.node!r}: install the same on every node"
            )
