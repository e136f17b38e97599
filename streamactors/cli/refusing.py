"""How a command ends that can't do what it was asked for: an error, for a person or for a program, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from streamactors.cli.failure import show
from streamactors.cli.problem import INTERRUPTED, print_problem, problem_of
from streamactors.errors import JobFailed, RequestFailed, StreamactorsError
from streamactors.launch import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED


@contextmanager
def refusals(full: bool = False, *, json: bool = False) -> Iterator[None]:
    """An error of ours ends the command: told, and as its exit code. `full`: with its whole traceback."""
    try:
        yield
    except StreamactorsError as error:
        tell(error, full=full, json=json)
        raise typer.Exit(EXIT_FAILED if isinstance(error, JobFailed | RequestFailed) else EXIT_REFUSED) from error
    except KeyboardInterrupt:
        if json:
            print_problem(INTERRUPTED)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def tell(error: BaseException, *, full: bool, json: bool) -> None:
    """On stderr."""
    if json:
        print_problem(problem_of(error, full=full))
    else:
        show(error, full=full)
