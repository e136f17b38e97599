"""`streamactors serve`, and `--listen` of `streamactors run`: the REST API and the metrics at an address."""

import asyncio
import contextlib
import functools
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from streamactors.cli.printing import print_json_line
from streamactors.cli.refusing import refusals
from streamactors.launch import Beside, JobHandle, run_loop
from streamactors.observe.extras import metrics_missing
from streamactors.observe.network import DEFAULT, TOKEN, Served, served, serving_all
from streamactors.observe.steering import steered_if_possible

EXIT_CODES = "Exit codes: 0 ended by SIGINT or SIGTERM; 2 refused, such as an address that is in use."

AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="A name by which it is reached, besides addresses."),
]
Savepoints = Annotated[
    list[str] | None,
    typer.Option("--savepoints", metavar="URI", help="A folder below which savepoints may be asked for there."),
]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """`listen` None: nowhere."""

    listen: str | None = None
    hosts: Sequence[str] = ()
    savepoints: Sequence[str] = ()


def serve_options(
    listen: str | None, hosts: Sequence[str] | None = None, savepoints: Sequence[str] | None = None, *, dashboard: bool
) -> ServeOptions:
    """A dashboard that no address is named for has its own."""
    return ServeOptions(listen or (DEFAULT if dashboard else None), hosts or (), savepoints or ())


def beside(steered_as: str | None, options: ServeOptions) -> Beside:
    """What is open while `streamactors run` runs a job. `steered_as`: see `RunOptions`."""
    return functools.partial(_beside, steered_as=steered_as, options=options)


@asynccontextmanager
async def _beside(handle: JobHandle, steered_as: str | None, options: ServeOptions) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if steered_as is not None:
            await stack.enter_async_context(steered_if_possible(handle, steered_as))
        if options.listen is not None:
            told = await stack.enter_async_context(_served(handle, options.listen, steered_as, options))
            _print(told)
        yield


def _served(
    handle: JobHandle, listen: str, target: str | None, options: ServeOptions
) -> AbstractAsyncContextManager[Served]:
    return served(handle, listen, hosts=options.hosts, savepoints=options.savepoints, target=target)


def serve(
    listen: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Where; port 0 for any that is free.")] = DEFAULT,
    hosts: AllowHost = None,
    savepoints: Savepoints = None,
    json: Annotated[bool, typer.Option("--json", help="For programs: where it serves, as one object a line.")] = False,
) -> None:
    """Serve dashboard, REST API and metrics of all jobs of this user on this machine, until SIGINT or SIGTERM.

    Changes need the token in the environment variable STREAMACTORS_TOKEN; without it, one is made up and printed. At
    other addresses than loopback there must be one, and reading needs it too.
    """
    with refusals(json=json):
        run_loop(_serve(listen, ServeOptions(listen, hosts or (), savepoints or ()), as_json=json))


async def _serve(listen: str, options: ServeOptions, *, as_json: bool) -> int:
    async with serving_all(listen, hosts=options.hosts, savepoints=options.savepoints) as told:
        if as_json:
            print_json_line(_places(told))
        _print(told)
        await _signalled()
    return 0


async def _signalled() -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
            stack.callback(loop.remove_signal_handler, number)
        await ended.wait()


def _places(told: Served) -> dict[str, str | None]:
    metrics = f"{told.url}/metrics" if metrics_missing() is None else None
    return {"rest": f"{told.url}/api/v1/jobs", "metrics": metrics, "dashboard": f"{told.url}/dashboard/"}


def _print(told: Served) -> None:
    """On stderr: a token is for whoever sits here, and not for what reads the output."""
    places = _places(told)
    metrics = f"metrics: {places['metrics']}" if places["metrics"] else f"({metrics_missing()})"
    typer.echo(f"REST API: {places['rest']}  {metrics}", err=True)
    typer.echo(f"Dashboard: {places['dashboard']}", err=True)
    if told.generated:
        typer.echo(f"Token for changes, shown once (set {TOKEN} to choose it): {told.token}", err=True)
