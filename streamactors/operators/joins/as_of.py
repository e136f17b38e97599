"""As-of joins: each left row with what the right side was at its time (Flink: temporal join in event time).

Invariants. A left row waits until the watermark has come to its time t, and is then emitted, once, with the right row
that has the greatest time <= t, or None if there is none; of several right rows of one time, the last that has come
counts. Timers fire in the order of their times, so a right row becomes the one in force by a timer of its own: the one
in force before it can't be asked for any more, and is gone. Of the right side there is left the one in force, and those
after the watermark.

A right row that comes late is in force for what is still to be decided, if it is no older than the one that is in force
by then; only one that is older is late. A left row that comes late can't be decided.
"""

from dataclasses import dataclass
from typing import Any, Final

from streamactors.operators.base import Context
from streamactors.operators.joins.base import Join, JoinSpec, time_of
from streamactors.operators.joins.rows import At, Rows, add, taken
from streamactors.state.descriptors import MapState, ValueState
from streamactors.time.timers import Timer

_LEFT: Final = "left"
_RIGHT: Final = "right"


class AsOfJoin(Join):
    left: Rows[Any]
    """Those that wait."""
    right: MapState[int, Any]
    """By time: those after the watermark."""
    in_force: ValueState[tuple[int, Any] | None]
    """(its time, the row)."""

    def process_left(self, row: Any, ctx: Context[Any, Any], /) -> None:
        time = time_of(ctx)
        if time <= ctx.watermark:
            self._put_aside(row, ctx)
            return
        add(self.left, time, row)
        ctx.timers.event(time, _LEFT)

    def process_right(self, row: Any, ctx: Context[Any, Any], /) -> None:
        time = time_of(ctx)
        if time > ctx.watermark:
            self.right[time] = row
            ctx.timers.event(time, _RIGHT)
            return
        before = self.in_force.get()
        if before is None or before[0] <= time:
            self.in_force.set((time, row))
        else:
            self._put_aside(row, ctx)

    def on_timer(self, timer: Timer, ctx: Context[Any, Any], /) -> None:
        """Those of one time fire in no particular order: whichever is first puts the right row in force."""
        time = timer.timestamp
        if time in self.right:
            self.in_force.set((time, self.right.pop(time)))
        if timer.name == _LEFT:
            found = self.in_force.get()
            right = None if found is None else found[1]
            for _, left in taken(self.left, time):
                ctx.emit((left, right))


@dataclass(frozen=True)
class AsOfJoinSpec(JoinSpec):
    @property
    def kind(self) -> str:
        return "as_of_join"

    def operator(self) -> AsOfJoin:
        spec = self

        class Made(AsOfJoin):
            left = MapState[At, Any](tuple[int, int], spec.left_type)
            right = MapState[int, Any](int, spec.right_type)
            in_force = ValueState[tuple[int, Any] | None](tuple[int, spec.right_type])  # type: ignore[name-defined]

        return Made()
