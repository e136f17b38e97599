"""Patterns in whole jobs: the order of event time, late events, time-outs, async conditions, state that goes away."""

import asyncio
import datetime as dt
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from tests.runtime.feeds import PATIENCE, Feed
from tests.runtime.test_timers import pending

MS = dt.timedelta(milliseconds=1)
TIMED_OUT: Any = sa.OutputTag("timed-out", sa.Match)
LATE: Any = sa.OutputTag("late", tuple)
either_backend = pytest.mark.parametrize("backend", ["heap", "rocksdb"])


class Event(msgspec.Struct, frozen=True):
    key: str
    kind: str
    time: int


def of(kind: str) -> Any:
    return lambda event: event.kind == kind


def async_of(kind: str) -> Any:
    async def condition(event: Event) -> bool:
        await asyncio.sleep(0)
        return event.kind == kind

    return condition


def events(*texts: str) -> list[Event]:
    """ "k a 5": an a for key k at 5."""
    return [Event(key, kind, int(time)) for key, kind, time in map(str.split, texts)]


def bounded(by: int) -> sa.Watermarks[Event]:
    return sa.Watermarks.bounded(lambda event: event.time, by * MS)


async def matched(
    values: list[Event], pattern: Any, *, watermarks: Any = None, backend: Any = "heap", **options: Any
) -> tuple[list[sa.Match[Any]], list[sa.Match[Any]], list[Any]]:
    """Matches, what timed out, what was late."""
    outs: list[ListSink[Any]] = [ListSink(), ListSink(), ListSink()]
    flow = sa.Dataflow("patterns")
    source = flow.source("events", ListSource(values), watermarks=watermarks, parallelism=1)
    found = source.key_by(lambda event: event.key).pattern("match", pattern, **options)
    found.sink("out", outs[0])
    if "timed_out" in options:
        found.side_output(TIMED_OUT).sink("timed-out", outs[1])
    if "late" in options:
        found.side_output(LATE).sink("late", outs[2])
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(state_backend=backend))
    return outs[0].values, outs[1].values, outs[2].values


def shown(matches: list[sa.Match[Any]]) -> list[str]:
    return sorted(
        f"{match.key} {match.start}-{match.end}: "
        + " ".join(f"{one.kind}{one.time}" for each in match.events.values() for one in each)
        for match in matches
    )


A_THEN_B = sa.Pattern.begin("first", of("a")).followed_by("second", of("b"))


@either_backend
@pytest.mark.parametrize("condition", [of, async_of])
async def test_events_are_taken_in_the_order_of_event_time(backend: str, condition: Any) -> None:
    pattern = sa.Pattern.begin("first", condition("a")).next("second", condition("b"))
    values = events("x b 12", "x a 11", "y a 11", "y b 13", "y c 12", "x a 20", "x b 20")
    found, _, _ = await matched(values, pattern, watermarks=bounded(50), backend=backend)
    assert shown(found) == ["x 11-12: a11 b12", "x 20-20: a20 b20"]
    assert found[0]["first"] == [Event("x", "a", 11)] and list(found[0].events) == ["first", "second"]
    with pytest.raises(KeyError):
        found[0]["third"]


async def test_without_watermarks_in_the_order_of_arrival() -> None:
    found, _, _ = await matched(events("x a 9", "y b 1", "x b 5", "y a 1"), A_THEN_B)
    assert shown(found) == ["x 0-0: a9 b5"]


async def test_late_events_are_counted_and_go_to_a_side_output() -> None:
    feed, sink, late = Feed(chunk=1), ListSink[Any](), ListSink[Any]()
    flow = sa.Dataflow("patterns")
    source = flow.source("events", feed, watermarks=bounded(0), parallelism=1)
    found = source.key_by(lambda event: event.key).pattern("match", A_THEN_B, late=LATE)
    found.sink("out", sink)
    found.side_output(LATE).sink("late", late)
    async with sa.start(flow, sa.Config(), on_exit="cancel") as job:
        feed.put(*events("x a 10", "x c 30", "x b 20", "x b 31", "x c 40"))
        feed.end()
        async with asyncio.timeout(PATIENCE):
            await job.wait()
        node = job.metrics()["subtasks"]["match[0]"]["nodes"]["match"]
    assert late.values == events("x b 20") and shown(sink.values) == ["x 10-31: a10 b31"]
    assert node["late_records"] == 1 or node["user"]["late_records"] == 1


