"""Building a flow: `Dataflow`, where it begins; `Stream` and `KeyedStream`, immutable handles on the output of steps.

A method of a stream adds a step and returns a handle on it. One module, since a flow gives streams, a stream's
`sink` gives back its flow, and two streams connect.
"""

import builtins
import datetime as dt
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, Literal, TypeVar, cast, overload

from streamactors.api.builder import GraphBuilder, needs_uid
from streamactors.api.inference import common_type, flat_mapped_type, mapped_type, operator_type, stored_type
from streamactors.api.joined import bound, check_key_types, pair_type, stored_types
from streamactors.config import Config, Ray
from streamactors.elements import ErrorRoute, OutputTag
from streamactors.errors import InvalidDataflow
from streamactors.graph import render
from streamactors.graph.execution import why
from streamactors.graph.logical import (
    Broadcast,
    Edge,
    Forward,
    Keyed,
    LogicalGraph,
    Partitioning,
    Rebalance,
    SourceSpec,
)
from streamactors.graph.planned import placed, planned
from streamactors.operators.async_io.keyed import KeyedProcessSpec
from streamactors.operators.async_io.map_async import MapAsyncSpec
from streamactors.operators.async_io.settings import BatchOf, Retry
from streamactors.operators.base import KeyedOperator, Lifecycle, Operator, OperatorSpec, is_async
from streamactors.operators.deduplicate import DeduplicateSpec
from streamactors.operators.joins.as_of import AsOfJoinSpec
from streamactors.operators.joins.interval import IntervalJoinSpec, OuterJoinSpec
from streamactors.operators.joins.window import WindowJoinSpec
from streamactors.operators.patterns.operator import PatternSpec
from streamactors.operators.patterns.operator import Settings as PatternSettings
from streamactors.operators.patterns.pattern import Match, Pattern
from streamactors.operators.process import ProcessSpec, ReduceSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.stateless import FunctionSpec, PrintSpec
from streamactors.operators.timestamps import TimestampSpec
from streamactors.operators.top_n import TopNSpec
from streamactors.operators.two_inputs import (
    BroadcastProcessSpec,
    CoOperator,
    CoProcessSpec,
    KeyedBroadcastOperator,
    KeyedCoOperator,
)
from streamactors.operators.windows.base import Windowed, WindowOperator
from streamactors.operators.windows.contents import ContentsSpec, Keeping, aggregating, reducing
from streamactors.operators.windows.spec import Windowing, WindowSpec
from streamactors.sinks import Sink, WriterSink
from streamactors.sources import Source, SplitSource
from streamactors.state.aggregates import Aggregate, refuse_no_aggregate
from streamactors.state.descriptors import Ttl
from streamactors.time.triggers import Trigger
from streamactors.time.watermarks import Watermarks
from streamactors.time.windows import WindowAssigner

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
R = TypeVar("R")

_NO_TIME: Final = dt.timedelta(0)


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
        self,
        uid: str,
        source: Source[T],
        *,
        watermarks: Watermarks[T] | None = None,
        parallelism: int | None = None,
    ) -> "Stream[T]":
        """Read records. Without `watermarks`, event time is the record's own timestamp where the source has one
        (Kafka), and there are no watermarks."""
        if watermarks is not None:
            _check_watermarks(f"source {uid!r}", watermarks)
        if not isinstance(source, SplitSource):
            raise InvalidDataflow(f"source {uid!r}: {_not_a_source(source)}")
        node = self._builder.add(SourceSpec(source, watermarks), uid=uid, parallelism=parallelism)
        return added(self, node, getattr(source, "element_type", Any))

    def graph(self) -> LogicalGraph:
        """The steps so far, frozen."""
        return self._builder.graph()

    def explain(self, config: Config | None = None, *, workers: int | None = None) -> str:
        """The logical graph, and the plan by which it would run under `config`, as text. `workers`: on so many, else on
        those of the deployment, where it has any.

        Raises InvalidDataflow or InvalidConfig where it would not run.
        """
        config = config or Config()
        graph = self.graph()
        plan = planned(graph, config)
        reason = why(graph, config.execution, checkpointing=config.checkpoints is not None)
        return render.explain(graph, plan, reason, placed(plan, config, workers))

    def to_mermaid(self, config: Config | None = None, *, workers: int | None = None) -> str:
        """The logical graph as a Mermaid flowchart; or, with `workers` or a deployment over several, the plan by worker
        (see `explain`)."""
        graph, config = self.graph(), config or Config()
        if workers is None and not isinstance(config.deployment, Ray):
            return render.mermaid(graph)
        plan = planned(graph, config)
        placement = placed(plan, config, workers)
        assert placement is not None
        return render.placed_mermaid(plan, placement)

    def __repr__(self) -> str:
        return f"<Dataflow {self.name!r}>"


