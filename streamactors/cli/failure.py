"""One error, for the person who has to act: their own line of code first, then which operator, key and record."""

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

import streamactors
from streamactors.errors import CorruptCheckpoint, JobFailed, RecordFailed, RequestFailed, StreamactorsError

_PACKAGE = Path(streamactors.__file__).parent
_OURS = (str(_PACKAGE), str(_PACKAGE.parent / "connectors"))
_PATHS = sysconfig.get_paths()
_INSTALLED = (_PATHS["purelib"], _PATHS["platlib"])
_STANDARD = (_PATHS["stdlib"], _PATHS["platstdlib"], "<")


def show(error: BaseException, *, full: bool) -> None:
    """On stderr: a panel on a terminal, plain unbroken lines elsewhere. `full`: the whole traceback too."""
    console = Console(stderr=True, highlight=False)
    if full:
        console.out("".join(traceback.format_exception(error)), end="", highlight=False)
    lines = describe(error)
    if not full and _is_of_the_user(chain(error)[-1]):
        lines.append("(--traceback shows all of it)")
    title = _title(error)
    if console.is_terminal:
        console.print(Panel(Text("\n".join(lines)), title=title, title_align="left", border_style="red"))
    else:
        console.out("\n".join([f"error: {title}", *lines]), highlight=False)


def describe(error: BaseException) -> list[str]:
    """Where in the user's own code and what; operator, key and record; what we say to it."""
    links = chain(error)
    user = own_error(error)
    if user is None:
        return [str(link) for link in links[:1]]
    first, others = _first(user)
    lines = [*(list(_frame(first)) or _frame(user)), *"".join(traceback.format_exception_only(first)).splitlines()]
    if others:
        lines.append(f"(and {others} more at the same time)")
    lines += [_place(link) for link in links if isinstance(link, RecordFailed)]
    if not isinstance(links[0], JobFailed | RecordFailed) and links[0] is not user:
        lines.append(str(links[0]))
    return lines


def where(error: BaseException) -> str:
    """In one line."""
    return "; ".join(line.strip() for line in describe(error))


def own_error(error: BaseException) -> BaseException | None:
    """What the user's own code has raised, of the error and its causes."""
    return next(filter(_is_of_the_user, chain(error)), None)


def own_frame(error: BaseException) -> str | None:
    """Where the user's own code has raised it, in one line."""
    return next(_frame(_first(error)[0]), None)


def chain(error: BaseException) -> list[BaseException]:
    """The error, and what caused it."""
    links = [error]
    while (cause := links[-1].__cause__) is not None and cause not in links:
        links.append(cause)
    return links


def _first(error: BaseException) -> tuple[BaseException, int]:
    """Of a group, such as a TaskGroup raises; and how many others there are in it."""
    others = 0
    while isinstance(error, BaseExceptionGroup):
        others += len(error.exceptions) - 1
        error = error.exceptions[0]
    return error, others


def _place(error: RecordFailed) -> str:
    key = f", key {error.key!r}" if error.key is not None else ""
    return f"in operator {error.uid!r}{key}" + (f", record {error.origin}" if error.origin else "")


def _frame(error: BaseException) -> Iterator[str]:
    """The innermost frame of the user's own code; else of what is not ours."""
    frames = traceback.extract_tb(error.__traceback__)
    for others in ((*_OURS, *_INSTALLED, *_STANDARD), (*_OURS, *_STANDARD)):
        if own := [frame for frame in frames if not frame.filename.startswith(others) or _installed(frame, others)]:
            yield f"{_relative(own[-1].filename)}:{own[-1].lineno} in {own[-1].name}"
            if own[-1].line:
                yield f"    {own[-1].line}"
            return


def _installed(frame: traceback.FrameSummary, others: tuple[str, ...]) -> bool:
    """Site-packages usually lie within the standard library's folder."""
    return not any(path in others for path in _INSTALLED) and frame.filename.startswith(_INSTALLED)


def _relative(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _is_of_the_user(error: BaseException) -> bool:
    return not isinstance(error, StreamactorsError)


def _title(error: BaseException) -> str:
    if isinstance(error, JobFailed):
        return "the job has failed"
    if isinstance(error, RequestFailed):
        return "not done"
    return "damaged" if isinstance(error, CorruptCheckpoint) else "refused"
