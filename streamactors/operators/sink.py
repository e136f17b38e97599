"""The link at the end of a chain: hands batches to a sink's writer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamactors.elements import Batch
from streamactors.operators.base import Link, LinkContext, OperatorSpec
from streamactors.sinks import SinkContext, SinkWriter, WriterSink


class SinkLink(Link):
    """Two-phase commit is the writer's; when to prepare and to commit is the subtask's."""

    def __init__(self, ctx: LinkContext, writer: SinkWriter[Any], restored: Sequence[Any], *, committed: bool) -> None:
        super().__init__(ctx)
        self.writer = writer
        self._restored = restored
        self._committed = committed

    async def open(self) -> None:
        await self.writer.open(self._restored, committed=self._committed)

    async def process(self, batch: Batch) -> Batch | None:
        await self.writer.write(batch.values, batch.timestamps)
        return None

    async def prepare(self, checkpoint: int) -> Sequence[Any]:
        return await self.writer.prepare(checkpoint)

    async def commit(self, checkpoint: int) -> None:
        await self.writer.commit(checkpoint)

    async def close(self) -> None:
        await self.writer.close()


@dataclass(frozen=True)
class SinkSpec(OperatorSpec):
    sink: WriterSink[Any]

    @property
    def kind(self) -> str:
        return "sink"

    def sink_link(self, ctx: LinkContext, sink: SinkContext, restored: Sequence[Any], committed: bool) -> SinkLink:
        return SinkLink(ctx, self.sink.writer(sink), restored, committed=committed)

    def link(self, ctx: LinkContext) -> Link:
        raise TypeError("a sink's link is made by sink_link")