class Stream(Generic[T]):
    """Records of type `T` on their way. Every step also takes, by keyword: `name` (shown instead of the one made from
    its place), `parallelism` (its number of subtasks, else the configured one) and `chain` (False: an actor of its
    own).
    """

    def __init__(self, flow: "Dataflow", edges: tuple[Edge, ...], element_type: Any) -> None:
        self._flow = flow
        self._edges = edges
        self._type = element_type

    # ---------------------------------------------------------------------------------------------- steps without state
    @overload
    def map(
        self,
        fn: Callable[[T], Awaitable[U]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Stream[U]": ...
    @overload
    def map(
        self, fn: Callable[[T], U], *, name: str | None = None, parallelism: int | None = None, chain: bool = True
    ) -> "Stream[U]": ...
    def map(
        self, fn: Callable[[T], Any], *, name: str | None = None, parallelism: int | None = None, chain: bool = True
    ) -> "Stream[Any]":
        """`fn(record)` for each record."""
        return self._apply("map", fn, mapped_type(fn), name=name, parallelism=parallelism, chain=chain)

    def filter(
        self,
        fn: Callable[[T], bool | Awaitable[bool]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Stream[T]":
        """The records for which `fn(record)` is true."""
        return self._apply("filter", fn, self._type, name=name, parallelism=parallelism, chain=chain)

    @overload
    def flat_map(
        self,
        fn: Callable[[T], Awaitable[Iterable[U]]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Stream[U]": ...
    @overload
    def flat_map(
        self,
        fn: Callable[[T], Iterable[U]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Stream[U]": ...
    def flat_map(
        self, fn: Callable[[T], Any], *, name: str | None = None, parallelism: int | None = None, chain: bool = True
    ) -> "Stream[Any]":
        """Every item of `fn(record)`, which may be a generator."""
        return self._apply("flat_map", fn, flat_mapped_type(fn), name=name, parallelism=parallelism, chain=chain)

    def print(
        self, label: str = "", *, name: str | None = None, parallelism: int | None = None, chain: bool = True
    ) -> "Stream[T]":
        """Write each record to standard output, one a line, and hand it on."""
        if not isinstance(label, str):
            raise InvalidDataflow(f"print takes a label, not {label!r}")
        return self._step(PrintSpec(label), self._type, name=name, parallelism=parallelism, chain=chain)

    def with_timestamps(
        self,
        watermarks: Watermarks[T],
        *,
        uid: str | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> "Stream[T]":
        """Give the records other time-stamps, and the steps behind it other watermarks: per subtask, of the records
        that it gets. `on_error=tag` sends those that have none to that side output, as dead letters. With a `uid`, it
        goes on where it was also when other steps of the flow have changed."""
        _check_watermarks("with_timestamps", watermarks)
        spec = TimestampSpec(watermarks, _route(on_error, uid or "with_timestamps"))
        return self._step(spec, self._type, uid=uid, name=name, parallelism=parallelism, chain=chain)

    # ------------------------------------------------------------------------------------------------ steps with a uid
    @overload
    def map_async(
        self,
        uid: str,
        fn: Callable[[T], Awaitable[U]],
        *,
        capacity: int = 100,
        timeout: dt.timedelta | None = None,
        ordered: bool = True,
        retry: Retry | None = None,
        batch: None = None,
        on_error: ErrorRoute = "fail",
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Stream[U]": ...
    @overload
    def map_async(
        self,
        uid: str,
        fn: Callable[[builtins.list[T]], Awaitable[Sequence[U]]],
        *,
        capacity: int = 100,
        timeout: dt.timedelta | None = None,
        ordered: bool = True,
        retry: Retry | None = None,
        batch: BatchOf,
        on_error: ErrorRoute = "fail",
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Stream[U]": ...
    @needs_uid
    def map_async(
        self,
        uid: str,
        fn: Callable[[Any], Awaitable[Any]],
        *,
        capacity: int = 100,
        timeout: dt.timedelta | None = None,
        ordered: bool = True,
        retry: Retry | None = None,
        batch: BatchOf | None = None,
        on_error: ErrorRoute = "fail",
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Stream[Any]":
        """`await fn(record)` for up to `capacity` records at once, per subtask; with `batch`, `await fn(records)`.

        Results come in the order of the records, or unless `ordered`, as they are ready. `timeout` is that of one
        attempt. `on_error=tag` sends records whose last attempt has failed to that side output, as dead letters. After
        a failure of the job, calls that had not ended are made again.
        """
        _check_function("map_async", fn)
        made = mapped_type(fn) if batch is None else flat_mapped_type(fn)
        spec = MapAsyncSpec(fn, capacity, timeout, ordered, retry, batch, _route(on_error, uid))
        return self._step(spec, made, uid=uid, name=name, parallelism=parallelism, chain=chain)

    @needs_uid
    def process(
        self,
        uid: str,
        operator: Callable[[], Operator[T, U]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> "Stream[U]":
        """Run an operator, given as its class or as a factory without arguments, which is called once per subtask.

        `on_error=tag` sends records on which it fails to that side output, as dead letters.
        """
        spec = ProcessSpec(operator, keyed=False, on_error=_route(on_error, uid))
        return self._step(spec, operator_type(operator), uid=uid, name=name, parallelism=parallelism, chain=chain)

    @needs_uid
    def sink(
        self,
        uid: str,
        sink: Sink[T],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "Dataflow":
        """Write the records out."""
        self._step(_sink_spec(uid, sink), Any, uid=uid, name=name, parallelism=parallelism, chain=chain)
        return self._flow

    # ---------------------------------------------------------------------------------- where the records go: no step
    def key_by(self, fn: Callable[[T], K]) -> "KeyedStream[K, T]":
        """Records of one key to one subtask, in order; `fn` is a plain `def` that gives the key."""
        _check_function("key_by", fn)
        if is_async(fn):
            raise InvalidDataflow("key_by takes a plain function: do what has to be awaited in a map before it")
        return KeyedStream(self._flow, _over(self._edges, Keyed(fn)), self._type)

    def rebalance(self) -> "Stream[T]":
        """Records to the next step's subtasks in turn."""
        return Stream(self._flow, _over(self._edges, Rebalance()), self._type)

    def broadcast(self) -> "Stream[T]":
        """Every record to every subtask of the next step."""
        return Stream(self._flow, _over(self._edges, Broadcast()), self._type)

    def union(self, *others: "Stream[T]") -> "Stream[T]":
        """The records of all these streams, in no order between them."""
        streams = [self, *others]
        for stream in others:
            self._check_same_flow("union takes streams", stream)
        edges = tuple(edge for stream in streams for edge in stream._edges)
        return Stream(self._flow, edges, common_type(stream._type for stream in streams))

    def connect(self, other: "Stream[U]") -> "ConnectedStreams[T, U]":
        """Both streams into one operator, which tells their records apart; this one is its left input."""
        self._check_same_flow("connect takes a stream", other)
        return ConnectedStreams(self, other)

    @needs_uid
    def window_all(
        self,
        uid: str,
        assigner: WindowAssigner,
        *,
        trigger: Trigger | None = None,
        allowed_lateness: dt.timedelta = _NO_TIME,
        late: OutputTag[T] | None = None,
    ) -> "WindowedStream[None, T]":
        """As `window` on a keyed stream, over all records together: in one subtask, under the key None."""
        windowing = Windowing.of(uid, assigner, trigger, allowed_lateness, late)
        everything = KeyedStream[None, T](self._flow, _over(self._edges, Keyed(_no_key)), self._type)
        return WindowedStream(everything, uid, windowing, alone=True)

    def side_output(self, tag: OutputTag[U]) -> "Stream[U]":
        """What the step that made this stream emits to `tag`."""
        _check_tag(tag)
        if any(edge.tag is not None for edge in self._edges):
            raise InvalidDataflow(f"{self!r} is a side output: take {tag!r} from the stream of the step that emits it")
        makers = dict.fromkeys(edge.upstream for edge in self._edges)
        return Stream(self._flow, tuple(Edge(maker, Forward(), tag.name) for maker in makers), tag.type)

    # ----------------------------------------------------------------------------------------------------------- inside
    def _apply(self, step: str, fn: Callable[[T], Any], element_type: Any, **options: Any) -> "Stream[Any]":
        _check_function(step, fn)
        return self._step(FunctionSpec(step, fn), element_type, **options)

    def _step(
        self, spec: OperatorSpec, element_type: Any, *, right: "Stream[Any] | None" = None, **options: Any
    ) -> "Stream[Any]":
        """`right`: what goes into its second input."""
        edges = self._edges + (() if right is None else tuple(replace(edge, side=1) for edge in right._edges))
        return added(self._flow, self._flow._builder.add(spec, edges, **options), element_type)

    def _check_same_flow(self, wanted: str, other: "Stream[Any]") -> None:
        if not isinstance(other, Stream):
            raise InvalidDataflow(f"{wanted}, not {other!r}")
        if other._flow is not self._flow:
            raise InvalidDataflow(
                f"{other!r} and {self!r} were built from two Dataflow objects: build both from one. In a notebook, "
                "after a cell that makes a Dataflow run the cells that add to it again"
            )

    def __repr__(self) -> str:
        makers = [self._flow._builder.describe(edge.upstream) for edge in self._edges]
        tags = [f" ({edge.tag})" if edge.tag else "" for edge in self._edges]
        steps = ", ".join(builtins.map(str.__add__, makers, tags))
        return f"<{type(self).__name__} of {steps} in dataflow {self._flow.name!r}>"


class KeyedStream(Stream[T], Generic[K, T]):
    """A stream on which every record has a key. Steps with state take its records key by key; the steps that have none
    run after the exchange, on what reaches their subtask."""

    def filter(
        self,
        fn: Callable[[T], bool | Awaitable[bool]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> "KeyedStream[K, T]":
        """The records for which `fn(record)` is true, under the same keys."""
        # Before the exchange, where it spares dropped records the way; being stateless, it gives the same there.
        before = Stream[T](self._flow, _over(self._edges, Forward()), self._type)
        return before.filter(fn, name=name, parallelism=parallelism, chain=chain).key_by(self._selector)

    @overload
    def process(
        self,
        uid: str,
        operator: Callable[[], KeyedOperator[K, T, U]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[U]: ...
    @overload
    def process(
        self,
        uid: str,
        operator: Callable[[], Operator[T, U]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[U]: ...
    @needs_uid
    def process(
        self,
        uid: str,
        operator: Callable[[], Any],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[Any]:
        """As on a `Stream`; a `KeyedOperator` may hold state, which is that of the record's key. An
        `AsyncKeyedOperator` works on many keys at once."""
        spec = KeyedProcessSpec(operator, on_error=_route(on_error, uid))
        return self._step(spec, operator_type(operator), uid=uid, name=name, parallelism=parallelism, chain=chain)

    @needs_uid
    def reduce(
        self,
        uid: str,
        fn: Callable[[T, T], T],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> Stream[T]:
        """Emits the key's running result for every record."""
        _check_function("reduce", fn)
        spec = ReduceSpec(fn, stored_type(self._type))
        return self._step(spec, self._type, uid=uid, name=name, parallelism=parallelism, chain=chain)

    @overload
    def connect(self, other: "KeyedStream[K, U]") -> "KeyedConnectedStreams[K, T, U]": ...
    @overload
    def connect(self, other: Stream[U]) -> "ConnectedStreams[T, U]": ...
    def connect(self, other: Stream[Any]) -> "ConnectedStreams[T, Any]":
        """As on a `Stream`; with another keyed stream the operator may be a `KeyedCoOperator`: equal keys meet."""
        self._check_same_flow("connect takes a stream", other)
        if isinstance(other, KeyedStream):
            return KeyedConnectedStreams[K, T, Any](self, other)
        return ConnectedStreams(self, other)

    @needs_uid
    def deduplicate(
        self,
        uid: str,
        *,
        by: Callable[[T], Any] | None = None,
        within: dt.timedelta | None = None,
        keep: Literal["first", "last"] = "first",
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> Stream[T]:
        """The first record of each key; with `by`, of each of its values. Others are dropped.

        `within`: those alone that are closer than this to one that came out; without it all others, for ever, so that
        state grows with the keys. Event time where the stream has watermarks, else processing time.
        `keep="last"`: each record that is not older than those before it, so that the last to come out is the newest.
        """
        span = None if within is None else bound(f"deduplicate {uid!r}", "within", within)
        spec = DeduplicateSpec(keep, by, Any if by is None else stored_type(mapped_type(by)), span)
        return self._step(spec, self._type, uid=uid, name=name, parallelism=parallelism, chain=chain)

    @needs_uid
    def top_n(
        self,
        uid: str,
        n: int,
        by: Callable[[T], Any],
        *,
        ttl: Ttl | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> Stream[list[T]]:
        """The `n` records of the key with the largest `by(record)`, the largest first, each time that they change; of
        equal ones, those that came first. Records without a rank (None, NaN) are passed over.

        `ttl`: a ranking that has not been written for so long is forgotten, and the next record begins a new one.
        """
        spec = TopNSpec(n, by, ttl)
        return self._step(spec, list[self._type], uid=uid, name=name, parallelism=parallelism, chain=chain)  # type: ignore[name-defined]

    # ---------------------------------------------------------------------------------------------------------- joins
    @needs_uid
    def interval_join(
        self,
        uid: str,
        right: "KeyedStream[K, U]",
        lower: dt.timedelta,
        upper: dt.timedelta,
        *,
        late: OutputTag[Any] | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> Stream[tuple[T, U]]:
        """Pairs of one key with left.ts + lower <= right.ts <= left.ts + upper. `late`: where rows go that come too
        late."""
        types = self._joined_types("interval_join", uid, right)
        bounds = bound(f"interval_join {uid!r}", "lower", lower), bound(f"interval_join {uid!r}", "upper", upper)
        spec = IntervalJoinSpec(*stored_types(types), late, *bounds)
        options = {"uid": uid, "name": name, "parallelism": parallelism, "chain": chain}
        return self._step(spec, pair_type(*types), right=right, **options)

    @needs_uid
    def outer_join(
        self,
        uid: str,
        right: "KeyedStream[K, U]",
        lower: dt.timedelta,
        upper: dt.timedelta,
        how: Literal["left", "right", "full"] = "full",
        *,
        late: OutputTag[Any] | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> Stream[tuple[T | None, U | None]]:
        """As interval_join; rows that match nothing come out with None in the other's place, once that is certain.
        `how`: of which sides."""
        types = self._joined_types("outer_join", uid, right)
        bounds = bound(f"outer_join {uid!r}", "lower", lower), bound(f"outer_join {uid!r}", "upper", upper)
        spec = OuterJoinSpec(*stored_types(types), late, *bounds, how)
        options = {"uid": uid, "name": name, "parallelism": parallelism, "chain": chain}
        return self._step(spec, pair_type(*types, optional=(how != "left", how != "right")), right=right, **options)

    @needs_uid
    def window_join(
        self,
        uid: str,
        right: "KeyedStream[K, U]",
        assigner: WindowAssigner,
        *,
        late: OutputTag[Any] | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> Stream[tuple[T, U]]:
        """All pairs of one key that are in one window, at its end."""
        types = self._joined_types("window_join", uid, right)
        spec = WindowJoinSpec(*stored_types(types), late, assigner)
        options = {"uid": uid, "name": name, "parallelism": parallelism, "chain": chain}
        return self._step(spec, pair_type(*types), right=right, **options)

    @needs_uid
    def as_of_join(
        self,
        uid: str,
        right: "KeyedStream[K, U]",
        *,
        late: OutputTag[Any] | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
    ) -> Stream[tuple[T, U | None]]:
        """Each record of this stream with the last one of `right` that is not after it; None if there is none."""
        types = self._joined_types("as_of_join", uid, right)
        spec = AsOfJoinSpec(*stored_types(types), late)
        options = {"uid": uid, "name": name, "parallelism": parallelism, "chain": chain}
        return self._step(spec, pair_type(*types, optional=(False, True)), right=right, **options)

    def _joined_types(self, step: str, uid: str, right: object) -> tuple[Any, Any]:
        """Of the rows of both sides. Raises InvalidDataflow for what can't be joined with this stream."""
        if not isinstance(right, Stream):
            raise InvalidDataflow(f"{step} {uid!r} takes a keyed stream, not {right!r}")
        self._check_same_flow(f"{step} {uid!r} takes a keyed stream", right)
        if not isinstance(right, KeyedStream):
            raise InvalidDataflow(
                f"{step} {uid!r}: rows of equal keys are joined, and {right!r} has no keys: key_by first"
            )
        check_key_types(f"{step} {uid!r}", mapped_type(self._selector), mapped_type(right._selector))
        return self._type, right._type

    @needs_uid
    def pattern(
        self,
        uid: str,
        pattern: Pattern[T],
        *,
        timed_out: OutputTag[Match[T]] | None = None,
        late: OutputTag[T] | None = None,
        max_partial_matches: int | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[Match[T]]:
        """The matches of a pattern among the events of each key, in event time where there are watermarks.

        `timed_out`: where partial matches go whose `within` is over. `late`: where events go that come behind their
        watermark. More partial matches of one key than `max_partial_matches` fail the job. `on_error=tag` sends events
        on which a condition fails to that side output, as dead letters: to the pattern they have not come.
        """
        route = _route(on_error, uid)
        settings = PatternSettings(timed_out, late, max_partial_matches, None if route == "fail" else route)
        spec = PatternSpec(pattern, stored_type(self._type), settings)
        return self._step(spec, Any, uid=uid, name=name, parallelism=parallelism, chain=chain)

    def connect_broadcast(self, rules: Stream[U]) -> "BroadcastConnectedStreams[K, T, U]":
        """Beside the records of this stream by key, all records of `rules` to every subtask."""
        self._check_same_flow("connect_broadcast takes a stream", rules)
        return BroadcastConnectedStreams(self, rules.broadcast())

    @needs_uid
    def window(
        self,
        uid: str,
        assigner: WindowAssigner,
        *,
        trigger: Trigger | None = None,
        allowed_lateness: dt.timedelta = _NO_TIME,
        late: OutputTag[T] | None = None,
    ) -> "WindowedStream[K, T]":
        """The key's records in windows of time, or of their number.

        `trigger`: when a window gives its result; by default at its end. `allowed_lateness`: how far the watermark may
        have passed that end for a record to change the result still, which is then given again. Records that come later
        go to the side output `late` of the step that follows, or are dropped; metric `late_records` counts them.
        """
        return WindowedStream(self, uid, Windowing.of(uid, assigner, trigger, allowed_lateness, late))

    @property
    def _selector(self) -> Callable[[T], K]:
        keyed = self._edges[0].partitioning  # all edges of a keyed stream have the same
        assert isinstance(keyed, Keyed)
        return cast(Callable[[T], K], keyed.selector)


class WindowedStream(Generic[K, T]):
    """Records in windows: say what is to become of those of one. `name`, `parallelism` and `chain` are as for the steps
    of a `Stream`; `on_error=tag` sends records (and windows, for `process`) on which the step fails to that side
    output, as dead letters."""

    def __init__(self, stream: KeyedStream[K, T], uid: str, windowing: Windowing, *, alone: bool = False) -> None:
        """`alone`: in one subtask."""
        self._stream = stream
        self._uid = uid
        self._windowing = windowing
        self._alone = alone

    def reduce(
        self,
        fn: Callable[[T, T], T],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[Windowed[K, T]]:
        """What `fn`, a plain `def`, makes of a window's records, two by two."""
        _check_function("reduce", fn)
        if is_async(fn):
            raise InvalidDataflow(f"window {self._uid!r}: reduce takes a plain function; await in a map before it")
        contents = reducing(fn, stored_type(self._stream._type))
        return self._step(contents, None, on_error, name=name, parallelism=parallelism, chain=chain)

    def aggregate(
        self,
        aggregate: Aggregate[T, Any, R],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[Windowed[K, R]]:
        """The aggregate of a window's records, of which only the accumulator is kept."""
        refuse_no_aggregate(aggregate, f"window {self._uid!r}")
        return self._step(aggregating(aggregate), None, on_error, name=name, parallelism=parallelism, chain=chain)

    def process(
        self,
        operator: Callable[[], WindowOperator[K, T, U]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[U]:
        """Run an operator, given as its class or as a factory without arguments, on all of a window's records, which
        are kept until then."""
        contents = Keeping(stored_type(self._stream._type))
        return self._step(contents, operator, on_error, name=name, parallelism=parallelism, chain=chain)

    def _step(
        self,
        contents: ContentsSpec,
        operator: Callable[[], Any] | None,
        on_error: ErrorRoute,
        *,
        parallelism: int | None,
        **options: Any,
    ) -> Stream[Any]:
        if self._alone and parallelism not in (None, 1):
            raise InvalidDataflow(f"window_all {self._uid!r} has one subtask, since it takes all records together")
        spec = WindowSpec(self._windowing, contents, operator, _route(on_error, self._uid))
        made = Any if operator is None else operator_type(operator)
        parallelism = 1 if self._alone else parallelism
        return self._stream._step(spec, made, uid=self._uid, parallelism=parallelism, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._windowing.assigner!r} of {self._stream!r}>"


def _refusing_without_keys(step: str) -> Callable[..., None]:
    def refuse(self: Stream[Any], *args: Any, **options: Any) -> None:
        raise InvalidDataflow(f"{step} works key by key, and {self!r} has no keys: key_by first")

    return refuse


for _step in ("reduce", "interval_join", "outer_join", "window_join", "as_of_join", "deduplicate", "top_n"):
    # Not declared, since type checkers refuse it too, and earlier.
    setattr(Stream, _step, _refusing_without_keys(_step))


class ConnectedStreams(Generic[T, U]):
    """Two streams on their way into one operator."""

    def __init__(self, left: Stream[T], right: Stream[U]) -> None:
        self._left = left
        self._right = right

    def key_by(self, left: Callable[[T], K], right: Callable[[U], K]) -> "KeyedConnectedStreams[K, T, U]":
        """Records of one key, of whichever stream, to one subtask; the functions are plain `def`."""
        return KeyedConnectedStreams(self._left.key_by(left), self._right.key_by(right))

    @needs_uid
    def process(
        self,
        uid: str,
        operator: Callable[[], CoOperator[T, U, R]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[R]:
        """As on a `Stream`, with an operator that has a hook for each."""
        options = {"uid": uid, "name": name, "parallelism": parallelism, "chain": chain}
        return self._process(CoProcessSpec(operator, keyed=False, on_error=_route(on_error, uid)), options)

    def _process(self, spec: ProcessSpec, options: dict[str, Any]) -> Stream[Any]:
        return self._left._step(spec, operator_type(spec.factory), right=self._right, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._left!r}, {self._right!r}>"


class KeyedConnectedStreams(ConnectedStreams[T, U], Generic[K, T, U]):
    """Two streams with keys of one kind on their way into one operator."""

    @overload
    def process(
        self,
        uid: str,
        operator: Callable[[], KeyedCoOperator[K, T, U, R]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[R]: ...
    @overload
    def process(
        self,
        uid: str,
        operator: Callable[[], CoOperator[T, U, R]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[R]: ...
    @needs_uid
    def process(
        self,
        uid: str,
        operator: Callable[[], Any],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[Any]:
        """As on `ConnectedStreams`; a `KeyedCoOperator` may hold state, which both of its hooks reach for their key."""
        options = {"uid": uid, "name": name, "parallelism": parallelism, "chain": chain}
        return self._process(CoProcessSpec(operator, keyed=True, on_error=_route(on_error, uid)), options)


class BroadcastConnectedStreams(Generic[K, T, U]):
    """A keyed stream, and one that every subtask gets all of, on their way into one operator."""

    def __init__(self, left: KeyedStream[K, T], rules: Stream[U]) -> None:
        self._left = left
        self._rules = rules

    @needs_uid
    def process(
        self,
        uid: str,
        operator: Callable[[], KeyedBroadcastOperator[K, T, U, R]],
        *,
        name: str | None = None,
        parallelism: int | None = None,
        chain: bool = True,
        on_error: ErrorRoute = "fail",
    ) -> Stream[R]:
        """As on a `KeyedStream`, with an operator that may also hold broadcast state."""
        spec = BroadcastProcessSpec(operator, keyed=True, on_error=_route(on_error, uid))
        options = {"uid": uid, "name": name, "parallelism": parallelism, "chain": chain}
        return self._left._step(spec, operator_type(operator), right=self._rules, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._left!r}, {self._rules!r}>"


def added(flow: "Dataflow", node: int, element_type: Any) -> Stream[Any]:
    """The main output of a step just added."""
    return Stream(flow, (Edge(node, Forward()),), element_type)


def graph_with_sink(stream: Stream[T], uid: str, sink: Sink[T]) -> LogicalGraph:
    """The flow's graph with one more sink, on `stream`; the flow itself stays as it is."""
    builder = stream._flow._builder.copy()
    builder.add(_sink_spec(uid, sink), stream._edges, uid=uid)
    return builder.graph()


def _over(edges: tuple[Edge, ...], partitioning: Partitioning) -> tuple[Edge, ...]:
    return tuple(Edge(edge.upstream, partitioning, edge.tag) for edge in edges)


def _no_key(_: object) -> None:
    """Everything is under one key."""


def _route(on_error: ErrorRoute, uid: str) -> ErrorRoute:
    if on_error == "fail" or isinstance(on_error, OutputTag):
        return on_error
    raise InvalidDataflow(f"step {uid!r}: on_error is 'fail' or an OutputTag, not {on_error!r}")


def _sink_spec(uid: str, sink: Sink[Any]) -> SinkSpec:
    if isinstance(sink, WriterSink):
        return SinkSpec(sink)
    if isinstance(sink, type):
        raise InvalidDataflow(f"sink {uid!r}: {sink.__name__} is a class: make a sink of it, {sink.__name__}(…)")
    raise InvalidDataflow(
        f"sink {uid!r}: a {type(sink).__name__} is no sink: derive its class from streamactors.sinks.WriterSink"
    )


def _check_function(step: str, fn: Any) -> None:
    if not callable(fn):
        raise InvalidDataflow(f"{step} takes a function, not {fn!r}")
    if isinstance(fn, type) and issubclass(fn, Lifecycle):
        name = fn.__name__
        raise InvalidDataflow(f'{step} takes a function, and {name} is an operator: .process("my-uid", {name})')


def _check_tag(tag: object) -> None:
    if not (isinstance(tag, OutputTag) and tag.name):
        raise InvalidDataflow(f"side_output takes an OutputTag(name, type), not {tag!r}")


def _check_watermarks(where: str, watermarks: object) -> None:
    if not isinstance(watermarks, Watermarks):
        raise InvalidDataflow(f"{where}: watermarks= is made by sa.Watermarks.bounded(…), not {watermarks!r}")


def _not_a_source(source: object) -> str:
    if isinstance(source, type):
        return f"{source.__name__} is a class: make a source of it, {source.__name__}(…)"
    return f"a {type(source).__name__} is no source: derive its class from streamactors.sources.SplitSource"