async def test_what_is_not_complete_within_its_window_times_out() -> None:
    pattern = A_THEN_B.within(10 * MS)
    values = events("x a 1", "x b 10", "x a 20", "x b 30", "y a 5", "x c 99")
    found, timed_out, _ = await matched(values, pattern, watermarks=bounded(3), timed_out=TIMED_OUT)
    assert shown(found) == ["x 1-10: a1 b10"]
    assert shown(timed_out) == ["x 20-29: a20", "y 5-14: a5"]


async def test_what_must_not_follow_completes_a_match_when_the_window_is_over() -> None:
    pattern = sa.Pattern.begin("order", of("order")).not_followed_by("paid", of("paid")).within(10 * MS)
    values = events("x order 1", "x paid 5", "y order 1", "y paid 11", "z order 90")
    found, _, _ = await matched(values, pattern, watermarks=bounded(0))
    assert shown(found) == ["y 1-10: order1", "z 90-99: order90"]


async def test_conditions_see_what_was_taken_before() -> None:
    async def rises(event: Event, match: sa.Match[Event]) -> bool:
        await asyncio.sleep(0)
        assert match.key == event.key and match.end < event.time
        return event.time - match["first"][0].time > 5

    pattern = sa.Pattern.begin("first", of("a")).followed_by("second", rises)
    found, _, _ = await matched(events("x a 1", "x a 3", "x b 7", "x b 9"), pattern, watermarks=bounded(0))
    assert shown(found) == ["x 1-7: a1 b7", "x 3-9: a3 b9"]


@either_backend
async def test_nothing_is_left_of_what_can_not_be_completed(backend: Any) -> None:
    """No runs, no events, no timers: long before the window is over."""
    pattern = sa.Pattern.begin("a", of("a")).one_or_more().consecutive().next("b", of("b")).within(1000 * MS)
    feed, sink = Feed(chunk=1), ListSink[Any]()
    flow = sa.Dataflow("patterns")
    source = flow.source("events", feed, watermarks=bounded(0), parallelism=1)
    source.key_by(lambda event: event.key).pattern("match", pattern).sink("out", sink)
    async with sa.start(flow, sa.Config(state_backend=backend), on_exit="cancel") as job:

        async def kept(key: str) -> list[int]:
            return [len(await job.query("match", state, key)) for state in ("partial_matches", "events", "waiting")]

        async def until_kept(key: str, wanted: list[int]) -> None:
            async with asyncio.timeout(PATIENCE):
                while await kept(key) != wanted:
                    await asyncio.sleep(0.001)

        feed.put(*events("x a 1", "x a 2", "x b 3", "y a 4", "y c 5", "z a 6", "z a 7", "v c 8"))
        await until_kept("z", [3, 2, 0])
        assert await kept("x") == await kept("y") == [0, 0, 0]
        assert pending(job) >= 2
        feed.put(*events("z c 9", "w c 10"))
        await until_kept("z", [0, 0, 0])
        assert pending(job) <= 1  # that of w, if its time has not come
        feed.end()
        async with asyncio.timeout(PATIENCE):
            await job.wait()
    assert shown(sink.values) == ["x 1-3: a1 a2 b3", "x 2-3: a2 b3"]


async def test_too_many_partial_matches_are_an_error() -> None:
    pattern = sa.Pattern.begin("a", of("a")).followed_by_any("b", of("b"))
    values = events(*(f"x a {time}" for time in range(1, 9)))
    assert await matched(values, pattern, watermarks=bounded(0), max_partial_matches=8) == ([], [], [])
    with pytest.raises(sa.JobFailed, match="9 partial matches of one key, and max_partial_matches=8") as failed:
        await matched([*values, *events("x a 9")], pattern, watermarks=bounded(0), max_partial_matches=8)
    assert isinstance(failed.value.__cause__.__cause__, sa.TooManyPartialMatches)  # type: ignore[union-attr]


