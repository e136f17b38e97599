"""What window steps do, by example: when they fire, what is late, what fails, and what is refused."""

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.elements import MAX_TIME, Batch
from streamactors.operators.windows.contents import Keeping, aggregating, reducing
from streamactors.state.backend import KeyedBackend
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.serialisation.serializer import Serializer
from streamactors.time.progress import EventTime
from tests.operators.window_harness import DEAD, GROUPS, Step, milliseconds, windowing
from tests.runtime.feeds import Feed

pytestmark = pytest.mark.slow

TEN = sa.Tumbling(milliseconds(10))
COUNT = aggregating(sa.Count())


def short(results: list[Any]) -> list[Any]:
    return [(each.key, each.start, each.end, each.value) for each in results]


# ------------------------------------------------------------------------------------------------------------- firing
async def test_a_window_gives_its_result_once_at_its_end_with_its_last_millisecond() -> None:
    step = Step(windowing(TEN), COUNT)
    assert await step.put(("a", 1, 0), ("a", 12, 0), ("b", 9, 0), ("a", 9, 0)) == []
    assert await step.advance(8) == []
    assert sorted(short(await step.advance(9))) == [("a", 0, 10, 2), ("b", 0, 10, 1)]
    assert short(await step.advance(30)) == [("a", 10, 20, 1)]
    assert [stamp for _, stamp in step.results] == [9, 9, 19]
    assert not step.left()


async def test_a_record_within_the_allowed_lateness_gives_the_result_again() -> None:
    step = Step(windowing(TEN, lateness=5), COUNT)
    await step.put(("a", 1, 0))
    assert short(await step.advance(13)) == [("a", 0, 10, 1)]
    assert short(await step.put(("a", 2, 0), ("a", 3, 0), ("b", 4, 0))) == [
        ("a", 0, 10, 2),
        ("a", 0, 10, 3),
        ("b", 0, 10, 1),
    ]
    assert await step.advance(14) == []
    assert not step.left()
    assert await step.put(("a", 2, "too late")) == []
    assert step.late == [("a", 2, "too late")]


async def test_a_record_is_late_if_it_is_for_the_last_of_its_windows() -> None:
    step = Step(windowing(sa.Sliding(milliseconds(10), milliseconds(5))), COUNT)
    await step.advance(11)
    await step.put(("a", 4, 0), ("a", 7, 0), ("a", 4, 1))
    assert step.late == [("a", 4, 0), ("a", 4, 1)]
    assert short(await step.advance(MAX_TIME)) == [("a", 5, 15, 1)]


async def test_without_a_late_output_they_are_counted() -> None:
    step = Step(windowing(TEN, late=None), COUNT)
    await step.advance(9)
    await step.put(("a", 4, 0), ("a", 4, 1))
    assert step.operator.metrics.counter("late_records").value == 2
    assert not step.late and not step.left()


async def test_late_is_judged_by_the_key_group_that_is_ahead() -> None:
    ahead = EventTime(5, groups=range(len(GROUPS)), ahead=((0, 1, 20),))
    step = Step(windowing(TEN), COUNT, time=ahead)
    keys = [f"k{number}" for number in range(20)]
    await step.put(*((key, 3, 0) for key in keys))
    fired = {each.key for each in await step.advance(15)}
    late = {key for key, _, _ in step.late}
    assert late and fired and late | fired == set(keys) and not late & fired


async def test_early_results_come_by_the_clock_while_there_is_news() -> None:
    step = Step(windowing(TEN, sa.Trigger.event_time().early(milliseconds(100))), COUNT)
    step.now = 130
    await step.put(("a", 1, 0))
    assert await step.clock(199) == []
    assert short(await step.clock(200)) == [("a", 0, 10, 1)]
    assert await step.clock(1000) == []
    await step.put(("a", 1, 0))
    assert short(await step.advance(9)) == [("a", 0, 10, 2)]
    assert not step.left()


async def test_nothing_that_came_is_forgotten_unseen_when_the_time_is_over() -> None:
    for trigger in (sa.Trigger.count(3), sa.Trigger.processing_time(milliseconds(100))):
        step = Step(windowing(TEN, trigger), COUNT)
        await step.put(("a", 1, 0), ("a", 2, 0))
        assert short(await step.advance(9)) == [("a", 0, 10, 2)]
        assert not step.left()


