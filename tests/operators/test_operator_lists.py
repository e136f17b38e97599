"""List state without a key, bound to operators: reachable from open to close, beside keyed state or by itself."""

from typing import Any

import pytest

import streamactors as sa
from streamactors.elements import Batch
from streamactors.operators.base import LinkContext, OperatorContext
from streamactors.operators.process import ProcessSpec
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.operator_lists import OperatorLists


def context(lists: OperatorLists, backend: HeapBackend | None = None) -> LinkContext:
    return LinkContext(
        "hold", "hold", OperatorContext(uid="hold", subtask=0, parallelism=1), backend=backend, lists=lists
    )


class Sizes:
    """What an operator saw in its hooks."""

    seen: list[tuple[str, int]]


class Holding(sa.Operator[int, int], Sizes):
    held = sa.OperatorListState(int)

    def __init__(self) -> None:
        self.seen = []

    def open(self, ctx: sa.OperatorContext) -> None:
        self.seen.append(("open", len(self.held)))

    async def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        self.held.append(value)
        ctx.emit(sum(self.held))

    def close(self) -> None:
        self.seen.append(("close", len(self.held)))


class Totals(sa.KeyedOperator[str, int, int], Sizes):
    total = sa.ValueState(int, default=0)
    held = sa.OperatorListState(int)

    def open(self, ctx: sa.OperatorContext) -> None:
        self.held.append(100)
        with pytest.raises(sa.StateAccessError, match="there is no current key"):
            self.total.get()

    def process(self, value: int, ctx: sa.Context[str, int]) -> None:
        self.total.set(self.total.get() + value)
        self.held.append(value)
        ctx.emit(self.total.get() + len(self.held))


async def test_from_open_to_close_and_never_again() -> None:
    lists, made = OperatorLists("hold"), list[Holding]()

    def factory() -> Holding:
        made.append(Holding())
        return made[0]

    link = ProcessSpec(factory, keyed=False).link(context(lists))
    await link.open()
    result = await link.process(Batch([1, 2, 3]))
    assert result is not None and list(result.values) == [1, 3, 6]
    await link.close()
    assert made[0].seen == [("open", 0), ("close", 3)]
    lists.close()
    with pytest.raises(sa.StateAccessError, match="operator 'hold', state 'held': the operator has been stopped"):
        len(made[0].held)


async def test_subtasks_share_nothing() -> None:
    one, other = OperatorLists("hold"), OperatorLists("hold")
    links = [ProcessSpec(Holding, keyed=False).link(context(lists)) for lists in (one, other)]
    await links[0].process(Batch([1, 2]))
    assert (one.entries(), other.entries()) == ({"held": 2}, {"held": 0})


async def test_beside_keyed_state() -> None:
    lists, backend = OperatorLists("hold"), HeapBackend(KeyGroupRange(0, 4), 4)
    link = ProcessSpec(Totals, keyed=True).link(context(lists, backend))
    await link.open()
    result = await link.process(Batch([1, 2, 3], None, ["a", "b", "a"], [0, 1, 0]))
    assert result is not None and list(result.values) == [1 + 2, 2 + 3, 4 + 4]
    assert (lists.entries(), backend.entries()) == ({"held": 4}, {"total": 2})
    assert (set(lists.schemas()), set(backend.schemas())) == ({"held"}, {"total"})


def test_keyed_state_still_needs_a_key() -> None:
    class Mixed(sa.Operator[Any, Any]):
        held = sa.OperatorListState(int)
        total = sa.ValueState(int, default=0)

        def process(self, value: Any, ctx: sa.Context[None, Any]) -> None: ...

    for check in (ProcessSpec(Mixed, keyed=False).validate, ProcessSpec(Mixed, keyed=True).validate):
        with pytest.raises(sa.InvalidDataflow, match=r"operator 'step': Mixed declares state \(total\), which needs a"):
            check("step")
    ProcessSpec(Holding, keyed=False).validate("step")
