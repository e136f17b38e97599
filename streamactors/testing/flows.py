"""A whole flow under test: `run_flow` runs it in this process, with lists in the place of its sources and sinks.

    result = await run_flow(flow, {"orders": [Order("ann", 3.0), CRASH, Order("ann", 4.0)]})
    assert result["totals"] == [Total("ann", 3.0), Total("ann", 7.0)]

Invariant: output is what was committed, so that what a crash has undone is not there, and nothing is there twice unless
the flow doubles it. A CRASH ends the job as the end of its process would: another one goes on from the last checkpoint.
"""

import asyncio
import datetime as dt
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar, overload

from streamactors import state_processor
from streamactors.api.dataflow import Dataflow, Stream, graph_with_sink
from streamactors.config import Checkpoints, Config, Restart
from streamactors.elements import DeadLetter, OutputTag
from streamactors.errors import InvalidConfig
from streamactors.graph.logical import LogicalGraph
from streamactors.launch import JobHandle
from streamactors.listsink import ListSink
from streamactors.sources import CRASH
from streamactors.state.descriptors import (
    AggregatingState,
    Declaration,
    ListState,
    MapState,
    ReducingState,
    ValueState,
)
from streamactors.state_processor.stored_states import KeyedRows
from streamactors.submission import job_here
from streamactors.testing.feed import CHECKPOINT, At, Feed
from streamactors.testing.rewiring import (
    at_parallelism,
    error_tags,
    gives_watermarks,
    rewired,
    sinks_of,
    sources_of,
    tag_name,
)

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")

Inputs = Mapping[str, Iterable[Any] | Mapping[str, Iterable[Any]]]
"""By the uid of a source: what it gives; or that by the names of its splits."""
State = Declaration | str
Tags = Mapping[str, OutputTag[Any] | Sequence[OutputTag[Any]]]
States = Mapping[str, State | Sequence[State]]
OUTPUT: Final = "output"
"""The sink of a stream that is run without one of its own."""
NEVER: Final = dt.timedelta(days=10_000)


@dataclass(frozen=True)
class FlowResult(Generic[T]):
    """What has come out. `outputs` by the uid of the sink; `sides` by the uid of the step and the name of the tag."""

    outputs: Mapping[str, list[Any]]
    sides: Mapping[tuple[str, str], list[Any]] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    restarts: int = 0
    checkpoints: int = 0
    """Those that were completed, the final one among them."""
    states: Mapping[tuple[str, str], dict[Any, Any]] = field(default_factory=dict)
    """By the uid of the step and the name of the state: what each key held at the end."""

    def __getitem__(self, uid: str) -> list[Any]:
        if uid not in self.outputs:
            raise KeyError(f"the flow has no sink {uid!r}; it has: {', '.join(self.outputs)}")
        return self.outputs[uid]

    @property
    def output(self) -> list[T]:
        """Of the only sink."""
        if len(self.outputs) != 1:
            raise KeyError(f"the flow has several sinks, so name one, as in result['uid']: {', '.join(self.outputs)}")
        return next(iter(self.outputs.values()))

    def side(self, uid: str, tag: OutputTag[U]) -> list[U]:
        """What step `uid` has emitted to a side output; only those that `run_flow` was told, and dead letters."""
        if (uid, tag.name) not in self.sides:
            raise KeyError(
                f"step {uid!r}, side output {tag.name!r} was not looked at: run_flow(…, tags={{{uid!r}: tag}})"
            )
        return self.sides[uid, tag.name]

    @overload
    def state(self, uid: str, state: ValueState[V]) -> dict[Any, V]: ...
    @overload
    def state(self, uid: str, state: ListState[V]) -> dict[Any, list[V]]: ...
    @overload
    def state(self, uid: str, state: MapState[K, V]) -> dict[Any, dict[K, V]]: ...
    @overload
    def state(self, uid: str, state: ReducingState[V]) -> dict[Any, V]: ...
    @overload
    def state(self, uid: str, state: AggregatingState[Any, R]) -> dict[Any, R]: ...
    @overload
    def state(self, uid: str, state: State) -> dict[Any, Any]: ...
    def state(self, uid: str, state: State) -> dict[Any, Any]:
        """What each key held at the end, by key; only of those that `run_flow` was told."""
        name = _stored_name(state)
        if (uid, name) not in self.states:
            raise KeyError(f"step {uid!r}, state {name!r} was not looked at: run_flow(…, states={{{uid!r}: {name!r}}})")
        return self.states[uid, name]


