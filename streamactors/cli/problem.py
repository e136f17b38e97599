"""One error, for a program: an object on one line of stderr, `{"error": {"code": …, "message": …, …}}`.

Invariant: whatever ends a command that was asked for JSON, its last line on stderr is such an object, and its exit code
is the same as without. Codes are stable: the class of the error, or what the job that was asked has answered.
"""

import itertools
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import msgspec
import typer

from streamactors.cli.failure import chain, own_error, own_frame
from streamactors.errors import (
    AmbiguousJob,
    CheckpointFailed,
    CorruptCheckpoint,
    InvalidConfig,
    InvalidDataflow,
    JobFailed,
    MissingExtra,
    NoSuchJob,
    RecordFailed,
    RequestFailed,
    StorageFailed,
    StorageInUse,
    StreamactorsError,
)
from streamactors.launch import EXIT_FAILED

ADVICE: Final[tuple[tuple[type[StreamactorsError], str], ...]] = (
    (JobFailed, "mend the cause; under checkpoints the same command goes on from the last one"),
    (MissingExtra, "install the extra that the message names"),
    (AmbiguousJob, "name the one that is meant by its process id or its storage: streamactors list"),
    (NoSuchJob, "see what runs: streamactors list"),
    (RequestFailed, "see how the job does: streamactors status, and its log"),
    (StorageInUse, "end the other process, or wait until it has ended"),
    (StorageFailed, "see to the storage, then give the same command again"),
    (CorruptCheckpoint, "see which others there are: streamactors inspect; restore one of those"),
    (CheckpointFailed, "give the same command again; the log of the job says more"),
    (InvalidDataflow, "mend the flow; streamactors doctor MODULE:FLOW checks it"),
    (InvalidConfig, "mend the setting or the option that the message names"),
)
"""The first that fits. Where none does, the message says what to do."""
USAGE: Final = "see what there is: --help"


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`where`: the line of the user's own code; `operator`, `key`, `origin`: of the record in process; `traceback`:
    all of it, where it was asked for or nobody foresaw the error."""

    code: str
    message: str
    advice: str | None
    where: str | None = None
    operator: str | None = None
    key: str | None = None
    origin: str | None = None
    traceback: str | None = None


def problem_of(error: BaseException, *, full: bool = False) -> Problem:
    links = chain(error)
    own = own_error(error)
    record = next((link for link in links if isinstance(link, RecordFailed)), None)
    return Problem(
        code=code_of(error),
        message=_message(error, own),
        advice=next((advice for kind, advice in ADVICE if isinstance(error, kind)), None),
        where=None if own is None else own_frame(own),
        operator=None if record is None else record.uid,
        key=None if record is None or record.key is None else repr(record.key),
        origin=None if record is None else record.origin,
        traceback="".join(traceback.format_exception(error)) if full else None,
    )


def _message(error: BaseException, own: BaseException | None) -> str:
    if own is None:
        return str(error)
    told = f"{type(own).__name__}: {own}"
    return told if isinstance(error, JobFailed | RecordFailed) else f"{error}: {told}"


def code_of(error: BaseException) -> str:
    """Such as `invalid-config`."""
    if isinstance(error, RequestFailed):
        return error.code
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()


def print_problem(problem: Problem) -> None:
    typer.echo(msgspec.json.encode({"error": problem}), err=True)


INTERRUPTED: Final = Problem(code="interrupted", message="interrupted before it was done", advice=None)


@runtime_checkable
class Refusal(Protocol):
    """What the command line raises of itself. Its class is click's, or that of typer's own copy, by typer's version."""

    exit_code: int

    def format_message(self) -> str: ...


# ----------------------------------------------------------------------------------------------------- a whole command
def wants_json(arguments: Sequence[str]) -> bool:
    """As the options say; they may be what can't be understood."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    logs = "--log-format=json" in own or ("--log-format", "json") in itertools.pairwise(own)
    return "--json" in own or logs


def run_for_programs(command: Callable[[], Any]) -> None:
    """Ends the process. What the command line itself refuses is an object too, and so is what nobody foresaw."""
    try:
        code = command()
    except typer.Abort:
        print_problem(INTERRUPTED)
        code = EXIT_FAILED
    except Exception as error:
        print_problem(_own(error) if isinstance(error, Refusal) else _unforeseen(error))
        code = error.exit_code if isinstance(error, Refusal) else EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)


def _own(error: Refusal) -> Problem:
    return Problem(code="usage", message=error.format_message(), advice=USAGE)


def _unforeseen(error: Exception) -> Problem:
    message = f"{type(error).__name__}: {error}"
    return Problem(code="internal-error", message=message, advice=None, traceback=traceback.format_exc())
