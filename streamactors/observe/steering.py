"""Makes a job steerable from outside for as long as a block lasts: its control, on a private socket, in the registry.

The web libraries are imported only here, when a job is started: `import streamactors` stays light.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from streamactors.checkpoint.storage.uris import normalise_uri
from streamactors.clock import SYSTEM
from streamactors.errors import ControlUnavailable
from streamactors.launch import JobHandle
from streamactors.observe import registry
from streamactors.settings import redacted

log = logging.getLogger("streamactors.control")


@asynccontextmanager
async def steered(handle: JobHandle, target: str | None = None) -> AsyncIterator[None]:
    """`streamactors list`, `status`, `savepoint`, `stop`, … find the job while the block lasts. `target`: the
    module:flow that it was started as. Raises ControlUnavailable."""
    try:
        from streamactors.observe.control import SteeredJob, control_app
    except ImportError as error:
        raise _missing(error) from error
    entry = entry_of(handle, target)
    job = SteeredJob(handle, entry, SYSTEM)
    async with job.operations(), registered(control_app([job]), entry), job.streams():
        yield


@asynccontextmanager
async def registered(app: Any, entry: registry.Entry) -> AsyncIterator[None]:
    """The application answers on a private socket of this machine, where it is found by the entry. Raises
    ControlUnavailable."""
    try:
        from streamactors.observe.server import serve
    except ImportError as error:
        raise _missing(error) from error
    with registry.place(SYSTEM.token()) as place:
        async with serve(app, place.listen()):
            place.publish(entry)
            try:
                yield
            finally:
                place.withdraw()


def _missing(error: ImportError) -> ControlUnavailable:
    return ControlUnavailable(f"{error.name} is missing here: pip install 'streamactors[web]'")


def entry_of(handle: JobHandle, target: str | None = None) -> registry.Entry:
    """What a job tells of where it runs."""
    checkpoints = handle.config.checkpoints
    return registry.Entry(
        flow=handle.name,
        pid=os.getpid(),
        started_ms=SYSTEM.time_ms(),
        storage=None if checkpoints is None else redacted(normalise_uri(checkpoints.storage)),
        target=target,
    )


@asynccontextmanager
async def steered_if_possible(handle: JobHandle, target: str | None = None) -> AsyncIterator[None]:
    """As `steered`; where that is not possible the job runs all the same, and the log says why it can't be steered."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(steered(handle, target))
        except (ControlUnavailable, OSError) as error:
            log.warning("%s: this job can't be steered from outside: %s", handle.name, error)
        yield
