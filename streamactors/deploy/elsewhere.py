"""The way to deployments that need an extra: imported only when a job is to be run there."""

import os

from streamactors.config import Ray
from streamactors.errors import MissingExtra
from streamactors.runtime.handled import HandledJob
from streamactors.runtime.job import JobSpec


def held_on_ray(spec: JobSpec, settings: Ray) -> HandledJob:
    """Raises MissingExtra; InvalidDataflow for what can't be sent to other processes."""
    _set_up_ray(settings)
    try:
        from streamactors.deploy import ray
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] != "ray":
            raise
        raise MissingExtra("deployment = Ray(…) needs the extra `ray`: pip install 'streamactors[ray]'") from error
    return ray.held_on_ray(spec, settings)


def _set_up_ray(settings: Ray) -> None:
    """What Ray reads when it is imported, and the user has not set: it tells its makers nothing, and where it is
    started for one job on this machine, it listens on the loopback only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if settings.address is None and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