@overload
async def run_flow(
    flow: Dataflow,
    inputs: Inputs,
    *,
    config: Config | None = None,
    parallelism: int | Sequence[int] | None = None,
    tags: Tags | None = None,
    states: States | None = None,
    resources: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
) -> FlowResult[Any]: ...
@overload
async def run_flow(
    flow: Stream[T],
    inputs: Inputs,
    *,
    config: Config | None = None,
    parallelism: int | Sequence[int] | None = None,
    tags: Tags | None = None,
    states: States | None = None,
    resources: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
) -> FlowResult[T]: ...
async def run_flow(
    flow: Dataflow | Stream[Any],
    inputs: Inputs,
    *,
    config: Config | None = None,
    parallelism: int | Sequence[int] | None = None,
    tags: Tags | None = None,
    states: States | None = None,
    resources: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
) -> FlowResult[Any]:
    """Run a flow on given inputs to its end. The flow itself is not changed, and may be run again.

    An input's elements are values; `At(value, timestamp)` where the source itself has time-stamps; `Watermark(time)`,
    which takes the place of the flow's own watermarks; `CHECKPOINT`, and `CRASH`.
    `parallelism`: also of the steps that set their own, unless that is 1; several numbers: that of each restart.
    `config`: its storage is replaced by a temporary one. `tags`: side outputs to look at, by the uid of their step.
    `states`: keyed states to look at when it has ended, likewise, as they are declared or by their names.
    `timeout` in seconds. Raises JobFailed; InvalidConfig where inputs and sources do not match.
    """
    graph = flow.graph() if isinstance(flow, Dataflow) else graph_with_sink(flow, OUTPUT, ListSink[Any]())
    test = _FlowTest(graph, _feeds(graph, inputs), config or Config(), _widths(parallelism), tags or {}, resources)
    asked = _asked(graph, states or {}, config or Config())
    with tempfile.TemporaryDirectory(prefix="streamactors-flow-") as folder:
        try:
            async with asyncio.timeout(timeout):
                result = await test.run(folder)
                held = {(uid, _stored_name(state)): await _held(folder, graph, uid, state) for uid, state in asked}
                return replace(result, states=held)
        except TimeoutError as error:
            raise TimeoutError(f"flow {graph.name!r} has not come to its end in {timeout:g} s") from error


class _FlowTest:
    def __init__(
        self,
        graph: LogicalGraph,
        feeds: Mapping[str, Feed],
        config: Config,
        widths: Sequence[int],
        tags: Tags,
        resources: Mapping[str, Any] | None,
    ) -> None:
        self._feeds = feeds
        self._config = config
        self._widths = widths
        self._resources = resources
        self._sinks: dict[str, ListSink[Any]] = {uid: ListSink() for uid in sinks_of(graph)}
        self._letters = error_tags(graph)
        asked = [(uid, tag_name(tag)) for uid, each in tags.items() for tag in _several(each)]
        self._sides: dict[tuple[str, str], ListSink[Any]] = {at: ListSink() for at in [*self._letters, *asked]}
        self._graph = rewired(graph, feeds, self._sinks, self._sides)
        self._restarts = 0
        self._checkpoints = 0

    async def run(self, folder: str) -> "FlowResult[Any]":
        config = self._configured(folder)

        while not await self._live(config):
            self._restarts += 1
        return self._result()

    def _configured(self, folder: str) -> Config:
        config = self._config
        if config.execution == "batch":
            self._refuse_controls()
            return config
        checkpoints = config.checkpoints or Checkpoints(folder, interval=NEVER)
        return replace(
            config,
            execution="streaming",
            checkpoints=replace(checkpoints, storage=folder, storage_options=None),
            restart=config.restart or Restart.none(),
        )

    def _refuse_controls(self) -> None:
        if any(element in (CRASH, CHECKPOINT) for feed in self._feeds.values() for element in _elements(feed)):
            raise InvalidConfig(
                "execution = 'batch' takes no checkpoints: leave CRASH and CHECKPOINT out of the inputs"
            )

    async def _live(self, config: Config) -> bool:
        """One process. Whether it has come to the end; raises what has failed it, unless that is a CRASH."""
        graph, config = self._widened(config)
        job = job_here(graph, config, restore="latest", fresh=False, resources=self._resources)
        task = asyncio.get_running_loop().create_task(job.run(), name=f"job {job.name}")
        handle = JobHandle(job, task)
        for feed in self._feeds.values():
            feed.crashed, feed.checkpoint = False, handle.checkpoint
        try:
            await asyncio.wait([task])
        finally:
            if not task.done():
                await handle.cancel()
        self._restarts += job.restarts
        self._checkpoints += len(job.checkpoints)
        error = task.exception()
        if error is not None and not any(feed.crashed for feed in self._feeds.values()):
            raise error
        return error is None

    def _widened(self, config: Config) -> tuple[LogicalGraph, Config]:
        if not self._widths:
            return self._graph, config
        width = self._widths[min(self._restarts, len(self._widths) - 1)]
        return at_parallelism(self._graph, width), replace(config, parallelism=width)

    def _result(self) -> "FlowResult[Any]":
        sides = {at: list(sink.values) for at, sink in self._sides.items()}
        return FlowResult(
            {uid: list(sink.values) for uid, sink in self._sinks.items()},
            sides,
            [letter for at in dict.fromkeys(self._letters) for letter in sides[at]],
            self._restarts,
            self._checkpoints,
        )


