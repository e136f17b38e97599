"""Interval joins, inner and outer (Flink: IntervalJoin; SQL: interval joins).

Invariants, for rows that are not late. A left row at time t and a right row at time s of one key are emitted as a pair,
once, if and only if t + lower <= s <= t + upper: when the later of them comes, with the greater of both times. A row is
kept until the watermark has come to the end of its interval, since then whatever it could match would be late. Under an
outer join a row that has matched nothing until then is emitted alone, once, at that moment: its own time, or the end of
its interval if that is later. So nothing that comes out is late downstream.

"Left" is the side of the row in hand where there is no other name: both sides do the same, with the bounds mirrored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from streamactors.errors import InvalidDataflow
from streamactors.operators.base import Context, OperatorContext
from streamactors.operators.joins.base import Join, JoinSpec, time_of
from streamactors.operators.joins.rows import At, Rows, add, between, taken
from streamactors.state.descriptors import MapState
from streamactors.time.timers import Timer

How = Literal["left", "right", "full"]

_LEFT: Final = "left"
_RIGHT: Final = "right"


class _Side(NamedTuple):
    """One side as its own rows see it: they match `others` from `low` to `high` after their own time."""

    name: str
    low: int
    high: int
    rows: Rows[Any]
    unmatched: MapState[At, bool] | None
    """Of the rows, those that have matched nothing. None: under an inner join that is not of interest."""
    others: Rows[Any]
    unmatched_others: MapState[At, bool] | None
    alone: bool
    """Whether what has matched nothing comes out."""
    pair: Callable[[Any, Any], tuple[Any, Any]]
    """Of an own row and another."""


def _left_first(left: Any, right: Any) -> tuple[Any, Any]:
    return left, right


def _right_first(right: Any, left: Any) -> tuple[Any, Any]:
    return left, right


class IntervalJoin(Join):
    left: Rows[Any]
    right: Rows[Any]
    unmatched_left: MapState[At, bool] | None = None
    unmatched_right: MapState[At, bool] | None = None
    how: How | None = None
    """None: nobody asks for unmatched rows."""
    lower: int
    upper: int

    def open(self, ctx: OperatorContext, /) -> None:
        super().open(ctx)
        left, right = (self.left, self.unmatched_left), (self.right, self.unmatched_right)
        alone = {side: self.how in (side, "full") for side in (_LEFT, _RIGHT)}
        self._sides = {
            _LEFT: _Side(_LEFT, self.lower, self.upper, *left, *right, alone[_LEFT], _left_first),
            _RIGHT: _Side(_RIGHT, -self.upper, -self.lower, *right, *left, alone[_RIGHT], _right_first),
        }
        self._left_side, self._right_side = self._sides[_LEFT], self._sides[_RIGHT]

    def process_left(self, row: Any, ctx: Context[Any, Any], /) -> None:
        self._meet(self._left_side, row, ctx)

    def process_right(self, row: Any, ctx: Context[Any, Any], /) -> None:
        self._meet(self._right_side, row, ctx)

    def _meet(self, side: _Side, row: Any, ctx: Context[Any, Any]) -> None:
        time = time_of(ctx)
        if time <= ctx.watermark:
            self._put_aside(row, ctx)
            return
        found = between(side.others, time + side.low, time + side.high)
        for at, other in found:
            ctx.emit(side.pair(row, other), max(time, at[0]))
        if side.unmatched_others is not None:
            for at, _ in found:
                side.unmatched_others.pop(at, None)
        self._keep(side, row, time, ctx, matched=bool(found))

    def _keep(self, side: _Side, row: Any, time: int, ctx: Context[Any, Any], *, matched: bool) -> None:
        end = time + side.high
        if end > ctx.watermark:
            at = add(side.rows, time, row)
            if side.unmatched is not None and not matched:
                side.unmatched[at] = True
            # With the bound that it is for: another version of the program may have another one.
            ctx.timers.event(end, f"{side.name} {side.high}")
        elif side.alone and not matched:
            ctx.emit(side.pair(row, None))

    def on_timer(self, timer: Timer, ctx: Context[Any, Any], /) -> None:
        name, _, high = timer.name.partition(" ")
        side, end = self._sides[name], timer.timestamp
        time = end - int(high)
        for at, row in taken(side.rows, time):
            unmatched = side.unmatched is not None and side.unmatched.pop(at, False)
            if unmatched and side.alone:
                ctx.emit(side.pair(row, None), max(time, end))


@dataclass(frozen=True)
class IntervalJoinSpec(JoinSpec):
    """Bounds in milliseconds."""

    lower: int
    upper: int

    @property
    def kind(self) -> str:
        return "interval_join"

    def validate(self, uid: str) -> None:
        super().validate(uid)
        if self.lower > self.upper:
            raise InvalidDataflow(
                f"{self.kind} {uid!r}: lower ({self.lower} ms) is after upper ({self.upper} ms), so nothing would "
                "match: a right row matches from left + lower to left + upper"
            )

    def operator(self) -> IntervalJoin:
        return self._inner()()

    def _inner(self) -> type[IntervalJoin]:
        spec = self

        class Inner(IntervalJoin):
            lower, upper = spec.lower, spec.upper
            left = MapState[At, Any](tuple[int, int], spec.left_type)
            right = MapState[At, Any](tuple[int, int], spec.right_type)

        return Inner


@dataclass(frozen=True)
class OuterJoinSpec(IntervalJoinSpec):
    """`how`: of which sides rows come out that match nothing."""

    how: How = "full"

    @property
    def kind(self) -> str:
        return "outer_join"

    def validate(self, uid: str) -> None:
        super().validate(uid)
        if self.how not in ("left", "right", "full"):
            raise InvalidDataflow(f"outer_join {uid!r}: how={self.how!r}: 'left', 'right' or 'full'")

    def operator(self) -> IntervalJoin:
        spec, inner = self, self._inner()

        class Outer(inner):  # type: ignore[misc, valid-type]
            """Has a book on both sides, so that `how` may change over versions of a program."""

            how = spec.how
            unmatched_left = MapState[At, bool](tuple[int, int], bool)
            unmatched_right = MapState[At, bool](tuple[int, int], bool)

        made: IntervalJoin = Outer()
        return made
