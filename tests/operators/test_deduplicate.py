"""What comes out of `deduplicate`, in event time and in processing time; and what it keeps."""

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.elements import MAX_TIME, Batch
from streamactors.operators.base import LinkContext, OperatorContext
from streamactors.operators.deduplicate import DeduplicateSpec
from streamactors.state.key_groups import KeyGroupRange, key_group
from tests.operators.driven import Driven
from tests.state.manual_clock import ManualClock
from tests.state.timer_stores import BACKENDS, done

either_backend = pytest.mark.parametrize("backend", ["heap", "rocksdb", "narrow"])
by_each_way = pytest.mark.parametrize("by", [None, lambda value: value[0]])


def spec(keep: Any = "first", by: Any = None, within: int | None = None) -> DeduplicateSpec:
    return DeduplicateSpec(keep, by, str, within)


@either_backend
@by_each_way
def test_the_first_of_each_comes_out(backend: str, by: Any) -> None:
    kept = Driven(spec(by=by), backend)
    kept.put(0, ("k", "a1", 10), ("k", "a2", 5), ("k", "b1", 11), ("j", "a3", 10))
    kept.move("heap", 2)
    kept.reach(1000)
    kept.put(0, ("k", "a4", 2000), ("k", "b2", 1))
    assert sorted(kept.values) == (["a1", "a3", "b1"] if by else ["a1", "a3"])
    kept.close()


@either_backend
@by_each_way
def test_within_a_span_of_event_time(backend: str, by: Any) -> None:
    kept = Driven(spec(by=by, within=100), backend)
    kept.put(0, ("k", "a50", 50), ("k", "a149", 149), ("k", "a150", 150), ("k", "a40", 40), ("k", "a249", 249))
    assert kept.values == ["a50", "a150"]
    kept.reach(249)
    assert kept.entries
    kept.move("heap", 2)
    kept.put(0, ("k", "a249 again", 249))
    kept.reach(250)
    assert kept.entries == {}
    kept.put(0, ("k", "a251", 251))
    assert kept.values == ["a50", "a150", "a251"]
    kept.close()


@either_backend
@by_each_way
def test_disorder_beyond_the_span_drops_nothing_that_is_no_duplicate(backend: str, by: Any) -> None:
    kept = Driven(spec(by=by, within=100), backend)
    kept.put(0, ("k", "a900", 900), ("k", "a100", 100), ("k", "a801", 801), ("k", "a199", 199), ("k", "a500", 500))
    assert kept.values == ["a900", "a100", "a500"]
    kept.reach(999)
    kept.move("heap", 2)
    kept.put(0, ("k", "a999", 999))
    assert kept.values == ["a900", "a100", "a500"]
    kept.reach(1000)
    assert kept.entries == {}
    kept.close()


@either_backend
@by_each_way
def test_the_newest_comes_out_last(backend: str, by: Any) -> None:
    kept = Driven(spec("last", by), backend)
    kept.put(0, ("k", "a10", 10), ("k", "a9", 9), ("k", "a10 too", 10), ("k", "a30", 30), ("k", "a20", 20))
    assert kept.values == ["a10", "a10 too", "a30"]
    kept.close()


class Script:
    """Records (value, time) in disorder, and watermarks, of one key."""

    def __init__(self, steps: Sequence[tuple[str, int] | int]) -> None:
        self.steps = steps

    def expected(self, keep: str, within: int | None) -> list[tuple[str, int]]:
        """By looking at all that came before."""
        found: list[tuple[str, int]] = []
        for step in self.steps:
            if isinstance(step, tuple):
                passed = [time for value, time in found if value == step[0]]
                if keep == "last":
                    comes = not passed or step[1] >= max(passed)
                else:
                    comes = not passed or (within is not None and all(abs(step[1] - time) >= within for time in passed))
                found += [step] if comes else []
        return found


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    steps: list[tuple[str, int] | int] = []
    watermark = -1
    for _ in range(draw(st.integers(1, 30))):
        if draw(st.integers(0, 3)) == 0:
            watermark += draw(st.integers(0, 30))
            steps.append(watermark)
        else:
            steps.append((draw(st.sampled_from("abc")), watermark + draw(st.integers(1, 40))))
    return Script(steps)