async def test_a_purging_window_begins_anew() -> None:
    step = Step(windowing(TEN, sa.Trigger.count(2).purging()), COUNT)
    assert short(await step.put(*[("a", 1, 0)] * 5)) == [("a", 0, 10, 2), ("a", 0, 10, 2)]
    assert short(await step.advance(MAX_TIME)) == [("a", 0, 10, 1)]


async def test_count_windows_go_by_number_and_carry_the_time_of_their_last_record() -> None:
    step = Step(windowing(sa.CountWindow(3)), COUNT)
    await step.put(*(("a", time, 0) for time in (50, 20, 30, 10, 99)))
    await step.put(("a", 7, 0), ("a", 8, 0))
    assert [(result.value, stamp) for result, stamp in step.results] == [(3, 30), (3, 7)]
    assert step.left().keys() == {"window.contents", "window.unfired"}
    await step.put(("a", 1, 0), ("a", 1, 0))
    assert not step.left()


async def test_a_global_window_with_an_end_fires_at_the_end_of_all_data() -> None:
    step = Step(windowing(sa.GlobalWindow(), sa.Trigger.event_time()), COUNT)
    await step.put(("a", 1, 0), ("a", 99, 0))
    assert await step.advance(10**15) == []
    assert [each.value for each in await step.advance(MAX_TIME)] == [2]
    assert not step.left()


async def test_windows_that_are_days_of_local_time() -> None:
    step = Step(windowing(sa.Tumbling(dt.timedelta(days=1), tz="Europe/Zurich")), COUNT)
    instant = int(dt.datetime(2024, 3, 31, 12, tzinfo=dt.UTC).timestamp() * 1000)
    await step.put(("a", instant, 0))
    [result] = await step.advance(MAX_TIME)
    assert result.end - result.start == 23 * 3_600_000


# ------------------------------------------------------------------------------------------------------------ sessions
async def test_a_record_between_two_sessions_makes_them_one() -> None:
    step = Step(windowing(sa.Session(milliseconds(5))), reducing(lambda a, b: ("a", 0, f"{a[2]}{b[2]}"), Any))
    await step.put(("a", 1, "1"), ("a", 11, "3"))
    await step.put(("a", 6, "2"))
    assert len(step.left()["event"]) == 1
    assert short(await step.advance(MAX_TIME)) == [("a", 1, 16, ("a", 0, "132"))]
    assert not step.left()


async def test_a_session_that_has_fired_fires_again_when_a_late_record_changes_it() -> None:
    step = Step(windowing(sa.Session(milliseconds(5)), lateness=20), COUNT)
    await step.put(("a", 1, 0))
    assert short(await step.advance(6)) == [("a", 1, 6, 1)]
    assert await step.put(("a", 5, 0)) == []
    assert short(await step.advance(9)) == [("a", 1, 10, 2)]
    assert short(await step.put(("a", 3, 0))) == [("a", 1, 10, 3)]
    assert await step.advance(30) == []
    assert not step.left()


async def test_a_late_record_that_joins_a_living_session_is_not_late() -> None:
    step = Step(windowing(sa.Session(milliseconds(5))), COUNT)
    await step.put(("a", 9, 0))
    await step.advance(12)
    await step.put(("a", 5, 0), ("a", 2, 0), ("b", 5, 0), ("c", 1, 0))
    assert step.late == [("b", 5, 0), ("c", 1, 0)]
    assert short(await step.advance(MAX_TIME)) == [("a", 2, 14, 3)]


# ----------------------------------------------------------------------------------------------------- all the elements
class Numbered(sa.WindowOperator[str, Any, Any]):
    seen = sa.ValueState(int, default=0)

    def process(self, window: sa.Windowed[str, Iterable[Any]], ctx: sa.Context[str, Any]) -> None:
        self.seen.set(self.seen.get() + 1)
        values = [value for _, _, value in window.value]
        if "bad" in values:
            raise ValueError("refused")
        ctx.emit((ctx.key, self.seen.get(), values, ctx.timestamp, ctx.watermark))


