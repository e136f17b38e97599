"""A flow as a program of its own: `sa.main`, a script's last line."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streamactors.api.dataflow import Dataflow
from streamactors.config import Config, resolve
from streamactors.errors import StreamactorsError
from streamactors.launch import EXIT_REFUSED, JobHandle, run_loop, run_until_signalled

log = logging.getLogger("streamactors.job")


def main(flow: Dataflow, config: Config | None = None) -> None:
    """A script's last line: uvloop where there is one, logging, SIGTERM/SIGINT to a clean stop, exit code.

    Settings from the environment (`STREAMACTORS_…`) come before `config`. `streamactors list`, `status`, `savepoint`,
    `stop`, … find the job; its traces go where `OTEL_…` in the environment says. Exit codes: 0 finished or stopped, 1
    failed, 2 refused before it began, 130 interrupted a second time, or cancelled.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    try:
        resolved, _ = resolve(config, environ=os.environ)
        code = run_loop(run_until_signalled(flow, resolved, beside=_beside))
    except StreamactorsError as error:
        log.critical("%s", error)
        raise SystemExit(EXIT_REFUSED) from error
    raise SystemExit(code)


@asynccontextmanager
async def _beside(handle: JobHandle) -> AsyncIterator[None]:
    from streamactors.observe.exporting import traced_if_configured  # a program that only imports needs neither
    from streamactors.observe.steering import steered_if_possible

    async with traced_if_configured(handle), steered_if_possible(handle):
        yield
