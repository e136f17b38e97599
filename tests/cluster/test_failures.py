"""Errors on their way to another process: what somebody needs to find the fault survives, and what decides about a
restart."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamactors.cluster.failures import FRAMES, SentError, received, to_send
from streamactors.errors import (
    CheckpointFailed,
    IncompatibleState,
    InvalidRequest,
    RecordFailed,
    StreamactorsError,
    SubscriptionLagged,
    UnserialisableValue,
)


class Own(Exception):
    """Of a user: made of other things than it says, and with a field that nobody can store."""

    def __init__(self, code: int, what: str) -> None:
        self.code = code
        self.source = lambda: code
        super().__init__(what)


class Strange(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Refused(StreamactorsError):
    retryable = False


def over(error: BaseException) -> BaseException:
    data = msgspec.msgpack.encode(to_send(error))
    return received(msgspec.msgpack.decode(data, type=SentError))


def caught(raises: Callable[[], object]) -> BaseException:
    try:
        raises()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def shown(error: BaseException) -> list[str]:
    """The traceback, but for the marks under the lines."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return [line for line in lines if line.strip(" ^~")]


def _of_the_user() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        raise RecordFailed("totals", "JSONDecodeError", key=("a", 1), origin="orders[3]@7", name="t") from error


def _during() -> None:
    try:
        raise KeyError("first")
    except KeyError:
        raise Own(7, "then") from None


def _after() -> None:
    try:
        raise KeyError("first")
    except KeyError:
        _during()


def _together() -> None:
    try:
        raise ExceptionGroup("both", [ValueError("one"), Own(2, "two")])
    except ExceptionGroup as error:
        error.add_note("while they ran")
        raise


def _not_found() -> None:
    Path("/no/such/file").read_bytes()


@pytest.mark.parametrize("raises", [_of_the_user, _during, _after, _together, _not_found])
def test_it_is_shown_as_it_would_be_in_one_process(raises: Callable[[], None]) -> None:
    error = caught(raises)
    error.add_note("a note")
    assert shown(over(error)) == shown(error)


@pytest.mark.parametrize(
    "error",
    [
        StreamactorsError("a"),
        IncompatibleState("b"),
        RecordFailed("uid", "what", key=1.5, origin="x", retryable=False),
        SubscriptionLagged("uid", 3, 10),
        InvalidRequest("c", code="d", status=404),
        KeyError("e"),
        ValueError(1, "f"),
        ZeroDivisionError(),
        Own(5, "g"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_is_itself_again(error: Exception) -> None:
    again = over(error)
    assert type(again) is type(error) and str(again) == str(error) and again.args == error.args
    plain = {name: value for name, value in vars(error).items() if not callable(value)}
    assert vars(again) == plain
    assert getattr(again, "retryable", None) == getattr(error, "retryable", None)


def _unknown(error: Exception) -> BaseException:
    """As to a process that has never heard of its module."""
    sent = msgspec.structs.replace(to_send(error), module="orders.errors")
    return received(sent)


def test_a_class_that_is_not_there_is_made_by_its_name() -> None:
    again = _unknown(Own(5, "g"))
    assert traceback.format_exception_only(again) == ["orders.errors.Own: g\n"]
    assert isinstance(again, Exception) and not isinstance(again, StreamactorsError)


@pytest.mark.parametrize("error", [Refused("no"), CheckpointFailed("later")], ids=["final", "retryable"])
def test_such_a_class_is_as_good_for_a_restart(error: StreamactorsError) -> None:
    again = _unknown(error)
    assert isinstance(again, StreamactorsError) and again.retryable == error.retryable


def test_a_name_that_is_no_error_here_is_none() -> None:
    sent = msgspec.structs.replace(to_send(ValueError("x")), name="print")
    assert traceback.format_exception_only(received(sent)) == ["print: x\n"]


def test_a_message_that_can_not_be_told() -> None:
    assert "its message can't be told: RuntimeError" in str(over(Strange()))


def test_causes_without_end_and_deep_stacks_are_cut() -> None:
    first = last = ValueError(0)
    for number in range(50):
        last.__cause__ = last = ValueError(number)
    last.__cause__ = first

    def deep(left: int) -> None:
        if left == 0:
            raise UnserialisableValue("deep down")
        deep(left - 1)

    again = over(first)
    depth = 0
    while again.__cause__ is not None:
        again, depth = again.__cause__, depth + 1
    assert 5 < depth < 20
    error = over(caught(lambda: deep(200)))
    frames: list[Any] = traceback.extract_tb(error.__traceback__)
    assert len(frames) == FRAMES and frames[-1].name == "deep"
