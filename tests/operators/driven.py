"""A step with keyed inputs, driven without a job: rows and watermarks in, over several subtasks; moved to others."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import streamactors as sa
from streamactors.elements import MIN_TIME, Batch, Watermark
from streamactors.operators.base import Link, LinkContext, OperatorContext, OperatorSpec
from streamactors.operators.joins.base import JoinSpec
from streamactors.state.backend import KeyedBackend, StateBlock
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.operator_lists import OperatorLists
from streamactors.time.progress import EventTime
from streamactors.time.timers import TimerService
from tests.state.timer_stores import BACKENDS, done

GROUPS = 4
SLICE = 3
"""Timers that are fired at once."""
LATE: sa.OutputTag[Any] = sa.OutputTag("late", object)

Row = tuple[Any, Any, int | None]
"""(key, value, time)."""


class Driven:
    """`out` and `late` have what has come out so far, as (value, time-stamp)."""

    def __init__(self, spec: OperatorSpec, backend: str = "heap", parallelism: int = 1) -> None:
        self.spec = spec
        self.out: list[tuple[Any, int | None]] = []
        self.late: list[Any] = []
        self.watermark = MIN_TIME
        self.punctual = isinstance(spec, JoinSpec)
        """Whether nothing that it emits is late."""
        self.begin(backend, parallelism)

    def begin(self, backend: str, parallelism: int, blocks: Iterable[StateBlock] = ()) -> None:
        whole = [KeyGroupRange(i * GROUPS // parallelism, (i + 1) * GROUPS // parallelism) for i in range(parallelism)]
        self.metrics = sa.MetricGroup()
        self.subtasks = [self._subtask(BACKENDS[backend], groups, list(blocks)) for groups in whole]

    def _subtask(
        self, make: Callable[[KeyGroupRange, int], KeyedBackend], groups: KeyGroupRange, blocks: list[StateBlock]
    ) -> "_Subtask":
        operator = OperatorContext(uid="step", subtask=0, parallelism=1, metrics=self.metrics)
        made = _Subtask(self.spec, operator, make(groups, GROUPS), EventTime(self.watermark), self)
        made.backend.restore([block for block in blocks if block.group in groups])
        done(made.link.open())
        return made

    def move(self, backend: str, parallelism: int) -> None:
        """As over a crash: what is in state, and nothing else, goes to new subtasks."""
        blocks = []
        for subtask in self.subtasks:
            snapshot = subtask.backend.begin_snapshot(1)
            while (block := snapshot.next_block()) is not None:
                blocks.append(block)
        self.close()
        self.begin(backend, parallelism, blocks)

    def put(self, side: int, *rows: Row) -> None:
        for subtask in self.subtasks:
            own = [row for row in rows if key_group(row[0], GROUPS) in subtask.backend.groups]
            if own:
                subtask.put(side, own)

    def reach(self, watermark: int) -> None:
        self.watermark = max(self.watermark, watermark)
        for subtask in self.subtasks:
            subtask.reach(watermark)

    @property
    def entries(self) -> dict[str, int]:
        """Of each state, all subtasks together; those that are empty are left out."""
        found: dict[str, int] = {}
        for subtask in self.subtasks:
            for name, count in subtask.backend.entries().items():
                found[name] = found.get(name, 0) + count
        return {name: count for name, count in found.items() if count}

    def held(self, state: str) -> dict[Any, Any]:
        """By key."""
        return {key: held for subtask in self.subtasks for _, key, held in subtask.backend.scan(state)}

    @property
    def values(self) -> list[Any]:
        return [value for value, _ in self.out]

    def close(self) -> None:
        for subtask in self.subtasks:
            done(subtask.link.close())
            subtask.backend.close()


class _Subtask:
    def __init__(
        self, spec: OperatorSpec, operator: OperatorContext, backend: KeyedBackend, time: EventTime, to: Driven
    ) -> None:
        self.backend = backend
        self.time = time
        self.to = to
        lists = OperatorLists("step")
        self.link: Link = spec.link(
            LinkContext("step", "step", operator, backend=backend, lists=lists, drain=self._drain, time=time)
        )
        self.timers = self.link.timers

    async def _drain(self, batch: Batch | None, sides: dict[str, Batch]) -> None:
        self._emitted(batch, sides)

    def put(self, side: int, rows: Sequence[Row]) -> None:
        keys = [key for key, _, _ in rows]
        stamps = [time for _, _, time in rows]
        groups = [key_group(key, GROUPS) for key in keys]
        batch: Batch | None = Batch([value for _, value, _ in rows], stamps, keys, groups)
        while batch is not None:
            if self.timers is not None:
                self._fire(self.timers)
            self.link.side = side
            self._emitted(done(self.link.process(batch)), self.link.sides)
            batch, self.link.rest = self.link.rest, None
        if self.timers is not None:
            self._fire(self.timers)

    def reach(self, watermark: int) -> None:
        mark = Watermark(watermark)
        if self.timers is not None:
            done(self.timers.reach(mark))
            self._fire(self.timers, force=True)
        self.time.on(mark)

    def _fire(self, timers: TimerService, *, force: bool = False) -> None:
        while timers.event_due or force:
            rows = done(timers.next_events(SLICE))
            force = bool(rows)
            if rows:
                self._emitted(done(self.link.fire("event", rows)), self.link.sides)

    def _emitted(self, batch: Batch | None, sides: dict[str, Batch]) -> None:
        if batch is not None and len(batch):
            stamps = batch.timestamps or [None] * len(batch)
            if self.to.punctual:  # what is not after the watermark in force is late for whoever comes next
                assert all(stamp is None or stamp > self.time.stored for stamp in stamps)
            self.to.out += zip(batch.values, stamps, strict=True)
        if LATE.name in sides:
            self.to.late += sides[LATE.name].values
        self.link.sides = {}