@pytest.mark.parametrize("backend", ["heap", "narrow"])
@settings(max_examples=60, deadline=None)
@given(script=scripts(), keep=st.sampled_from(["first", "last"]), within=st.none() | st.integers(1, 40))
def test_what_is_forgotten_makes_no_difference(
    backend: str, script: Script, keep: Literal["first", "last"], within: int | None
) -> None:
    """To records that are not late; and in the end nothing is left."""
    kept = Driven(DeduplicateSpec(keep, lambda step: step[0], str, within), backend)
    for step in script.steps:
        if isinstance(step, tuple):
            kept.put(0, ("k", step, step[1]))
        else:
            kept.reach(step)
            kept.move("heap" if kept.watermark % 2 else backend, 1)
    assert kept.values == script.expected(keep, within)
    kept.reach(MAX_TIME)
    assert within is None or kept.entries == {}
    kept.close()


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@by_each_way
def test_without_event_time_the_clock_counts(backend: str, by: Any) -> None:
    groups = KeyGroupRange(0, 4)
    kept: Any = BACKENDS[backend](groups, 4)
    clock: ManualClock = kept._clock
    operator = OperatorContext(uid="step", subtask=0, parallelism=1)
    link = spec(by=by, within=1000).link(LinkContext("step", "step", operator, backend=kept, watermarks=False))
    assert link.timers is None

    def out(*values: str) -> list[Any]:
        result = done(link.process(Batch(list(values), None, ["k"] * len(values), [key_group("k", 4)] * len(values))))
        return [] if result is None else list(result.values)

    assert out("a1", "a2") == ["a1"]
    clock.advance(0.999)
    assert out("a3") == []
    clock.advance(0.001)
    assert out("a4", "a5") == ["a4"]
    kept.close()


@pytest.mark.parametrize("keep", ["first", "last"])
async def test_without_watermarks_the_order_of_arrival_decides(keep: Any) -> None:
    flow, sink = sa.Dataflow("once"), ListSink[Any]()
    numbers = flow.source("numbers", ListSource([3, 1, 3, 2, 1])).key_by(lambda number: number)
    numbers.deduplicate("once", keep=keep).sink("out", sink)
    await sa.run(flow)
    assert sink.values == ([3, 1, 2] if keep == "first" else [3, 1, 3, 2, 1])


def test_what_makes_no_sense_is_refused() -> None:
    keyed = sa.Dataflow("once").source("numbers", ListSource([1])).key_by(lambda number: number)
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: keyed.deduplicate("once", keep="newest"), "keep='newest': 'first' or 'last'"),  # type: ignore[arg-type]
        (lambda: keyed.deduplicate("once", by="x"), "by= is a plain function of a record"),  # type: ignore[arg-type]
        (lambda: keyed.deduplicate("once", within=dt.timedelta(0)), "within= is a time above zero"),
        (lambda: keyed.deduplicate("once", within=3), "within=3: give a datetime.timedelta"),  # type: ignore[arg-type]
    ]
    for use, message in refused:
        with pytest.raises(sa.InvalidDataflow, match=f"deduplicate 'once': {message}"):
            use()


@pytest.mark.parametrize("by", [None, len])
def test_another_version_may_remember_for_longer(by: Any) -> None:
    kept = Driven(DeduplicateSpec("first", by, int, 10))
    kept.put(0, ("k", "a", 100))
    kept.spec = DeduplicateSpec("first", by, int, 20)
    kept.move("heap", 1)
    kept.reach(115)
    kept.put(0, ("k", "b", 119))
    assert kept.values == ["a"]
    kept.reach(120)
    assert kept.entries == {}
    kept.close()


def test_a_record_without_a_time_among_others_is_refused() -> None:
    kept = Driven(DeduplicateSpec("first", None, None, 10))
    with pytest.raises(sa.RecordFailed, match="without a time-stamp"):
        kept.put(0, ("k", "a", None))
    kept.close()


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
@by_each_way
def test_what_is_kept_does_not_grow(backend: str, by: Any) -> None:
    """One of the times is outstanding at each firing."""
    kept = Driven(DeduplicateSpec("first", by, str, 10), backend)
    for number in range(100):
        kept.put(0, ("k", "a", 10 * number))
        kept.reach(10 * number - 25)
        assert sum(kept.entries.values()) < 20
    if by is not None:
        assert len(kept.held("due")["k"]) < 10
    kept.reach(MAX_TIME)
    assert kept.entries == {}
    kept.close()
