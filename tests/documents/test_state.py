"""The snippets of docs/state.md, docs/checkpoints.md and docs/storage.md, run as they stand there."""

import datetime as dt
from typing import Annotated, Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSource
from streamactors.testing import OperatorHarness
from tests.programs import ROOT
from tests.structure.test_docs import snippets


class Order(msgspec.Struct):
    customer: str
    amount: float


class Rule(msgspec.Struct):
    name: str
    least: float


class Alert(msgspec.Struct):
    customer: str
    rule: str


class Report(msgspec.Struct):
    count: int
    top: list[Order]


class Session(msgspec.Struct):
    pages: int


class Model:
    """Of another library: it has no fields that could be stored."""


class Event(msgspec.Struct):
    user: str


NAMES = (Order, Rule, Alert, Report, Session, Model, Event)


def page(name: str) -> list[str]:
    return [code for _, code in snippets((ROOT / "docs" / f"{name}.md").read_text())]


def defined(code: str, **known: Any) -> dict[str, Any]:
    names: dict[str, Any] = {"sa": sa, "dt": dt, "msgspec": msgspec, "Annotated": Annotated, "__name__": __name__}
    names |= {each.__name__: each for each in NAMES} | known
    exec(compile(code, "snippet", "exec"), names)
    return names


def snippet_with(word: str) -> str:
    (found,) = [code for code in page("state") if word in code]
    return found


async def test_aggregates() -> None:
    spending = defined(snippet_with("class Spending"))["Spending"]

    class Reporting(spending):  # type: ignore[misc, valid-type]
        def process(self, order: Order, ctx: sa.Context[str, Report]) -> None:
            self.largest.add(order.amount)
            self.spent.add(order)
            self.orders.add(order)

    async with OperatorHarness[Report](Reporting, key=lambda order: order.customer) as harness:
        for amount in (3.0, 9.0, 1.0, 5.0):
            await harness.push(Order("ann", amount))
        state = harness.state("ann")
        assert (state.largest, state.spent, state.orders.count) == (9.0, 18.0, 4)
        assert [order.amount for order in state.orders.top] == [9.0, 5.0, 3.0]


def test_times_to_live() -> None:
    names = defined(snippet_with("ttl=sa.Ttl"))
    assert isinstance(names["recent"], sa.MapState) and isinstance(names["session"], sa.ValueState)


async def test_broadcast_state() -> None:
    flow = sa.Dataflow("alerts")
    orders = flow.source("orders", ListSource([Order("ann", 10.0)]))
    rules = flow.source("rules", ListSource([Rule("dear", 5.0)]))
    judge = defined(snippet_with("class Judge"), orders=orders, rules=rules)["Judge"]
    async with OperatorHarness[Alert](judge, key=lambda order: order.customer) as harness:
        await harness.push(Order("ann", 10.0))
        await harness.push_broadcast(Rule("dear", 5.0))
        await harness.push(Order("ann", 10.0))
        await harness.push(Order("ann", 1.0))
        assert harness.take() == [Alert("ann", "dear")]
        assert harness.read("seen", "ann") == 3


async def test_a_renamed_field() -> None:
    renamed = defined(snippet_with("sa.Alias"))["Order"]
    older = msgspec.defstruct("Order", [("key", str), ("amount", float)])
    snapshot = await kept(older, older("ann", 5.0))
    async with OperatorHarness.restore(keeping(renamed), snapshot, key=lambda order: order.key) as harness:
        assert harness.read("last", "ann").total == 5.0


def keeping(kind: Any) -> Any:
    class Last(sa.KeyedOperator[str, Any, Any]):
        last = sa.ValueState(kind)

        def process(self, order: Any, ctx: sa.Context[str, Any]) -> None:
            self.last.set(order)

    return Last


async def kept(kind: Any, order: Any) -> Any:
    async with OperatorHarness[Any](keeping(kind), key=lambda order: order.key) as harness:
        await harness.push(order)
        return await harness.snapshot()


async def test_a_renamed_state() -> None:
    renamed = defined(snippet_with("sa.stored_as"))["RunningTotal"]

    class After(renamed):  # type: ignore[misc, valid-type]
        def process(self, order: Order, ctx: sa.Context[str, float]) -> None:
            ctx.emit(self.amount.get())

    class Before(sa.KeyedOperator[str, Order, float]):
        total = sa.ValueState(float, default=0.0)

        def process(self, order: Order, ctx: sa.Context[str, float]) -> None:
            self.total.set(self.total.get() + order.amount)

    async with OperatorHarness[float](Before, key=lambda order: order.customer) as harness:
        await harness.push(Order("ann", 5.0))
        snapshot = await harness.snapshot()
    after: OperatorHarness[float] = OperatorHarness.restore(After, snapshot, key=lambda order: order.customer)
    async with after:
        await after.push(Order("ann", 1.0))
        assert after.take() == [5.0]


def test_a_format_of_ones_own() -> None:
    scores = defined(snippet_with("class ModelFormat"))["Scores"]
    assert isinstance(scores.model, sa.ValueState)


@pytest.mark.parametrize("name", ["checkpoints", "storage"])
def test_settings(name: str) -> None:
    for code in page(name):
        defined(code.replace("checkpoints=...", "checkpoints=None"))