async def test_process_gets_all_elements_in_order_and_has_state_of_the_key() -> None:
    step = Step(windowing(TEN), Keeping(Any), Numbered)
    await step.put(("a", 5, 1), ("b", 3, 2))
    await step.put(("a", 2, 3), ("a", 15, 4))
    assert sorted(await step.advance(9)) == [("a", 1, [1, 3], 9, 9), ("b", 1, [2], 9, 9)]
    assert await step.advance(20) == [("a", 2, [4], 19, 20)]
    assert step.left().keys() == {"seen"}


async def test_a_window_that_fails_names_key_and_window() -> None:
    step = Step(windowing(TEN), Keeping(Any), Numbered)
    await step.put(("a", 5, "bad"))
    with pytest.raises(sa.RecordFailed, match=r"operator 'w' failed, key 'a': window \[0, 10\): ValueError: refused"):
        await step.advance(9)


async def test_a_window_that_fails_may_go_to_the_dead_letters_with_all_that_it_held() -> None:
    step = Step(windowing(TEN), Keeping(Any), Numbered, on_error=DEAD)
    await step.put(("a", 5, "bad"), ("b", 5, 1), ("a", 6, 2))
    assert await step.advance(9) == [("b", 1, [1], 9, 9)]
    [letter] = step.dead
    assert letter.value == sa.Windowed("a", 0, 10, [("a", 5, "bad"), ("a", 6, 2)])
    assert "refused" in letter.error


async def test_operators_have_no_timers() -> None:
    class Timed(sa.WindowOperator[str, Any, Any]):
        def process(self, window: sa.Windowed[str, Iterable[Any]], ctx: sa.Context[str, Any]) -> None:
            ctx.timers.event(1)

    step = Step(windowing(TEN), Keeping(Any), Timed)
    await step.put(("a", 5, 1))
    with pytest.raises(sa.RecordFailed, match="a WindowOperator has no timers"):
        await step.advance(9)


async def test_a_barrier_need_not_wait_for_all_calls_of_a_batch() -> None:
    class Slow(sa.WindowOperator[str, Any, Any]):
        async def process(self, window: sa.Windowed[str, Iterable[Any]], ctx: sa.Context[str, Any]) -> None:
            ctx.emit(len(list(window.value)))

    step = Step(windowing(sa.CountWindow(1)), Keeping(Any), Slow, interrupted=lambda: True)
    assert await step.put(("a", 1, 0), ("b", 2, 1), ("c", 3, 2)) == [1]
    assert step.link.rest is not None
    assert list(step.link.rest.values) == [("b", 2, 1), ("c", 3, 2)]


# ---------------------------------------------------------------------------------------------------- records that fail
async def test_a_record_that_can_not_be_added_is_named() -> None:
    step = Step(windowing(TEN), aggregating(sa.Sum[Any](lambda record: record[2])))
    keys = ["a", "b", "a"]
    batch = Batch([("a", 1, 1), ("b", 1, 1), ("a", 2, "x")], [1, 1, 2], keys, [0, 0, 0], [7, 8, 9], "orders@")
    with pytest.raises(
        sa.RecordFailed, match=r"operator 'w' failed, key 'a', record orders@9: TypeError: expected a nu"
    ):
        await step.put_batch(batch)


async def test_a_record_that_can_not_be_added_is_named_by_its_own_key() -> None:
    """Also among equal ones of other keys, and where it depends on what was there before."""

    def few(left: int, right: int) -> int:
        if left + right > 2:
            raise ValueError("too many")
        return left + right

    step = Step(windowing(TEN), reducing(few, int))
    batch = Batch([1, 1, 1, 1, 1], [1] * 5, ["a", "b", "b", "b", "b"], [0] * 5)
    with pytest.raises(sa.RecordFailed, match="operator 'w' failed, key 'b': ValueError: too many"):
        await step.put_batch(batch)


async def test_of_the_records_of_a_key_the_one_that_can_not_be_added_is_named() -> None:
    def sorted_ones(left: int, right: int) -> int:
        if right < left:
            raise ValueError("unsorted")
        return right

    step = Step(windowing(TEN), reducing(sorted_ones, int))
    await step.put_batch(Batch([5], [1], ["a"], [0]))
    batch = Batch([6, 4, 7], [1] * 3, ["a"] * 3, [0] * 3, [7, 8, 9], "orders@")
    with pytest.raises(sa.RecordFailed, match="operator 'w' failed, key 'a', record orders@8: ValueError: unsorted"):
        await step.put_batch(batch)


