"""Window steps against a model that takes one record at a time: any records, watermarks and clock, in any batches."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import streamactors as sa
from streamactors.elements import MAX_TIME
from streamactors.operators.windows.contents import ContentsSpec, Keeping, aggregating
from streamactors.operators.windows.spec import Windowing
from streamactors.state.backend import KeyedBackend
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.time.windows import Window
from tests.operators.window_harness import DEAD, GROUPS, Model, Step, in_order, milliseconds, windowing

pytestmark = pytest.mark.slow

SIZE = 10
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


class Everything(sa.WindowOperator[str, Any, Any]):
    def process(self, window: sa.Windowed[str, Any], ctx: sa.Context[str, Any]) -> None:
        ctx.emit(sa.Windowed(window.key, window.start, window.end, list(window.value)))


class Awaited(sa.WindowOperator[str, Any, Any]):
    async def process(self, window: sa.Windowed[str, Any], ctx: sa.Context[str, Any]) -> None:
        values = list(window.value)
        await asyncio.sleep(0)
        ctx.emit(sa.Windowed(window.key, window.start, window.end, values))


CONTENTS: dict[str, tuple[ContentsSpec, Any]] = {
    "aggregate": (aggregating(sa.Collect[Any]()), None),
    "process": (Keeping(Any), Everything),
    "async process": (Keeping(Any), Awaited),
}

assigners = st.sampled_from(
    [
        sa.Tumbling(milliseconds(SIZE), offset=milliseconds(3)),
        sa.Sliding(milliseconds(SIZE), milliseconds(4)),
        sa.Sliding(milliseconds(4), milliseconds(SIZE)),
        sa.Session(milliseconds(3)),
        sa.CountWindow(3),
        sa.GlobalWindow(),
    ]
)
triggers = st.one_of(
    st.just(None),
    st.just(sa.Trigger.event_time()),
    st.just(sa.Trigger.event_time().early(milliseconds(5))),
    st.just(sa.Trigger.processing_time(milliseconds(5))),
    st.builds(sa.Trigger.count, st.integers(1, 4)),
)


@st.composite
def windowings(draw: st.DrawFn) -> Windowing:
    assigner, trigger = draw(assigners), draw(triggers)
    if isinstance(assigner, sa.CountWindow):  # has its own
        return windowing(assigner)
    if trigger is None and isinstance(assigner, sa.GlobalWindow):
        trigger = sa.Trigger.count(2)
    if trigger is not None and draw(st.booleans()):
        trigger = trigger.purging()
    return windowing(assigner, trigger, lateness=draw(st.sampled_from([0, 0, 5, 12])) if assigner.timed else 0)


records = st.tuples(st.sampled_from("ab"), st.integers(0, 40))
steps = st.lists(
    st.one_of(
        st.lists(records, min_size=1, max_size=8),
        st.lists(records, min_size=1, max_size=8),
        st.tuples(st.sampled_from(["watermark", "clock"]), st.integers(1, 15)),
    ),
    max_size=12,
)


async def same(step: Step, model: Model, moves: list[Any]) -> None:
    """The step does what the model does, move by move."""
    number = watermark = 0
    for move in moves:
        if isinstance(move, list):
            batch = []
            for key, time in move:
                number += 1
                batch.append((key, time, number))
            assert in_order(await step.put(*batch)) == in_order(model.put(batch))
            assert Counter(step.late) == Counter(model.late)
        elif move[0] == "watermark":
            watermark += move[1]
            assert in_order(await step.advance(watermark)) == in_order(model.advance(watermark))
        else:
            now = model.now + move[1]
            assert in_order(await step.clock(now)) == in_order(model.clock(now))
        step.snapshot()
    assert in_order(await step.advance(MAX_TIME)) == in_order(model.advance(MAX_TIME))
    if step.link.ctx.operator.metrics.counter("late_records").value:
        event("late records")
    if not model.left:
        assert not step.left()
    event(f"{len(step.results) > 0=}")


def too_many(values: list[Any]) -> bool:
    return len([number for _, _, number in values if number % 3 == 0]) > 1


class Limited(sa.Aggregate[Any, list[Any], list[Any]]):
    """Takes no second record whose number is a multiple of three, and has changed its accumulator when it says so."""

    accumulator = list[Any]

    def create(self) -> list[Any]:
        return []

    def add(self, accumulator: list[Any], value: Any) -> list[Any]:
        accumulator.append(value)
        if too_many(accumulator):
            raise ValueError("too many")
        return accumulator

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        left += right
        if too_many(left):
            raise ValueError("too many together")
        return left

    def result(self, accumulator: list[Any]) -> list[Any]:
        return list(accumulator)


class Careful(Model):
    """Puts aside a record that one of its windows can't take, before anything else."""

    def __init__(self, how: Windowing) -> None:
        super().__init__(how)
        self.dead: list[Any] = []

    def _put(self, record: Any) -> list[sa.Windowed[Any, Any]]:
        if any(too_many(values) for values in self._filled(record)):
            self.dead.append(record)
            return []
        return super()._put(record)

    def _filled(self, record: Any) -> Iterator[list[Any]]:
        key, time, _ = record
        held = self.windows.setdefault(key, {})
        for new in self.how.assigner.assign(time):
            met = [new] if new in held else []
            if self.how.assigner.merging:
                met = [window for window in held if window.start <= new.end and new.start <= window.end]
            into = Window(min(window.start for window in [new, *met]), max(window.end for window in [new, *met]))
            if not self._gone(into):
                yield [value for window in met for value in held[window].values] + [record]


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(how=windowings(), moves=steps)
def test_a_record_that_fails_is_in_no_window(how: Windowing, moves: list[Any]) -> None:
    step, model = Step(how, aggregating(Limited()), on_error=DEAD), Careful(how)
    asyncio.run(same(step, model, moves))
    assert Counter(letter.value for letter in step.dead) == Counter(model.dead)
    event(f"{len(step.dead) > 0=}")


def check(backend: KeyedBackend, how: Windowing, kind: str, moves: list[Any]) -> None:
    contents, operator = CONTENTS[kind]
    step = Step(how, contents, operator, backend=backend)
    asyncio.run(same(step, Model(how), moves))
    assert step.link.ctx.operator.metrics.counter("late_records").value == len(step.late)


@pytest.mark.parametrize("kind", CONTENTS)
@settings(max_examples=250, deadline=None, suppress_health_check=QUIET)
@given(how=windowings(), moves=steps)
def test_on_the_heap(kind: str, how: Windowing, moves: list[Any]) -> None:
    check(HeapBackend(GROUPS, len(GROUPS), uid="w"), how, kind, moves)


@pytest.mark.parametrize("kind", ["aggregate", "process"])
@settings(max_examples=60, deadline=None, suppress_health_check=[*QUIET, HealthCheck.function_scoped_fixture])
@given(how=windowings(), moves=steps)
def test_in_rocksdb(tmp_path: Path, kind: str, how: Windowing, moves: list[Any]) -> None:
    backend = RocksDBBackend(
        GROUPS, len(GROUPS), uid="w", options=RocksDBOptions(folder=str(tmp_path), memory=8 << 20, cache=16, dirty=4)
    )
    try:
        check(backend, how, kind, moves)
    finally:
        backend.close()
