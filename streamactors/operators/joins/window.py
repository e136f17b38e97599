"""Window joins: all pairs of rows of one key that are in one window (Flink: `join(…).where(…).window(…)`).

Invariants. The rows of both sides are kept once, by time, however many windows they are in. A timer stands for each
window that is the next to end for some row; when it fires, at the end of the window, all pairs of rows in the window
are emitted, once, with the time of its last millisecond, and the rows of which it was the last window are gone.

Windows that merge are those of both sides together, and are kept beside the rows (`sessions`): a row's window is added
to them, and a timer stands for the end of each; one that has grown meanwhile has another.

A row is late if all its windows have ended, after merging. No two windows of one row end at the same time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamactors.errors import InvalidDataflow
from streamactors.operators.base import Context, Link, LinkContext
from streamactors.operators.joins.base import Join, JoinSpec, time_of
from streamactors.operators.joins.rows import At, Rows, add, between
from streamactors.operators.process import Hook
from streamactors.operators.structure import keep_structure
from streamactors.operators.two_inputs import TwoInputLink
from streamactors.state.descriptors import MapState, UnionListState, ValueState
from streamactors.time.timers import Timer
from streamactors.time.windows import Window, WindowAssigner, merge_window

_PAIRS: Final = 1024
"""Emitted between two pauses."""


class WindowJoin(Join):
    """Windows that stay as they are. A timer's name is the beginning of its window, its time the last millisecond."""

    assigner: WindowAssigner
    left: Rows[Any]
    right: Rows[Any]
    structure = UnionListState(str)
    """The windows that the rows wait for."""

    def process_left(self, row: Any, ctx: Context[Any, Any], /) -> None:
        self._take(self.left, row, ctx)

    def process_right(self, row: Any, ctx: Context[Any, Any], /) -> None:
        self._take(self.right, row, ctx)

    def _take(self, rows: Rows[Any], row: Any, ctx: Context[Any, Any]) -> None:
        time = time_of(ctx)
        windows = self.assigner.assign(time)
        live = next(_after(windows, ctx.watermark), None)
        if live is not None:
            add(rows, time, row)
            _set_timer(live, ctx)
        elif windows:
            self._put_aside(row, ctx)

    async def on_timer(self, timer: Timer, ctx: Context[Any, Any], /) -> None:
        window = Window(int(timer.name), timer.timestamp + 1)
        left, right = (between(rows, window.start, timer.timestamp) for rows in (self.left, self.right))
        await _emit_pairs(left, right, ctx)
        following = [self._drop(self.left, left, timer.timestamp), self._drop(self.right, right, timer.timestamp)]
        for next_window in set().union(*following):
            _set_timer(next_window, ctx)

    def _drop(self, rows: Rows[Any], found: list[tuple[At, Any]], end: int) -> set[Window]:
        """Those that are in no window after this one; of the others, the next windows."""
        following: set[Window] = set()
        for at, _ in found:
            window = next(_after(self.assigner.assign(at[0]), end), None)
            if window is None:
                del rows[at]
            else:
                following.add(window)
        return following


class SessionJoin(WindowJoin):
    """Windows that merge."""

    sessions: ValueState[list[tuple[int, int]]]
    """In order; no two meet."""

    def _take(self, rows: Rows[Any], row: Any, ctx: Context[Any, Any]) -> None:
        time = time_of(ctx)
        [new] = self.assigner.assign(time)
        sessions = [Window(*session) for session in self.sessions.get()]
        merged, gone = merge_window(sessions, new)
        if merged.end - 1 <= ctx.watermark:
            self._put_aside(row, ctx)
            return
        add(rows, time, row)
        if [merged] != list(gone):
            kept = [session for session in sessions if session not in gone]
            self.sessions.set([(start, end) for start, end in sorted([*kept, merged])])
            ctx.timers.event(merged.end - 1)

    async def on_timer(self, timer: Timer, ctx: Context[Any, Any], /) -> None:
        sessions = self.sessions.get()
        ended = [session for session in sessions if session[1] == timer.timestamp + 1]
        if not ended:
            return  # it has grown
        [(start, _)] = ended
        left, right = (between(rows, start, timer.timestamp) for rows in (self.left, self.right))
        await _emit_pairs(left, right, ctx)
        for rows, found in ((self.left, left), (self.right, right)):
            for at, _ in found:
                del rows[at]
        self._keep([session for session in sessions if session not in ended])

    def _keep(self, sessions: list[tuple[int, int]]) -> None:
        if sessions:
            self.sessions.set(sessions)
        else:
            self.sessions.clear()


def _after(windows: Sequence[Window], watermark: int) -> Iterator[Window]:
    """Those that have not ended, the earliest first."""
    return (window for window in windows if window.end - 1 > watermark)


def _set_timer(window: Window, ctx: Context[Any, Any]) -> None:
    ctx.timers.event(window.end - 1, str(window.start))


async def _emit_pairs(left: list[tuple[At, Any]], right: list[tuple[At, Any]], ctx: Context[Any, Any]) -> None:
    emitted = 0
    for _, left_row in left:
        for _, right_row in right:
            ctx.emit((left_row, right_row))
            emitted += 1
            if emitted % _PAIRS == 0:
                await ctx.drain()


class WindowJoinLink(TwoInputLink):
    """Refuses rows that wait for other windows, of which some may have ended."""

    async def open(self) -> None:
        joined: WindowJoin = self._operator
        keep_structure(self.ctx, joined.structure, repr(joined.assigner), ["left", "right"], "rows for other windows")
        await super().open()


@dataclass(frozen=True)
class WindowJoinSpec(JoinSpec):
    assigner: WindowAssigner

    @property
    def kind(self) -> str:
        return "window_join"

    def validate(self, uid: str) -> None:
        super().validate(uid)
        if isinstance(self.assigner, type) or not isinstance(self.assigner, WindowAssigner):
            raise InvalidDataflow(
                f"window_join {uid!r} takes windows such as sa.Tumbling(dt.timedelta(minutes=1)), not {self.assigner!r}"
            )
        if not self.assigner.timed:
            raise InvalidDataflow(
                f"window_join {uid!r}: {self.assigner!r} does not end at a time, and pairs come out at the end of a "
                "window: take Tumbling, Sliding or Session"
            )

    def operator(self) -> WindowJoin:
        spec = self

        class Fixed(WindowJoin):
            assigner = spec.assigner
            left = MapState[At, Any](tuple[int, int], spec.left_type)
            right = MapState[At, Any](tuple[int, int], spec.right_type)

        class Merging(SessionJoin):
            assigner = spec.assigner
            left = MapState[At, Any](tuple[int, int], spec.left_type)
            right = MapState[At, Any](tuple[int, int], spec.right_type)
            sessions = ValueState[list[tuple[int, int]]](list[tuple[int, int]], default_factory=list)

        return Merging() if self.assigner.merging else Fixed()

    def _link(self, ctx: LinkContext, made: Any, left: Hook, right: Hook, on_timer: Hook) -> Link:
        return WindowJoinLink(ctx, made, left, right, on_timer)