async def test_a_record_that_no_window_can_be_found_for_is_named_by_its_own_key() -> None:
    step = Step(windowing(sa.Tumbling(dt.timedelta(days=1), tz="Europe/Zurich")), COUNT)
    batch = Batch(["x", "x"], [0, MAX_TIME - 10], ["a", "b"], [0, 0])
    with pytest.raises(sa.RecordFailed, match="operator 'w' failed, key 'b': ValueError: .* is no time in the years"):
        await step.put_batch(batch)


async def test_a_record_that_can_not_be_added_may_go_to_the_dead_letters() -> None:
    step = Step(windowing(TEN), aggregating(sa.Sum[Any](lambda record: record[2])), on_error=DEAD)
    await step.put(("a", 1, 1), ("a", 2, "x"), ("a", 3, 2))
    assert [letter.value for letter in step.dead] == [("a", 2, "x")]
    assert short(await step.advance(9)) == [("a", 0, 10, 3.0)]


def limited(left: Any, right: Any) -> Any:
    if left[2] + right[2] > 3:
        raise ValueError("too many")
    return (left[0], left[1], left[2] + right[2])


@pytest.mark.parametrize(("full", "expected"), [([1, 6], {-5: 1, 0: 3, 5: 2}), ([6, 12], {0: 2, 5: 3, 10: 1})])
async def test_a_record_that_fails_in_one_of_its_windows_is_in_none(full: list[int], expected: dict[int, int]) -> None:
    """Whichever of them it is: it is in the dead letters, and would count twice if it were put in again."""
    step = Step(windowing(sa.Sliding(milliseconds(10), milliseconds(5))), reducing(limited, Any), on_error=DEAD)
    await step.put(*(("a", time, 1) for time in full))
    await step.put(("a", 8, 2), ("a", 9, 1))
    assert [letter.value for letter in step.dead] == [("a", 8, 2)]
    assert {each.start: each.value[2] for each in await step.advance(MAX_TIME)} == expected


class Held(sa.Aggregate[Any, list[Any], list[Any]]):
    """Changes its accumulator before it fails."""

    accumulator = list[Any]

    def create(self) -> list[Any]:
        return []

    def add(self, accumulator: list[Any], value: Any) -> list[Any]:
        accumulator.append(value[2])
        if accumulator.count("bad") > 1:
            raise ValueError("refused")
        return accumulator

    def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
        left += right
        if left.count("bad") > 1:
            raise ValueError("not together")
        return left

    def result(self, accumulator: list[Any]) -> list[Any]:
        if "silent" in accumulator:
            raise ValueError("no result")
        return list(accumulator)


@pytest.mark.parametrize(
    "aggregate", [Held(), sa.Aggregates(all=Held()), sa.Aggregates(all=sa.Collect[Any](), held=Held())]
)
async def test_nothing_of_a_record_that_fails_stays_in_an_accumulator(aggregate: Any) -> None:
    step = Step(windowing(TEN), aggregating(aggregate), on_error=DEAD)
    await step.put(("a", 1, "bad"), ("a", 2, "bad"), ("a", 3, 0))
    assert [letter.value for letter in step.dead] == [("a", 2, "bad")]
    [result] = await step.advance(9)
    held = result.value if isinstance(result.value, list) else result.value["all"]
    assert len(held) == 2


