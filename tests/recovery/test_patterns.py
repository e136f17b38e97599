"""Patterns over crashes, rescales and changes of the backend: each match comes once, and is what the automaton alone
makes of each key's events in order; and what another pattern has left is refused."""

import asyncio
import datetime as dt
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink
from tests.operators.patterns.matching import Machine, asked
from tests.recovery.test_backends import settings
from tests.runtime.feeds import PATIENCE, Feed, until

pytestmark = pytest.mark.slow

KEYS = 12
LEG = 400
DISORDER = 40
TIMED_OUT: Any = sa.OutputTag("timed-out", sa.Match)
DEAD = sa.OutputTag("dead", sa.DeadLetter)


class Event(msgspec.Struct, frozen=True):
    number: int
    key: int
    kind: str
    time: int


def made_up(count: int) -> list[Event]:
    """Their times grow, but for a disorder within the bound."""
    draw = random.Random(7)
    return [
        Event(number, draw.randrange(KEYS), draw.choice("aabcnx"), 10 * number + DISORDER - draw.randrange(DISORDER))
        for number in range(count)
    ]


WATERMARKS: sa.Watermarks[Event] = sa.Watermarks.bounded(
    lambda event: event.time, DISORDER * dt.timedelta(milliseconds=1)
)


def of(kind: str) -> Any:
    return lambda event: event.kind == kind


def async_of(kind: str) -> Any:
    async def condition(event: Event) -> bool:
        await asyncio.sleep(0)
        return event.kind == kind

    return condition


def broken(event: Event) -> bool:
    if event.kind == "x":
        raise ValueError("no rule")
    return event.kind == "b"


async def broken_later(event: Event) -> bool:
    await asyncio.sleep(0)
    return broken(event)


def climbing(condition: Any) -> sa.Pattern[Event]:
    """Much of everything: loops, a way around, something that must not come, a window, a condition that may fail."""
    second = broken if condition is of else broken_later
    begun = sa.Pattern.begin("a", condition("a")).times(1, 3).followed_by("b", second).optional()
    return (
        begun.not_followed_by("n", condition("n"))
        .followed_by_any("c", condition("c"))
        .within(dt.timedelta(milliseconds=1500))
    )


def patterns(feed: Feed, sinks: list[ListSink[Any]], pattern: Any) -> sa.Dataflow:
    flow = sa.Dataflow("patterns")
    events = flow.source("events", feed, watermarks=WATERMARKS, parallelism=1)
    found = events.key_by(lambda event: event.key).pattern("match", pattern, timed_out=TIMED_OUT, on_error=DEAD)
    found.sink("out", sinks[0])
    found.side_output(TIMED_OUT).sink("timed-out", sinks[1])
    found.side_output(DEAD).sink("dead", sinks[2])
    return flow


Shown = tuple[int, int, tuple[int, ...]]


def shown(matches: list[sa.Match[Event]]) -> list[Shown]:
    return sorted(
        (one.start, one.end, tuple(e.number for each in one.events.values() for e in each)) for one in matches
    )


def expected(events: list[Event]) -> tuple[list[Shown], list[Shown]]:
    """Matches, and what timed out. Events on which a condition fails change nothing."""
    matches: list[Shown] = []
    timed_out: list[Shown] = []
    pattern = climbing(of)
    for key in range(KEYS):
        machine = Machine(pattern, asked(pattern))
        good = (event for event in events if event.key == key and event.kind != "x")
        own = sorted(good, key=lambda event: (event.time, event.number))
        for found in [*machine.give_all((event, event.time) for event in own), *machine.end()]:
            numbers = tuple(event.number for event in found.values)
            (timed_out if found.timed_out else matches).append((found.path[0].timestamp, found.time, numbers))
    return sorted(matches), sorted(timed_out)


async def read(job: sa.JobHandle, count: int) -> None:
    """Until this attempt has processed so many."""
    await until(
        lambda: (
            sum(
                job.metrics()["subtasks"].get(f"match[{i}]", {}).get("nodes", {}).get("match", {}).get("records_in", 0)
                for i in range(3)
            )
            >= count
        )
    )


