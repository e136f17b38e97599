"""What annotations tell about the records of a stream."""

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

import pytest

from streamactors.api.inference import common_type, flat_mapped_type, mapped_type, operator_type, stored_type
from streamactors.operators.base import Context, KeyedOperator, Operator

T = TypeVar("T")
K = TypeVar("K")


def annotated(_: int) -> list[int]:
    return []


async def awaited(_: int) -> float:
    return 0.0


def awaitable(_: int) -> Awaitable[str]:
    return coroutine(_)


def coroutine(_: int) -> Coroutine[Any, Any, str]:
    async def text() -> str:
        return ""

    return text()


def quoted(_: int) -> "Record":
    return Record(1)


def unknown(_: int) -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
    raise AssertionError


def generic(value: T) -> list[T]:
    return [value]


def plain(value):  # type: ignore[no-untyped-def]
    return value


def anything(_: int) -> object:
    return None


def nothing(_: int) -> None:
    return None


class Record:
    def __init__(self, value: int) -> None:
        self.value = value

    def copy(self, _: int) -> Self:
        return self

    def text(self, _: int) -> str:
        return ""

    def __call__(self, _: int) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (annotated, list[int]),
        (awaited, float),
        (awaitable, str),
        (coroutine, str),
        (quoted, Record),
        (functools.partial(functools.partial(annotated)), list[int]),
        (Record, Record),
        (functools.partial(Record, 1), Record),
        (Record(1), bytes),
        (Record(1).text, str),
        (Record.text, str),
        (Record(1).copy, Any),
        (int, int),
        (nothing, type(None)),
        (lambda value: value, Any),
        (plain, Any),
        (unknown, Any),
        (generic, Any),
        (anything, Any),
        (str.upper, Any),
        (abs, Any),
        (3, Any),
    ],
)
def test_what_a_function_returns(fn: Any, expected: Any) -> None:
    assert mapped_type(fn) == expected


def items_of(annotation: Any) -> Any:
    def fn(_: int) -> Any: ...

    fn.__annotations__["return"] = annotation
    return flat_mapped_type(fn)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (list[int], int),
        (Iterable[str], str),
        (Iterator[str], str),
        (Generator[str, None, None], str),
        (Awaitable[list[int]], int),
        (dict[str, int], str),
        (tuple[int, ...], int),
        (list[list[int]], list[int]),
        (tuple[int, str], Any),
        (list[T], Any),  # type: ignore[valid-type]
        (AsyncIterator[int], Any),
        (list, Any),
        (str, Any),
        (Any, Any),
        (int | None, Any),
    ],
)
def test_the_items_of_what_a_function_returns(annotation: Any, expected: Any) -> None:
    assert items_of(annotation) == expected


class Unkeyed(Operator[int, str]):
    def process(self, value: int, ctx: Context[None, str], /) -> None: ...


class KeyedBase(KeyedOperator[str, T, list[T]]):
    def process(self, value: T, ctx: Context[str, list[T]], /) -> None: ...


class Keyed(KeyedBase[int]): ...


class Swapped(KeyedOperator[K, T, K], Generic[T, K]):
    def process(self, value: T, ctx: Context[K, K], /) -> None: ...


class FromSwapped(Swapped[int, str]): ...


class Deep(Unkeyed): ...


class Mixin(Generic[T]): ...


class Mixed(Mixin[bytes], Deep): ...


class Open(KeyedBase[T]): ...


class Bare(Operator):  # type: ignore[type-arg]
    def process(self, value: Any, ctx: Any, /) -> None: ...


class Quoted(Operator["int", "Record"]):
    def process(self, value: int, ctx: Context[None, Record], /) -> None: ...


def made() -> Unkeyed:
    return Unkeyed()


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (Unkeyed, str),
        (Deep, str),
        (Mixed, str),
        (Keyed, list[int]),
        (FromSwapped, str),
        (functools.partial(Keyed), list[int]),
        (made, str),
        (KeyedBase, Any),
        (Open, Any),
        (Bare, Any),
        (Quoted, Any),
        (lambda: Unkeyed(), Any),
        (int, Any),
        (Unkeyed(), Any),
    ],
)
def test_what_an_operator_emits(factory: Any, expected: Any) -> None:
    assert operator_type(factory) == expected


class Event(ABC):
    @abstractmethod
    def text(self) -> str: ...


@pytest.mark.parametrize(
    ("element_type", "expected"),
    [
        (int, int),
        (list[int], list[int]),
        (dict[str, Any], dict[str, Any]),
        (int | None, int | None),
        (Any, Any),
        (Event, Any),
        (Sequence[int], Any),
        (Record, Any),
        (type[int], Any),
    ],
)
def test_only_what_state_can_hold_is_declared_to_it(element_type: Any, expected: Any) -> None:
    assert stored_type(element_type) == expected


def test_several_streams_have_a_type_in_common_if_it_is_the_same() -> None:
    assert common_type([int]) is int
    assert common_type([list[int], list[int]]) == list[int]
    assert common_type([int, bool]) is Any
    assert common_type(iter([int, Any, int])) is Any
