"""A flow with joins: over crashes and rescales every pair comes out, and nothing that was matched comes out alone."""

import asyncio
import datetime as dt
from typing import Any, Final

import msgspec

from streamactors.api.dataflow import Dataflow, KeyedStream, Stream
from streamactors.testing.simulation.checks import nothing_twice
from streamactors.testing.simulation.result import Outcome
from streamactors.testing.simulation.world import World
from streamactors.time.watermarks import Watermarks
from streamactors.time.windows import Session

_MILLISECOND: Final = dt.timedelta(milliseconds=1)
LOWER: Final = -30
UPPER: Final = 90
GAP: Final = 65
"""Milliseconds; no two records are that far apart."""
DISORDER: Final = 80


class Placed(msgspec.Struct, frozen=True):
    """Record `number` of a side. All times are multiples of 10, and no two of one side are equal."""

    side: str
    number: int
    key: str
    time: int


class Joined(msgspec.Struct, frozen=True):
    """Of which records; None where there is none."""

    left: int | None
    right: int | None


Keyed = KeyedStream[str, Placed]


def rows(world: World, side: str) -> list[Placed]:
    draw = world.random(f"side {side}")
    count = draw.randint(15, 40)
    keys = [f"k{draw.randrange(4)}" for _ in range(count)]
    placed = [Placed(side, number, key, 10 * number) for number, key in enumerate(keys)]
    return sorted(placed, key=lambda row: row.time + draw.randrange(0, DISORDER, 10))


def joined(world: World) -> Dataflow:
    flow = Dataflow("joined")
    watermarks = Watermarks.bounded(_time_of, DISORDER * _MILLISECOND)
    left, right = (
        flow.source(side, world.source({side: rows(world, side)}), watermarks=watermarks, parallelism=1).key_by(_key_of)
        for side in ("left", "right")
    )
    _step(which(world), left, right).map(_numbered).sink("out", world.sink())
    return flow


def which(world: World) -> str:
    """A join, other in other worlds."""
    return world.random("join").choice(["outer", "session", "as-of"])


def _step(by: str, left: Keyed, right: Keyed) -> Stream[Any]:
    match by:
        case "outer":
            return left.outer_join("join", right, LOWER * _MILLISECOND, UPPER * _MILLISECOND)
        case "session":
            return left.window_join("join", right, Session(GAP * _MILLISECOND))
    return left.as_of_join("join", right)


async def _numbered(pair: tuple[Placed | None, Placed | None]) -> Joined:
    """Takes its time now and then, so that much is in flight."""
    left, right = (None if row is None else row.number for row in pair)
    if (left or right or 0) % 3 == 0:
        await asyncio.sleep(0.03)
    return Joined(left, right)


def _time_of(row: Placed) -> int:
    return row.time


def _key_of(row: Placed) -> str:
    return row.key


# --------------------------------------------------------------------------------------------------------------- check
def paired_once(outcome: Outcome) -> None:
    lefts, rights = rows(outcome.world, "left"), rows(outcome.world, "right")
    by = which(outcome.world)
    wanted = {"outer": _outer, "session": _sessions, "as-of": _as_of}[by](lefts, rights)
    found: list[Joined] = outcome.output()
    lost = wanted - set(found)
    assert not lost, f"lost: {sorted(map(repr, lost))[:10]}"
    if not outcome.exactly_once:
        return
    wrong = set(found) - wanted
    assert not wrong, f"wrong: {sorted(map(repr, wrong))[:10]}"
    nothing_twice([(each.left, each.right) for each in found])
    left = {state for state, held in outcome.states["join"].items() if held and state not in ("in_force", "structure")}
    assert not left, f"state is left behind: {left}"


def _outer(lefts: list[Placed], rights: list[Placed]) -> set[Joined]:
    pairs = {
        (left.number, right.number)
        for left in lefts
        for right in rights
        if left.key == right.key and LOWER <= right.time - left.time <= UPPER
    }
    matched = {left for left, _ in pairs}, {right for _, right in pairs}
    return (
        {Joined(left, right) for left, right in pairs}
        | {Joined(left.number, None) for left in lefts if left.number not in matched[0]}
        | {Joined(None, right.number) for right in rights if right.number not in matched[1]}
    )


def _sessions(lefts: list[Placed], rights: list[Placed]) -> set[Joined]:
    found: set[Joined] = set()
    session: list[Placed] = []
    for row in sorted([*lefts, *rights], key=lambda row: (row.key, row.time)):
        if session and (row.key != session[-1].key or row.time - session[-1].time > GAP):
            session = []
        found |= {_of_session(row, other) for other in session if other.side != row.side}
        session.append(row)
    return found


def _of_session(row: Placed, other: Placed) -> Joined:
    left, right = (row, other) if row.side == "left" else (other, row)
    return Joined(left.number, right.number)


def _as_of(lefts: list[Placed], rights: list[Placed]) -> set[Joined]:
    found: set[Joined] = set()
    for left in lefts:
        before = [right for right in rights if right.key == left.key and right.time <= left.time]
        latest = max(before, key=_time_of, default=None)
        found.add(Joined(left.number, None if latest is None else latest.number))
    return found
