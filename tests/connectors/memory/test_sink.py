"""A list as exactly-once sink, within one process."""

import gc
import logging
import weakref
from collections.abc import Sequence

import pytest

from connectors.memory import ListSink
from streamactors.testing.connector_contract import SinkContract, sink_context, stored


class TestContract(SinkContract[int]):
    @pytest.fixture(autouse=True)
    def _one_list(self) -> None:
        self.list_sink = ListSink[int]()

    def sink(self) -> ListSink[int]:
        return self.list_sink

    def values(self) -> Sequence[int]:
        return range(12)

    async def visible(self) -> list[int]:
        return self.list_sink.values


class Value:
    """Any object will do, also one that no serialiser knows."""


async def test_without_checkpoints_values_are_there_at_once() -> None:
    sink = ListSink[int]()
    writer = sink.writer(sink_context(checkpointing=False))
    await writer.open([], committed=False)
    await writer.write([1, 2], None)
    assert sink.values == [1, 2]
    await writer.close()


async def test_values_of_any_type_are_the_same_objects() -> None:
    sink, value = ListSink[Value](), Value()
    writer = sink.writer(sink_context())
    await writer.open([], committed=False)
    await writer.write([value], None)
    stored(await writer.prepare(1))
    await writer.commit(1)
    assert sink.values[0] is value
    await writer.close()


async def test_keeps_nothing_of_attempts_that_came_to_nothing() -> None:
    sink, lost = ListSink[Value](), Value()
    ref = weakref.ref(lost)
    first = sink.writer(sink_context(attempt=1))
    await first.open([], committed=False)
    await first.write([lost], None)
    await first.prepare(1)
    await first.close()
    second = sink.writer(sink_context(attempt=2))
    await second.open([], committed=False)
    await second.prepare(2)
    await second.commit(2)
    del first, lost
    gc.collect()
    assert ref() is None
    assert sink.values == []
    await second.close()


async def test_a_sink_of_two_flows_keeps_what_each_prepared() -> None:
    sink = ListSink[str]()
    a = sink.writer(sink_context(flow="a", attempt=1))
    b = sink.writer(sink_context(flow="b", attempt=2))
    for writer in (a, b):
        await writer.open([], committed=False)
    await a.write(["of a"], None)
    await a.prepare(1)
    await b.prepare(1)
    await b.commit(1)
    await a.commit(1)
    assert sink.values == ["of a"]
    for writer in (a, b):
        await writer.close()


async def test_what_another_process_prepared_is_gone_with_it_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    old, new = ListSink[int](), ListSink[int]()
    before = old.writer(sink_context())
    await before.open([], committed=False)
    await before.write([1], None)
    pending = stored(await before.prepare(1))
    await before.close()
    after = new.writer(sink_context(run=2))
    with caplog.at_level(logging.WARNING):
        await after.open(pending, committed=False)
    assert new.values == []
    assert "another process" in caplog.text
    await after.close()
