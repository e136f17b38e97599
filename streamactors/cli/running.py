"""`streamactors run`: a job from its start to its exit code."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from streamactors.api.dataflow import Dataflow
from streamactors.cli.live import Display, LiveDisplay, LogDisplay, SilentDisplay, follow
from streamactors.cli.problem import INTERRUPTED, print_problem
from streamactors.cli.progress import ProgressMeter
from streamactors.cli.refusing import tell
from streamactors.cli.serving import ServeOptions, beside
from streamactors.clock import SYSTEM
from streamactors.config import Config
from streamactors.launch import EXIT_INTERRUPTED, JobHandle, run_until_signalled

EVERY_ON_A_TERMINAL = 0.5
EVERY_IN_A_LOG = 10.0


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`every`: seconds between two reports, None for what suits the display. `steered_as`: the module:flow by which the
    control of the job calls it, None for none."""

    restore: str | None
    fresh: bool
    drop_state: Sequence[str]
    claim: bool
    quiet: bool
    full_traceback: bool
    json: bool
    every: float | None
    steered_as: str | None = None
    serve: ServeOptions = field(default_factory=ServeOptions)
    otlp: str | None = None


async def run_reporting(flow: Dataflow, config: Config, options: RunOptions) -> int:
    """The exit code. Raises what keeps the job from starting at all."""
    failures: list[BaseException] = []
    handles: list[JobHandle] = []
    reporting: list[asyncio.Task[None]] = []
    meter = ProgressMeter(flow.name, [node.uid for node in flow.graph().nodes])

    with contextlib.ExitStack() as stack:
        display, every = _display(options, stack)

        @contextlib.asynccontextmanager
        async def reported(handle: JobHandle) -> AsyncIterator[None]:
            """From before it starts: a restore may take long."""
            from streamactors.observe.exporting import traced_if_configured  # nobody else needs it

            task = asyncio.ensure_future(follow(handle, meter, display, options.every or every, SYSTEM))
            reporting.append(task)
            async with traced_if_configured(handle, options.otlp), beside(options.steered_as, options.serve)(handle):
                yield

        try:
            code = await run_until_signalled(
                flow,
                config,
                restore=options.restore,
                fresh=options.fresh,
                drop_state=options.drop_state,
                claim=options.claim,
                watch=handles.append,
                on_failure=failures.append,
                beside=reported,
            )
        finally:
            for task in reporting:
                task.cancel()
            await asyncio.gather(*reporting, return_exceptions=True)
            for handle in handles:
                display.show(meter.measure(handle.metrics(), SYSTEM.monotonic()))
    for failure in failures:
        tell(failure, full=options.full_traceback, json=options.json)
    if options.json and not failures and code == EXIT_INTERRUPTED:
        print_problem(INTERRUPTED)
    return code


def _display(options: RunOptions, stack: contextlib.ExitStack) -> tuple[Display, float]:
    if options.quiet:
        return SilentDisplay(), EVERY_IN_A_LOG
    if sys.stdout.isatty() and not options.json:
        return stack.enter_context(LiveDisplay(Console())), EVERY_ON_A_TERMINAL
    return LogDisplay(), EVERY_IN_A_LOG