async def test_they_are_counted_after_each_event_even_of_one_time() -> None:
    """Each of these doubles them: whoever counted at the end of the time-stamp would count millions."""
    pattern = sa.Pattern.begin("a", of("a")).one_or_more().allow_combinations().followed_by("z", of("z"))
    same = events(*["x a 1"] * 40)
    with pytest.raises(sa.JobFailed, match="15 partial matches of one key, and max_partial_matches=10"):
        await matched(same, pattern, watermarks=bounded(0), max_partial_matches=10)


async def test_what_has_gone_on_counts_once() -> None:
    pattern = sa.Pattern.begin("a", of("a")).followed_by("b", of("b")).followed_by("c", of("c"))
    values = events("x a 1", "x b 2", "x c 3")
    found, _, _ = await matched(values, pattern, watermarks=bounded(0), max_partial_matches=1)
    assert len(found) == 1


async def test_within_without_watermarks_is_refused() -> None:
    with pytest.raises(sa.StreamactorsError, match=r"pattern 'match': within\(…\) is about event time"):
        await matched(events("x a 1"), A_THEN_B.within(MS))


async def test_a_plain_function_that_gives_an_awaitable_is_refused() -> None:
    pattern: Any = sa.Pattern.begin("a", lambda event: async_of("a")(event))
    with pytest.raises(sa.JobFailed, match="make it an `async def`"):
        await matched(events("x a 1"), pattern)


async def test_a_condition_that_fails_names_the_operator_and_the_key() -> None:
    def broken(event: Event) -> bool:
        raise ValueError("no rule")

    with pytest.raises(sa.JobFailed, match=r"operator 'match' failed, key 'x'.*ValueError: no rule"):
        await matched(events("x a 1"), sa.Pattern.begin("a", broken), watermarks=bounded(0))


DEAD = sa.OutputTag("dead", sa.DeadLetter)


def a_or_bad(event: Event) -> bool:
    return event.kind in ("a", "bad")


def b_unless_bad(event: Event, match: sa.Match[Event]) -> bool:
    if event.kind == "bad" and match["a"][0].time == 2:  # when it has gone into partial matches that began before
        raise ValueError("no rule")
    return event.kind == "b"


async def awaited_b(event: Event, match: sa.Match[Event]) -> bool:
    await asyncio.sleep(0)
    return b_unless_bad(event, match)


@either_backend
@pytest.mark.parametrize("condition", [b_unless_bad, awaited_b])
@pytest.mark.parametrize("watermarks", [bounded(5), None])
async def test_an_event_on_which_a_condition_fails_may_go_to_the_dead_letters(
    backend: Any, condition: Any, watermarks: Any
) -> None:
    """As if it had not come: what the conditions before had let it begin is taken back."""
    pattern = sa.Pattern.begin("a", a_or_bad).one_or_more().followed_by("b", condition)
    values = events("x a 1", "x a 2", "x bad 3", "x a 3", "y a 2", "y bad 3", "x bad 4", "x b 4", "y b 4")
    good = [event for event in values if event.kind != "bad"]
    expected, _, _ = await matched(good, pattern, watermarks=watermarks)
    out, dead, flow = ListSink[Any](), ListSink[Any](), sa.Dataflow("patterns")
    source = flow.source("events", ListSource(values), watermarks=watermarks, parallelism=1)
    found = source.key_by(lambda event: event.key).pattern("match", pattern, on_error=DEAD)
    found.sink("out", out)
    found.side_output(DEAD).sink("dead", dead)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(state_backend=backend, parallelism=1))
    assert shown(out.values) == shown(expected) and len(expected) == 7
    letters = sorted((letter.value.key, letter.value.time, letter.uid) for letter in dead.values)
    assert letters == [("x", 3, "match"), ("x", 4, "match"), ("y", 3, "match")]
    assert all(letter.error == "ValueError: no rule" and "b_unless_bad" in letter.traceback for letter in dead.values)


