"""`Dataflow`: where a flow begins, and where its graph is asked for."""

from typing import Any, TypeVar

from streamactors.api.builder import GraphBuilder, needs_uid
from streamactors.api.stream import Stream, added
from streamactors.config import Config
from streamactors.errors import InvalidDataflow
from streamactors.graph import planner, render
from streamactors.graph.logical import LogicalGraph, SourceSpec
from streamactors.sources import Source, SplitSource

T = TypeVar("T")


class Dataflow:
    """A graph of steps in the making. It runs nothing, and may be run any number of times.

    `name` is part of the paths under which its checkpoints lie.
    """

    def __init__(self, name: str) -> None:
        self._builder = GraphBuilder(name)

    @property
    def name(self) -> str:
        return self._builder.name

    @needs_uid
    def source(
        self, uid: str, source: Source[T], *, watermarks: None = None, parallelism: int | None = None
    ) -> Stream[T]:
        """Read records. Event time is the record's own timestamp where the source has one (Kafka)."""
        _refuse_watermarks(uid, watermarks)
        if not isinstance(source, SplitSource):
            raise InvalidDataflow(f"source {uid!r}: {_not_a_source(source)}")
        node = self._builder.add(SourceSpec(source), uid=uid, parallelism=parallelism)
        return added(self, node, getattr(source, "element_type", Any))

    def graph(self) -> LogicalGraph:
        """The steps so far, frozen."""
        return self._builder.graph()

    def explain(self, config: Config | None = None) -> str:
        """The logical graph, and the plan by which it would run under `config`, as text.

        Raises InvalidDataflow or InvalidConfig where it would not run.
        """
        config = config or Config()
        graph = self.graph()
        plan = planner.plan(
            graph,
            parallelism=config.parallelism,
            max_parallelism=config.max_parallelism,
            checkpointing=config.checkpoints is not None,
        )
        return render.explain(graph, plan)

    def to_mermaid(self) -> str:
        """The logical graph as a Mermaid flowchart."""
        return render.mermaid(self.graph())

    def __repr__(self) -> str:
        return f"<Dataflow {self.name!r}>"


def _refuse_watermarks(uid: str, watermarks: object) -> None:
    if watermarks is not None:
        raise InvalidDataflow(f"source {uid!r}: watermarks= is not available in this version")


def _not_a_source(source: object) -> str:
    if isinstance(source, type):
        return f"{source.__name__} is a class: make a source of it, {source.__name__}(…)"
    return f"a {type(source).__name__} is no source: derive its class from streamactors.sources.SplitSource"
