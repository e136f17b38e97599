"""`streamactors run --detach`: a job that is left to its cluster once it runs."""

import functools
import shlex
from collections.abc import Mapping

import typer

from streamactors.api.dataflow import Dataflow
from streamactors.cli.printing import print_json_line
from streamactors.cli.running import RunOptions
from streamactors.config import Config
from streamactors.deploy.detached import address_of, refuse_to_detach
from streamactors.errors import InvalidConfig
from streamactors.observe.detached import attended
from streamactors.settings import redacted


def refuse(config: Config, given: Mapping[str, object]) -> None:
    """`given`: options that only a program which stays can serve. Raises InvalidConfig."""
    refuse_to_detach(config)
    if named := [option for option, value in given.items() if value]:
        raise InvalidConfig(
            f"{named[0]} does not go with --detach: this program does not stay; `streamactors serve` on the "
            "coordinator's node has the dashboard, REST API and metrics"
        )


async def run_detached(flow: Dataflow, config: Config, options: RunOptions) -> int:
    """The exit code. Raises what keeps the job from running."""
    from streamactors.submission import detach  # who only asks for help does not pay for it

    address = str(address_of(refuse_to_detach(config)))
    await detach(
        flow.graph(),
        config,
        functools.partial(attended, target=options.steered_as, otlp=options.otlp),
        restore=options.restore,
        fresh=options.fresh,
        drop_state=options.drop_state,
        claim=options.claim,
    )
    if options.json:
        print_json_line({"name": flow.name, "status": "running", "ray": redacted(address)})
    else:
        typer.echo(
            f"{flow.name} runs, detached, on the Ray cluster at {redacted(address)}. To look at it, and to end it:"
        )
        for command in ("status", "stop"):
            typer.echo(f"  streamactors {command} {shlex.quote(flow.name)} --ray {shlex.quote(redacted(address))}")
    return 0