async def test_too_many_partial_matches_are_an_error_wherever_dead_letters_go() -> None:
    pattern = sa.Pattern.begin("a", of("a")).followed_by_any("b", of("b"))
    for watermarks in (bounded(0), None):
        flow = sa.Dataflow("patterns")
        source = flow.source("events", ListSource(events(*["x a 1"] * 5)), watermarks=watermarks, parallelism=1)
        found = source.key_by(lambda event: event.key).pattern("m", pattern, on_error=DEAD, max_partial_matches=4)
        found.side_output(DEAD).sink("dead", ListSink[Any]())
        with pytest.raises(sa.JobFailed, match="5 partial matches of one key"):
            async with asyncio.timeout(PATIENCE):
                await sa.run(flow)


async def test_a_condition_that_stops_an_iteration_fails_by_its_name() -> None:
    def broken(event: Event) -> bool:
        return bool(next(iter([])))

    with pytest.raises(sa.JobFailed, match="operator 'match' failed, key 'x'.*StopIteration"):
        await matched(events("x a 1"), sa.Pattern.begin("a", broken))


async def test_what_times_out_and_nobody_reads_is_refused() -> None:
    flow = sa.Dataflow("patterns")
    source = flow.source("events", ListSource(events("x a 1")), watermarks=bounded(0))
    pattern = A_THEN_B.within(10 * MS)
    found = source.key_by(lambda event: event.key).pattern("match", pattern, timed_out=TIMED_OUT)
    found.sink("out", ListSink[Any]())
    with pytest.raises(
        sa.InvalidDataflow, match="pattern 'match' sends records to side output 'timed-out' by timed_ou"
    ):
        await sa.run(flow)


async def test_any_type_of_event(tmp_path: Any) -> None:
    """Of streams whose type is not known, too."""
    sink, flow = ListSink[Any](), sa.Dataflow("patterns")
    source = flow.source("events", ListSource([("x", 1), ("x", {"deep": [2]}), ("x", Event("x", "a", 3))]))
    pattern: sa.Pattern[Any] = sa.Pattern.begin("any", lambda value: True).times(3, 3)
    found: Any = source.key_by(lambda value: value[0]).pattern("match", pattern)
    found.key_by(lambda match: match.key).reduce("last", lambda _, match: match).sink("out", sink)
    storage = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(milliseconds=5))
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(state_backend="rocksdb", checkpoints=storage, parallelism=1))
    assert [match["any"][1] for match in sink.values] == [("x", {"deep": [2]})]


async def test_an_event_without_a_time_stamp_among_others_is_refused() -> None:
    flow = sa.Dataflow("patterns")
    timed = flow.source("timed", ListSource(events("x a 1")), watermarks=bounded(0))
    both = timed.union(flow.source("untimed", ListSource(events("x b 2"))))
    both.key_by(lambda event: event.key).pattern("match", A_THEN_B).sink("out", ListSink[Any]())
    with pytest.raises(sa.StreamactorsError, match="a record without a time-stamp among others that have one"):
        async with asyncio.timeout(PATIENCE):
            await sa.run(flow)


async def test_bounded_input_run_key_by_key_gives_the_same() -> None:
    values = events(*(f"k{number % 3} {'aabc'[number % 4]} {10 * number + number % 7}" for number in range(200)))
    outcomes = []
    for execution in ("streaming", "batch"):
        sinks: list[ListSink[Any]] = [ListSink(), ListSink()]
        flow = sa.Dataflow("patterns")
        source = flow.source("events", ListSource(values), watermarks=bounded(20), parallelism=1)
        pattern = A_THEN_B.followed_by_any("third", of("c")).within(300 * MS)
        found = source.key_by(lambda event: event.key).pattern("match", pattern, timed_out=TIMED_OUT)
        found.sink("out", sinks[0])
        found.side_output(TIMED_OUT).sink("timed-out", sinks[1])
        config: Any = {"execution": execution}
        async with asyncio.timeout(PATIENCE):
            await sa.run(flow, sa.Config(**config))
        outcomes.append([shown(sink.values) for sink in sinks])
    assert outcomes[0] == outcomes[1] and all(outcomes[0])