# ---------------------------------------------------------------------------------------------------------------- state
def _asked(graph: LogicalGraph, states: States, config: Config) -> list[tuple[str, State]]:
    if states and config.execution == "batch":
        raise InvalidConfig("states: execution = 'batch' takes no checkpoints, so that none is left at the end")
    known = [node.uid for node in graph.nodes if node.named]
    if unknown := [uid for uid in states if uid not in known]:
        raise InvalidConfig(f"states: the flow has no step {unknown[0]!r}; it has: {', '.join(known)}")
    return [(uid, state) for uid, each in states.items() for state in _several_states(each)]


async def _held(folder: str, graph: LogicalGraph, uid: str, state: State) -> dict[Any, Any]:
    """As the last checkpoint has it."""
    declaration = state if isinstance(state, Declaration) else None
    async with state_processor.open(folder, flow=graph.name) as snapshot:
        rows = snapshot.state(uid, _stored_name(state), declaration)
        if not isinstance(rows, KeyedRows):
            raise InvalidConfig(f"states: step {uid!r}, state {rows.info.name!r} is no keyed state")
        if rows.info.kind == "map":
            return {key: content async for key, content in rows.entries()}
        return {key: content async for key, content in rows}


def _stored_name(state: State) -> str:
    return state if isinstance(state, str) else state.stored or state.name


def _several_states(states: State | Sequence[State]) -> Sequence[State]:
    return [states] if isinstance(states, Declaration | str) else states


# --------------------------------------------------------------------------------------------------------------- inputs
def _feeds(graph: LogicalGraph, inputs: Inputs) -> dict[str, Feed]:
    known = sources_of(graph)
    if unknown := [uid for uid in inputs if uid not in known]:
        raise InvalidConfig(f"inputs for {', '.join(map(repr, unknown))}: the flow's sources are: {', '.join(known)}")
    if missing := [uid for uid in known if uid not in inputs]:
        raise InvalidConfig(f"no inputs for the source {', '.join(map(repr, missing))}: give [] where it gives nothing")
    return {uid: _feed(uid, inputs[uid]) for uid in known}


def _feed(uid: str, given: Iterable[Any] | Mapping[str, Iterable[Any]]) -> Feed:
    splits = given if isinstance(given, Mapping) else {"test": given}
    elements = {split: list(each) for split, each in splits.items()}
    feed = Feed(elements, steps=gives_watermarks(elements))
    values = [element for element in _elements(feed) if element is not CRASH and element is not CHECKPOINT]
    if not feed.steps and len({isinstance(element, At) for element in values}) > 1:
        raise InvalidConfig(f"inputs for {uid!r}: a source has time-stamps for all of its records, or for none: use At")
    return feed


def _elements(feed: Feed) -> list[Any]:
    return [element for elements in feed.splits.values() for element in elements]


def _several(tags: OutputTag[Any] | Sequence[OutputTag[Any]]) -> Sequence[OutputTag[Any]]:
    return [tags] if isinstance(tags, OutputTag) else tags


def _widths(parallelism: int | Sequence[int] | None) -> Sequence[int]:
    if parallelism is None:
        return ()
    return [parallelism] if isinstance(parallelism, int) else list(parallelism)
