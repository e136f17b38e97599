"""The last scene of `streamactors demo --dashboard`: the shop goes on, and the job runs until it is stopped."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Final

import typer

from streamactors.api.dataflow import Dataflow
from streamactors.cli.running import RunOptions, run_reporting
from streamactors.cli.serving import ServeOptions
from streamactors.clock import SYSTEM
from streamactors.config import Checkpoints, Config
from streamactors.demo.event_log import append, made_up_orders
from streamactors.launch import run_loop

ORDERS_PER_SECOND: Final = 300
WITHOUT_END: Final = 10**12
EVERY: Final = 0.2
"""Seconds between two growths of the log."""


def run_on(folder: Path, listen: str) -> int:
    """Until SIGINT or SIGTERM; the exit code. In a new folder below `folder`."""
    live = folder / "live"
    typer.echo("the shop goes on, and so does the job; Ctrl-C ends it")
    return run_loop(_run_on(live, listen))


async def _run_on(folder: Path, listen: str) -> int:
    # Not above: it needs connectors, which a package of the user's may hide from every other command.
    from streamactors.demo.orders import orders_flow

    flow = orders_flow(folder, follow=True, counts=True)
    checkpoints = Checkpoints((folder / "checkpoints").as_uri(), interval=dt.timedelta(seconds=2))
    async with asyncio.TaskGroup() as group:
        growing = group.create_task(_grow(folder / "events" / "orders.jsonl"))
        code = await _run(flow, Config(parallelism=2, checkpoints=checkpoints), listen, folder)
        growing.cancel()
    return code


async def _run(flow: Dataflow, config: Config, listen: str, folder: Path) -> int:
    options = RunOptions(
        restore=None,
        fresh=False,
        drop_state=(),
        claim=False,
        quiet=True,
        full_traceback=False,
        json=False,
        every=None,
        steered_as="streamactors.demo.orders:flow",
        serve=ServeOptions(listen, savepoints=(str(folder / "savepoints"),)),
    )
    return await run_reporting(flow, config, options)


async def _grow(log: Path) -> None:
    """At a steady pace; each order is dated as it comes."""
    orders = made_up_orders(WITHOUT_END, first=SYSTEM.time_ms(), apart=1000 / ORDERS_PER_SECOND)
    began, written = SYSTEM.monotonic(), 0
    while True:
        due = int((SYSTEM.monotonic() - began) * ORDERS_PER_SECOND)
        await SYSTEM.run_blocking(append, log, orders, due - written)
        written = due
        await SYSTEM.sleep(EVERY)