async def test_built_in_aggregates_do_not_copy_what_they_hold_for_each_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else collecting would take time by the square of the records."""
    both = sa.Aggregates(all=sa.Collect[Any](), some=sa.Distinct[Any](lambda record: record[2] % 7))
    step = Step(windowing(TEN), aggregating(both), on_error=DEAD)
    copied: list[Any] = []
    monkeypatch.setattr(Serializer, "copy", lambda self, value: copied.append(value))
    await step.put(*(("a", 1, number) for number in range(500)))
    assert not copied and not step.dead
    [result] = await step.advance(9)
    assert len(result.value["all"]) == 500 and result.value["some"] == 7


async def test_a_record_that_sessions_can_not_merge_for_leaves_them_as_they_are() -> None:
    step = Step(windowing(sa.Session(milliseconds(5))), aggregating(Held()), on_error=DEAD)
    await step.put(("a", 1, "bad"), ("a", 9, "bad"), ("a", 5, 0), ("a", 11, 1))
    [letter] = step.dead
    assert letter.value == ("a", 5, 0) and "not together" in letter.error
    assert short(await step.advance(MAX_TIME)) == [("a", 1, 6, ["bad"]), ("a", 9, 16, ["bad", 1])]
    assert not step.left()


async def test_what_is_derived_from_a_built_in_aggregate_may_fail_where_that_can_not() -> None:
    class Apart(sa.Collect[Any]):
        def merge(self, left: list[Any], right: list[Any]) -> list[Any]:
            raise ValueError("not together")

    step = Step(windowing(sa.Session(milliseconds(5))), aggregating(Apart()), on_error=DEAD)
    await step.put(("a", 1, 0), ("a", 9, 0), ("a", 5, 0))
    assert [letter.value for letter in step.dead] == [("a", 5, 0)]
    assert [each.value for each in await step.advance(MAX_TIME)] == [[("a", 1, 0)], [("a", 9, 0)]]


async def test_sessions_that_can_not_merge_name_key_and_window() -> None:
    step = Step(windowing(sa.Session(milliseconds(5))), aggregating(Held()))
    await step.put(("a", 1, "bad"), ("a", 9, "bad"))
    with pytest.raises(sa.RecordFailed, match=r"operator 'w' failed, key 'a': window \[1, 14\): ValueError: not tog"):
        await step.put(("a", 5, 0))


async def test_a_window_without_a_result_names_key_and_window_or_goes_to_the_dead_letters() -> None:
    records = [("a", 1, "silent"), ("b", 1, 0)]
    step = Step(windowing(TEN), aggregating(Held()))
    await step.put(*records)
    with pytest.raises(sa.RecordFailed, match=r"operator 'w' failed, key 'a': window \[0, 10\): ValueError: no result"):
        await step.advance(9)
    step = Step(windowing(TEN), aggregating(Held()), on_error=DEAD)
    await step.put(*records)
    assert short(await step.advance(9)) == [("b", 0, 10, [0])]
    [letter] = step.dead
    assert letter.value == sa.Windowed("a", 0, 10, None) and "ValueError: no result" in letter.error
    assert not step.left()


async def test_a_window_that_state_can_not_give_is_no_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be gone, with all of its records."""

    def unreadable(window: object) -> None:
        raise sa.StorageFailed("the disk is gone")

    step = Step(windowing(TEN), COUNT, on_error=DEAD)
    await step.put(("a", 1, 0))
    monkeypatch.setattr(step.link._contents, "read", unreadable)
    with pytest.raises(sa.RecordFailed, match=r"key 'a': window \[0, 10\): StorageFailed: the disk is gone"):
        await step.advance(9)
    assert not step.dead


@pytest.mark.parametrize("assigner", [TEN, sa.Session(milliseconds(5))])
@pytest.mark.parametrize("on_error", ["fail", DEAD])
async def test_a_window_beyond_the_end_of_time(assigner: Any, on_error: Any) -> None:
    step = Step(windowing(assigner), COUNT, on_error=on_error)
    if on_error == "fail":
        with pytest.raises(sa.RecordFailed, match="operator 'w' failed, key 'a'"):
            await step.put(("a", MAX_TIME, 0))
        return
    await step.put(("a", MAX_TIME, 0))
    assert [letter.value for letter in step.dead] == [("a", MAX_TIME, 0)]
    assert not step.left()


async def test_a_record_without_a_time_stamp_is_named() -> None:
    for stamps in ([5, None, 6], None):
        step = Step(windowing(TEN), COUNT)
        with pytest.raises(sa.RecordFailed, match="InvalidTimestamp: the record has no time-stamp"):
            await step.put_batch(Batch(["x", "y", "z"], stamps, ["a"] * 3, [0] * 3))


# ------------------------------------------------------------------------------------------------------ nothing is left
def heap(_: Path) -> KeyedBackend:
    return HeapBackend(GROUPS, len(GROUPS), uid="w")


