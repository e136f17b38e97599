"""A flow with a pattern: over crashes and rescales each match comes once, and so does each that has timed out."""

import asyncio
import datetime as dt
from collections import defaultdict
from typing import Any, Final

from streamactors.api.dataflow import Dataflow
from streamactors.elements import OutputTag
from streamactors.operators.patterns.pattern import Match, Pattern
from streamactors.testing.simulation.checks import nothing_twice
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.timed import LATE_BY, Timed, timed_events
from streamactors.testing.simulation.world import World
from streamactors.time.watermarks import Watermarks

WITHIN: Final = 2000
"""Milliseconds; a record takes 100."""
TIMED_OUT: Final = OutputTag[Match[Timed]]("timed-out", Match)


async def _begins(event: Timed) -> bool:
    """Takes its time, so that much is in flight, and timers fire slowly."""
    await asyncio.sleep(0.01 * (7 * event.number % 11))
    return event.number % 2 == 0


def _follows(event: Timed) -> bool:
    return event.number % 2 == 1


def pattern(world: World) -> Dataflow:
    """Disorder is within the bound: nothing is late."""
    flow = Dataflow("pattern")
    watermarks = Watermarks.bounded(_time_of, dt.timedelta(milliseconds=100 * LATE_BY))
    source = flow.source("events", world.source([timed_events(world)]), watermarks=watermarks, parallelism=1)
    looked_for = Pattern.begin("even", _begins).followed_by("odd", _follows).times(2, 2)
    found = source.key_by(_key_of).pattern(
        "match", looked_for.within(dt.timedelta(milliseconds=WITHIN)), timed_out=TIMED_OUT
    )
    found.union(found.side_output(TIMED_OUT)).sink("out", world.sink())
    return flow


def _time_of(event: Timed) -> int:
    return event.time


def _key_of(event: Timed) -> str:
    return event.key


def matched_once(outcome: Outcome) -> None:
    wanted = _wanted(timed_events(outcome.world))
    found: list[Match[Any]] = outcome.output()
    taken = [tuple(event.number for stage in match.events.values() for event in stage) for match in found]
    assert not wanted - set(taken), f"matches are lost: {sorted(wanted - set(taken))[:10]}"
    if outcome.exactly_once:
        assert not set(taken) - wanted, f"there are no such matches: {sorted(set(taken) - wanted)[:10]}"
        nothing_twice(taken)
        kept = ("waiting", "events", "partial_matches")
        left = {name: outcome.states["match"][name] for name in kept if outcome.states["match"][name]}
        assert not left, f"windows are over, and state is left: {left}"


def _wanted(events: list[Timed]) -> set[tuple[int, ...]]:
    """Each even record, and the two odd ones after it, as far as they come in its window."""
    by_key: defaultdict[str, list[Timed]] = defaultdict(list)
    for event in sorted(events, key=lambda event: (event.time, event.number)):
        by_key[event.key].append(event)
    wanted = set()
    for own in by_key.values():
        for place, first in enumerate(own):
            if first.number % 2 == 0:
                after = [each for each in own[place + 1 :] if each.number % 2 and each.time - first.time < WITHIN]
                wanted.add((first.number, *(each.number for each in after[:2])))
    return wanted
