"""What stands at both ends of a flow under test: a source that gives what a test puts in, step by step, and a sink that
shows at once what has come.

Invariant: a step counts as read once the first link has given it on, so that whoever has put in n steps and sees n read
need wait for nothing but what is on its way.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from streamactors.elements import MAX_TIME, Batch, TimeMark, Watermark
from streamactors.operators.base import Link, LinkContext, OperatorSpec
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource

SPLIT: Final = "test"


@dataclass(frozen=True, slots=True)
class Step:
    """A record, or where `watermark` is not None, a watermark."""

    value: Any = None
    timestamp: int | None = None
    watermark: int | None = None


@dataclass
class Script:
    """What is put into one input. It grows while the job reads it; `first` is the position of the first step, when the
    job goes on from an earlier one."""

    steps: list[Step] = field(default_factory=list)
    first: int = 0
    read: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, step: Step) -> None:
        self.steps.append(step)
        self.grown.set()

    @property
    def unread(self) -> bool:
        return self.read < len(self.steps)

    def begin(self, position: int) -> None:
        """Everything before it has been processed, by a job before this one."""
        self.steps.clear()
        self.first, self.read = position, 0


class ScriptSource(SplitSource[Step]):
    """Unbounded, in one split."""

    def __init__(self, script: Script) -> None:
        self._script = script

    @property
    def bounded(self) -> bool:
        return False

    def reader(self, ctx: SourceContext) -> SplitReader[Step]:
        return _ScriptReader(ctx, self._script)

    def assign(self, split: str, parallelism: int) -> int:
        return 0


class _ScriptReader(SplitReader[Step]):
    """One step a batch: each is processed before the next one is looked at."""

    def __init__(self, ctx: SourceContext, script: Script) -> None:
        self._uid = ctx.uid
        self._script = script
        self._next = 0

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        position = 0 if restored is None else restored[SPLIT]
        self._script.begin(position)
        self._next = position
        return {SPLIT: position}

    async def read(self) -> SourceBatch[Step]:
        script = self._script
        while self._next - script.first >= len(script.steps):
            script.grown.clear()
            await script.grown.wait()
        at = self._next
        self._next += 1
        return SourceBatch(
            SPLIT, [script.steps[at - script.first]], lambda taken: at + taken, None, [at], f"{self._uid}:"
        )

    async def close(self) -> None:
        return None


# ------------------------------------------------------------------------------------------------------- the first link
class ScriptLink(Link):
    """Makes records and watermarks of steps. `timestamp` gives that of a record whose step has none."""

    gives_time = True

    def __init__(self, ctx: LinkContext, script: Script | None, timestamp: Callable[[Any], int] | None) -> None:
        super().__init__(ctx)
        self._script = script
        self._timestamp = timestamp

    async def process(self, batch: Batch) -> Batch | None:
        """A watermark is told behind the records ahead of it; those behind it come with the next call."""
        steps: Sequence[Step] = batch.values
        records = next((place for place, step in enumerate(steps) if step.watermark is not None), len(steps))
        taken = min(records + 1, len(steps))
        if taken < len(steps):
            self.rest = batch.slice(taken, len(steps))
        if records < len(steps):
            self.marks = [Watermark(step.watermark) for step in steps[records:taken] if step.watermark is not None]
        if self._script is not None:
            self._script.read += taken
        return self._records(batch.slice(0, records))

    def _records(self, batch: Batch) -> Batch | None:
        if not len(batch):
            return None
        steps: Sequence[Step] = batch.values
        made = batch.with_values([step.value for step in steps])
        made.timestamps = list(map(self._stamp, steps))
        return made

    def _stamp(self, step: Step) -> int | None:
        if step.timestamp is not None or self._timestamp is None:
            return step.timestamp
        return self._timestamp(step.value)

    def translate(self, mark: TimeMark) -> Sequence[TimeMark]:
        """Only the test gives event time; the last watermark is that of the end."""
        return (mark,) if isinstance(mark, Watermark) and mark.time_ms == MAX_TIME else ()


@dataclass(frozen=True, eq=False)
class ScriptSpec(OperatorSpec):
    """`timed`: whether there are watermarks at all."""

    script: Script | None = None
    timed: bool = True
    timestamp: Callable[[Any], int] | None = None

    @property
    def kind(self) -> str:
        return "test_input"

    @property
    def gives_time(self) -> bool:
        return self.timed

    @property
    def keeps_record_ids(self) -> bool:
        return True

    def link(self, ctx: LinkContext) -> Link:
        return ScriptLink(ctx, self.script, self.timestamp)


# ------------------------------------------------------------------------------------------------------------- the sink
class Collector(WriterSink[Any]):
    """Keeps what has come, as (value, time-stamp), in the order in which it came."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, int | None]] = []

    @property
    def transactional(self) -> bool:
        return False

    def writer(self, ctx: SinkContext) -> SinkWriter[Any]:
        return _CollectingWriter(self.rows)


class _CollectingWriter(SinkWriter[Any]):
    def __init__(self, rows: list[tuple[Any, int | None]]) -> None:
        self._rows = rows

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        return None

    async def write(self, values: Sequence[Any], timestamps: Sequence[int | None] | None) -> None:
        self._rows += zip(values, timestamps or [None] * len(values), strict=True)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        return []

    async def finish(self) -> None:
        return None

    async def close(self) -> None:
        return None