@pytest.mark.parametrize("alignment", ["aligned", "unaligned"])
@pytest.mark.parametrize("backends", [("heap",) * 3, ("rocksdb",) * 3, ("heap", "rocksdb", "heap")])
@pytest.mark.parametrize("condition", [of, async_of])
async def test_crashed_rescaled_and_restored(
    tmp_path: Path, backends: tuple[str, ...], alignment: Any, condition: Any
) -> None:
    events = made_up(3 * LEG)
    feed, sinks = Feed(chunk=16), [ListSink[Any](), ListSink[Any](), ListSink[Any]()]
    small = sa.RocksDB(memory=8 << 20, cache=16)
    pattern = climbing(condition)
    for leg, (backend, parallelism) in enumerate(zip(backends, (2, 3, 1), strict=True)):
        given = settings(tmp_path, small if backend == "rocksdb" else backend, parallelism, alignment=alignment)
        if leg == 2:
            feed.put(*events[leg * LEG :])
            feed.end()
            async with asyncio.timeout(PATIENCE):
                await sa.run(patterns(feed, sinks, pattern), given)
            break
        async with sa.start(patterns(feed, sinks, pattern), given, on_exit="cancel") as job:
            feed.put(*events[leg * LEG : leg * LEG + LEG // 2])
            await read(job, 1)
            await job.checkpoint()
            feed.put(*events[leg * LEG + LEG // 2 : (leg + 1) * LEG])
            await read(job, LEG // 4)  # processed again after the crash
    matches, timed_out = expected(events)
    assert len(matches) > 100 and len(timed_out) > 100
    assert shown(sinks[0].values) == matches
    assert shown(sinks[1].values) == timed_out
    failed = [letter.value.number for letter in sinks[2].values]
    assert len(failed) == len(set(failed)) > 50
    assert set(failed) <= {event.number for event in events if event.kind == "x"}


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_partial_matches_of_another_pattern_are_refused(tmp_path: Path, backend: str) -> None:
    feed, sinks = Feed(chunk=16), [ListSink[Any](), ListSink[Any](), ListSink[Any]()]
    before = sa.Pattern.begin("a", of("a")).next("b", of("b")).within(dt.timedelta(hours=1))
    after = sa.Pattern.begin("a", of("a")).followed_by("b", of("b")).within(dt.timedelta(hours=1))
    feed.put(Event(0, 1, "a", 10), Event(1, 2, "a", 2000))
    async with sa.start(patterns(feed, sinks, before), settings(tmp_path, backend, 2), on_exit="cancel") as job:
        async with asyncio.timeout(PATIENCE):
            while not await job.query("match", "partial_matches", 1):
                await asyncio.sleep(0.001)
        await job.checkpoint()
    with pytest.raises(sa.IncompatibleState, match="partial matches of another pattern") as failed:
        async with asyncio.timeout(PATIENCE):
            await sa.run(patterns(feed, sinks, after), settings(tmp_path, backend, 3))
    assert "begin a, next b, within 3600000 ms" in str(failed.value)
    assert "begin a, followed by b, within 3600000 ms" in str(failed.value)
    feed.put(Event(2, 1, "b", 3000))
    feed.end()
    async with asyncio.timeout(PATIENCE):  # another condition, another strategy: the same structure
        again = sa.Pattern.begin("a", of("x")).next("b", of("b")).within(dt.timedelta(hours=1)).skip("past-last")
        await sa.run(patterns(feed, sinks, again), settings(tmp_path, backend, 1))
    assert shown(sinks[0].values) == [(10, 3000, (0, 2))]


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_another_pattern_may_go_on_where_nothing_is_left_of_the_old_one(tmp_path: Path, backend: str) -> None:
    """Events that no watermark has come to are the new one's."""
    feed, sinks = Feed(chunk=16), [ListSink[Any](), ListSink[Any](), ListSink[Any]()]
    before = sa.Pattern.begin("a", of("a")).next("b", of("b")).within(dt.timedelta(hours=1))
    after = sa.Pattern.begin("c", of("c")).next("b", of("b")).within(dt.timedelta(hours=1))
    feed.put(Event(0, 1, "a", 10), Event(1, 1, "n", 20), Event(2, 1, "c", 100))
    async with sa.start(patterns(feed, sinks, before), settings(tmp_path, backend, 2), on_exit="cancel") as job:
        await read(job, 3)
        async with asyncio.timeout(PATIENCE):
            while len(await job.query("match", "waiting", 1)) != 1:
                await asyncio.sleep(0.001)
        assert not await job.query("match", "partial_matches", 1)
        await job.checkpoint()
    feed.put(Event(3, 1, "b", 110))
    feed.end()
    async with asyncio.timeout(PATIENCE):
        await sa.run(patterns(feed, sinks, after), settings(tmp_path, backend, 3))
    assert shown(sinks[0].values) == [(100, 110, (2, 3))]
