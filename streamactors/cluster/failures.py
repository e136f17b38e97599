"""Errors on their way to another process.

Invariant: class, message, notes, causes and where it was raised survive. An error of ours, a built-in one, or one whose
module the other process has loaded, is itself again; any other has a class of the same name made for it, which nothing
is imported for, and is as good for a restart as it was. Nothing of it is code, nor run as such.
"""

import builtins
import sys
import traceback
from types import FunctionType, TracebackType
from typing import Any, Final, cast

import msgspec

from streamactors.errors import StreamactorsError, UnserialisableValue
from streamactors.state.serialisation.serializers import AnySerializer

FRAMES: Final = 40
"""The innermost ones are kept."""
_DEEPEST: Final = 10
"""Causes of causes, and errors in groups of groups."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    file: str
    line: int
    name: str


class SentError(msgspec.Struct, frozen=True, array_like=True):
    """An error as data. `arguments` and each of `fields`: by AnySerializer, those that it takes."""

    module: str
    name: str
    message: str
    arguments: bytes | None
    fields: dict[str, bytes]
    notes: list[str]
    frames: list[Frame]
    retryable: bool | None
    """None where it is no StreamactorsError."""
    cause: "SentError | None" = None
    grouped: "list[SentError]" = []


def to_send(error: BaseException, depth: int = 0) -> SentError:
    values = AnySerializer()
    deeper = depth < _DEEPEST
    grouped = error.exceptions if isinstance(error, BaseExceptionGroup) and deeper else ()
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    fields = {name: _encoded(values, value) for name, value in vars(error).items() if name != "__notes__"}
    return SentError(
        type(error).__module__,
        type(error).__qualname__,
        _message(error),
        _encoded(values, list(error.args)) if not grouped else None,
        {name: data for name, data in fields.items() if data is not None},
        [plain_text(str(note)) for note in getattr(error, "__notes__", ())],
        _frames(error.__traceback__),
        error.retryable if isinstance(error, StreamactorsError) else None,
        to_send(cause, depth + 1) if cause is not None and deeper else None,
        [to_send(each, depth + 1) for each in grouped],
    )


def received(sent: SentError) -> Exception:
    """What would end the process that it is raised in, such as SystemExit, has ended what raised it, and no more."""
    error = _made_again(sent)
    if isinstance(error, Exception):
        return error
    failure = _alike(sent)
    failure.__cause__ = error
    return failure


def _made_again(sent: SentError) -> BaseException:
    error = _grouped(sent) if sent.grouped else _itself(sent) or _alike(sent)
    error.__cause__ = None if sent.cause is None else _made_again(sent.cause)
    error.__traceback__ = _traceback(sent.frames)
    for note in sent.notes:
        error.add_note(note)
    return error


def plain_text(text: str) -> str:
    """A text that was decoded from broken bytes, or is half a character, can't be encoded as it is."""
    return text.encode(errors="backslashreplace").decode()


# ---------------------------------------------------------------------------------------------------------------- there
def _message(error: BaseException) -> str:
    try:
        return plain_text(str(error))
    except Exception as failure:  # the user's code
        return f"(its message can't be told: {type(failure).__name__})"


def _encoded(values: AnySerializer, value: Any) -> bytes | None:
    try:
        return values.encode(value)
    except (StreamactorsError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _frames(first: TracebackType | None) -> list[Frame]:
    """Without the lines of source, which would be read from the disk, on the loop."""
    found = [(frame.f_code, line) for frame, line in traceback.walk_tb(first)][-FRAMES:]
    return [Frame(plain_text(code.co_filename), line or 0, plain_text(code.co_name)) for code, line in found]


# ----------------------------------------------------------------------------------------------------------------- here
def _itself(sent: SentError) -> BaseException | None:
    """None where its class is not at hand, or does not give the same again."""
    cls = _class(sent)
    if cls is None or issubclass(cls, BaseExceptionGroup):
        return None
    try:
        arguments = tuple(_values(sent.arguments)) if sent.arguments is not None else (sent.message,)
        error = cls.__new__(cls, *arguments)
        error.args = arguments
        for name, data in sent.fields.items():
            setattr(error, name, AnySerializer().decode(data))
        return error if plain_text(str(error)) == sent.message else None
    except Exception:  # the user's class, or a value of one that is not here
        return None


def _values(data: bytes) -> list[Any]:
    return cast(list[Any], AnySerializer().decode(data))


def _class(sent: SentError) -> type[BaseException] | None:
    found: Any = builtins if sent.module == "builtins" else sys.modules.get(sent.module)
    for name in sent.name.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _alike(sent: SentError) -> Exception:
    base: type[Exception] = Exception if sent.retryable is None else StreamactorsError
    body: dict[str, Any] = {"__module__": sent.module, "__qualname__": sent.name}
    if sent.retryable is not None:
        body["retryable"] = sent.retryable
    made: type[Exception] = type(sent.name.rpartition(".")[2], (base,), body)
    return made(sent.message)


def _grouped(sent: SentError) -> BaseExceptionGroup[BaseException]:
    message = sent.message.rpartition(" (")[0] or sent.message
    return BaseExceptionGroup(message, [_made_again(each) for each in sent.grouped])


def _fall() -> None:
    raise UnserialisableValue


def _traceback(frames: list[Frame]) -> TracebackType | None:
    """One that shows where it was raised, of frames that were never run there."""
    last: TracebackType | None = None
    for frame in reversed(frames):
        code = _fall.__code__.replace(co_filename=frame.file, co_name=frame.name, co_qualname=frame.name)
        try:
            FunctionType(code, {"UnserialisableValue": UnserialisableValue})()
        except UnserialisableValue as error:
            raised = error.__traceback__.tb_next if error.__traceback__ is not None else None
            if raised is not None:
                last = TracebackType(last, raised.tb_frame, -1, frame.line)
    return last