def rocksdb(folder: Path) -> KeyedBackend:
    options = RocksDBOptions(folder=str(folder), memory=8 << 20, cache=16, dirty=4)
    return RocksDBBackend(GROUPS, len(GROUPS), uid="w", options=options)


@pytest.mark.parametrize("made", [heap, rocksdb])
@pytest.mark.parametrize(
    "how",
    [
        windowing(TEN),
        windowing(TEN, lateness=7),
        windowing(TEN, sa.Trigger.event_time().early(milliseconds(1000))),
        windowing(TEN, sa.Trigger.count(3)),
        windowing(TEN, sa.Trigger.processing_time(milliseconds(1000)).purging()),
        windowing(sa.Sliding(milliseconds(10), milliseconds(3)), lateness=4),
        windowing(sa.Session(milliseconds(5)), lateness=3),
        windowing(sa.Session(milliseconds(5)), sa.Trigger.event_time().early(milliseconds(1000)).purging()),
        windowing(sa.CountWindow(2)),
    ],
    ids=repr,
)
async def test_windows_that_are_over_leave_nothing_behind(tmp_path: Path, made: Any, how: Any) -> None:
    """Forty keys, each with windows that come and go."""
    for contents, operator in ((COUNT, None), (Keeping(Any), Numbered)):
        backend = made(tmp_path / str(operator))
        try:
            step = Step(how, contents, operator, backend=backend)
            for start in range(0, 100, 20):
                for part in range(0, 40, 20):
                    keys = [f"k{number}" for number in range(part, part + 20)]
                    await step.put(*((key, start + late, 0) for late in (3, 12, 5, 19) for key in keys))
                await step.advance(start + 12)
            await step.advance(500)
            assert len(step.results) >= 200
            assert step.left().keys() == ({"seen"} if operator else set())
        finally:
            backend.close()


async def test_a_key_with_very_many_windows_in_rocksdb(tmp_path: Path) -> None:
    """More than are kept in memory as a whole."""
    backend = rocksdb(tmp_path)
    try:
        step = Step(windowing(sa.Sliding(milliseconds(3000), milliseconds(1))), COUNT, backend=backend)
        await step.put(("a", 5000, 0), ("a", 5001, 0))
        step.snapshot()
        await step.put(("a", 5000, 0))
        results = await step.advance(MAX_TIME)
        assert len(results) == 3001
        assert sum(each.value for each in results) == 9000
        assert not step.left()
    finally:
        backend.close()


@pytest.mark.parametrize("made", [heap, rocksdb])
async def test_a_snapshot_holds_what_was_there_when_it_began(tmp_path: Path, made: Any) -> None:
    """Also accumulators that are changed in place, which it has not written yet."""
    backend = made(tmp_path)
    try:
        step = Step(windowing(TEN), aggregating(sa.Collect[Any]()), backend=backend)
        await step.put(("a", 1, "before"))
        snapshot = backend.begin_snapshot(1)
        await step.put(("a", 1, "after"), ("a", 11, "after"))
        blocks = []
        while (block := snapshot.next_block()) is not None:
            blocks.append(block)
        other = Step(windowing(TEN), aggregating(sa.Collect[Any]()))
        other.backend.check_schemas(backend.schemas())
        other.backend.restore(blocks)
        assert short(await other.advance(MAX_TIME)) == [("a", 0, 10, [("a", 1, "before")])]
    finally:
        backend.close()


