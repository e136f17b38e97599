"""Whose code asks for the names of records, and what the names are."""

import functools
from contextvars import copy_context
from typing import Any

import pytest

import streamactors as sa
from streamactors.elements import Batch
from streamactors.operators import record_ids
from streamactors.operators.record_ids import made_by, uses_record_id

ANY = (sa.Operator, sa.KeyedOperator)


class Plain(sa.Operator[Any, Any]):
    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(value)


class Asking(sa.Operator[Any, Any]):
    def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        ctx.emit(ctx.record_id)


class Nested(sa.Operator[Any, Any]):
    async def process(self, value: Any, ctx: sa.Context[None, Any]) -> None:
        async def call() -> str:
            return str([ctx.record_id for _ in range(2)])

        ctx.emit(await call())


class Inheriting(Asking):
    pass


class Helped(Plain):
    uses_record_id = True


class Silenced(Asking):
    uses_record_id = False


class Called:
    async def __call__(self, value: Any) -> str:
        return sa.record_id()

    async def method(self, value: Any) -> str:
        return sa.record_id()


async def asks(value: Any) -> str:
    return sa.record_id()


async def asks_for_all(values: list[Any]) -> list[str]:
    return list(record_ids.record_ids())


async def does_not(value: Any) -> Any:
    return value


def wrapped(fn: Any) -> Any:
    @functools.wraps(fn)
    async def wrapper(value: Any) -> Any:
        return await fn(value)

    return wrapper


@pytest.mark.parametrize(
    "user",
    [
        Asking,
        Nested,
        Inheriting,
        Helped,
        functools.partial(Asking),
        asks,
        asks_for_all,
        functools.partial(asks),
        functools.partial(functools.partial(asks)),
        wrapped(wrapped(asks)),
        lambda value: asks(value) if value else sa.record_id(),
        Called(),
        Called().method,
    ],
)
def test_code_that_asks(user: Any) -> None:
    assert uses_record_id(user)


@pytest.mark.parametrize("user", [Plain, Silenced, does_not, wrapped(does_not), lambda value: value, print, "text"])
def test_code_that_does_not(user: Any) -> None:
    assert not uses_record_id(user)


def test_a_factory_is_seen_through() -> None:
    user: Any = print
    local: Any = type("Local", (Asking,), {})
    assert made_by(Asking, ANY) == [Asking]
    assert made_by(functools.partial(Asking), ANY) == [Asking]
    assert made_by(lambda: Asking(), ANY) == [Asking]
    assert made_by(lambda: local(), ANY) == [local]
    assert made_by(lambda: user(), ANY) == []


def test_names() -> None:
    one, other = record_ids.at_source("flow", "orders", "log", [17, 18])
    assert one == "flow/orders/log@17"
    assert record_ids.fanned_out([one, None, other], [2, 1, 0]) == [f"{one}.0", f"{one}.1", None]
    assert record_ids.by_edge([one, None], "big") == [f"{one}~big", None]
    assert record_ids.dead(one) == f"{one}.dead" and record_ids.dead(None) is None


def test_within_a_call_only() -> None:
    with pytest.raises(sa.StateAccessError, match="uses_record_id = True"):
        sa.record_id()
    call = copy_context()
    call.run(record_ids.CURRENT.set, ("a@1",))
    assert call.run(sa.record_id) == "a@1" and call.run(sa.record_ids) == ["a@1"]
    call.run(record_ids.CURRENT.set, ("a@1", "a@2"))
    with pytest.raises(sa.StateAccessError, match="works on 2 records"):
        call.run(sa.record_id)
    call.run(record_ids.CURRENT.set, (None,))
    with pytest.raises(sa.StateAccessError, match="in flight in the checkpoint"):
        call.run(sa.record_id)


def test_a_batch_carries_them() -> None:
    batch = Batch([1, 2, 3], ids=["a", "b", "c"])
    assert batch.slice(1, 3).ids == ["b", "c"]
    assert batch.select([1, 0, 1]).ids == ["a", "c"]
    assert batch.with_values("xyz").ids == batch.with_keys([1, 1, 1], [0, 0, 0]).ids == batch.unplaced().ids
