"""The snippets of docs/testing.md: its tests are run as they stand there."""

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.kafka import KafkaSink, KafkaSource
from connectors.memory import ListSource
from pytest_streamactors import harnesses
from streamactors import testing
from streamactors.testing import KafkaBroker
from tests.programs import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


class Order(msgspec.Struct):
    customer: str
    amount: float


class NewTotal(sa.KeyedOperator[str, Order, float]):
    total = sa.ValueState(float, default=0.0)
    count = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, float]) -> None:
        self.total.set(self.total.get() + order.amount)
        self.count.set(self.count.get() + 1)
        ctx.emit(self.total.get())


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """All of the page, as one module."""
    known: dict[str, Any] = {
        **{name: getattr(testing, name) for name in testing.__all__},
        "sa": sa,
        "dt": dt,
        "Order": Order,
        "NewTotal": NewTotal,
        "BROKEN": sa.OutputTag("broken", sa.DeadLetter),
        "KafkaSource": KafkaSource,
        "KafkaSink": KafkaSink,
        "ListSource": ListSource,
        "__name__": __name__,
    }
    for snippet in SNIPPETS:
        exec(snippet, known)
    return known


@pytest.fixture
def kafka_broker(kafka: KafkaBroker) -> KafkaBroker:
    """That of all tests, so that the session has one only."""
    return kafka


ALONE = ["test_total", "test_silence", "test_it_goes_on", "test_nothing_is_lost_or_doubled", "test_what_is_stored"]
OTHERS = ["test_with_fixtures", "test_on_kafka", "test_whatever_goes_wrong"]


def test_none_is_left_out(names: dict[str, Any]) -> None:
    assert sorted(name for name in names if name.startswith("test_")) == sorted([*ALONE, *OTHERS])


@pytest.mark.parametrize("name", ALONE)
async def test_alone(names: dict[str, Any], name: str) -> None:
    await names[name]()


async def test_with_fixtures(names: dict[str, Any], flow_harness: Any, streamactors_storage: str) -> None:
    async with harnesses() as operator_harness:  # closed in time for the check that a test leaves no task
        await names["test_with_fixtures"](operator_harness, flow_harness, streamactors_storage)


async def test_on_kafka(names: dict[str, Any], kafka_broker: KafkaBroker, kafka_topics: Any) -> None:
    await names["test_on_kafka"](kafka_broker, kafka_topics)


def test_by_simulation(names: dict[str, Any]) -> None:
    run: Callable[[], None] = names["test_whatever_goes_wrong"]
    run()