# ----------------------------------------------------------------------------------------------------------- bad input
def numbers(*, timed: bool = True) -> sa.Stream[int]:
    flow = sa.Dataflow("refused")
    watermarks: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda number: number)
    return flow.source("numbers", ListSource([1, 2, 3]), watermarks=watermarks if timed else None)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"assigner": sa.GlobalWindow()}, r"window 'w': GlobalWindow\(\) never ends, .* give a trigger"),
        ({"assigner": dt.timedelta(1)}, "is no kind of window: give one such as sa.Tumbling"),
        ({"assigner": sa.Tumbling}, "is no kind of window"),
        ({"assigner": TEN, "allowed_lateness": dt.timedelta(-1)}, "allowed_lateness=.*0 or more"),
        ({"assigner": TEN, "allowed_lateness": 5}, "allowed_lateness=5: give a timedelta"),
        ({"assigner": TEN, "trigger": "daily"}, "trigger='daily': give a Trigger"),
        ({"assigner": TEN, "late": "late"}, "late='late': give an OutputTag"),
        ({"assigner": sa.CountWindow(2), "allowed_lateness": dt.timedelta(1)}, "nothing is late for CountWindow"),
        (
            {"assigner": sa.CountWindow(2), "trigger": sa.Trigger.count(5)},
            r"CountWindow\(2\) fires with its last record, and has no other trigger: .* GlobalWindow",
        ),
    ],
)
def test_what_makes_no_window_is_refused_when_the_flow_is_built(options: dict[str, Any], match: str) -> None:
    with pytest.raises(sa.InvalidDataflow, match=match):
        numbers().key_by(lambda number: number).window("w", **options)


def test_wrong_uses_are_refused_when_the_flow_is_built() -> None:
    async def later(left: int, right: int) -> int:
        return left

    windows = numbers().key_by(lambda number: number).window("w", TEN)
    with pytest.raises(sa.InvalidDataflow, match="Count is a class; give an instance"):
        windows.aggregate(sa.Count)  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="reduce takes a plain function"):
        windows.reduce(later)  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="given as an instance"):
        windows.process(Numbered())  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match=r"is a WindowOperator, used as stream.key_by"):
        numbers().key_by(str).process("w", Numbered)  # type: ignore[arg-type]
    with pytest.raises(sa.InvalidDataflow, match="window_all 'w' has one subtask"):
        numbers().window_all("w", TEN).aggregate(sa.Count(), parallelism=2)
    late = numbers().key_by(str).window("w", TEN, late=sa.OutputTag("aside", int))
    with pytest.raises(sa.InvalidDataflow, match="late= and on_error= both send to the side output 'aside'"):
        late.aggregate(sa.Count(), on_error=sa.OutputTag("aside", sa.DeadLetter))
    with pytest.raises(sa.InvalidDataflow, match="window needs a uid first"):
        numbers().key_by(str).window(TEN)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("build", [lambda: sa.Trigger.count(0), lambda: sa.Trigger.processing_time(dt.timedelta(0))])
def test_triggers_that_never_fire_are_refused(build: Any) -> None:
    with pytest.raises(sa.InvalidDataflow, match="at least"):
        build()


async def test_event_time_without_watermarks_is_refused_by_name_before_anything_runs() -> None:
    windows = numbers(timed=False).key_by(lambda number: number).window("w", TEN).aggregate(sa.Count())
    with pytest.raises(sa.InvalidDataflow, match=r"window 'w' works in event time, and no watermarks come from source"):
        await sa.collect(windows)
    counted = numbers(timed=False).key_by(lambda number: 0).window("w", sa.CountWindow(3)).reduce(max)
    [result] = await sa.collect(counted)
    assert result.value == 3


async def test_late_records_that_nobody_reads_are_refused() -> None:
    late = sa.OutputTag("aside", int)
    windows = numbers().key_by(lambda number: number).window("w", TEN, late=late).aggregate(sa.Count())
    with pytest.raises(
        sa.InvalidDataflow, match="window 'w' sends records to side output 'aside' by late=, and nothing"
    ):
        await sa.collect(windows)


async def test_a_whole_flow_over_all_records_with_late_ones_beside() -> None:
    late = sa.OutputTag("late", int)
    flow, out, beside = sa.Dataflow("all"), ListSink[Any](), ListSink[int]()
    watermarks: sa.Watermarks[int] = sa.Watermarks.monotonic(lambda number: number)
    feed = Feed(chunk=1)
    feed.put(1, 5, 12, 40, 3, 41)
    feed.end()
    source = flow.source("numbers", feed, watermarks=watermarks)
    given = source.window_all("w", TEN, late=late).reduce(lambda a, b: a + b)
    given.sink("out", out)
    given.side_output(late).sink("beside", beside)
    await sa.run(flow)
    assert sorted(short(out.values), key=lambda row: row[1]) == [
        (None, 0, 10, 6),
        (None, 10, 20, 12),
        (None, 40, 50, 81),
    ]
    assert beside.values == [3]
