"""Building a flow: `Dataflow`, where it begins; `Stream` and `KeyedStream`, immutable handles on the output of steps.

A method of a stream adds a step and returns a handle on it. One module, since a flow gives streams, a stream's
`sink` gives back its flow, and two streams connect.
"""

import builtins
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast, overload

from streamactors.api.builder import GraphBuilder, needs_uid
from streamactors.api.inference import common_type, flat_mapped_type, mapped_type, operator_type, stored_type
from streamactors.config import Config
from streamactors.elements import ErrorRoute, OutputTag
from streamactors.errors import InvalidDataflow
from streamactors.graph import planner, render
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
from streamactors.operators.base import KeyedOperator, Lifecycle, Operator, OperatorSpec, is_async
from streamactors.operators.process import ProcessSpec, ReduceSpec
from streamactors.operators.sink import SinkSpec
from streamactors.operators.stateless import FunctionSpec, PrintSpec
from streamactors.operators.two_inputs import (
    BroadcastProcessSpec,
    CoOperator,
    CoProcessSpec,
    KeyedBroadcastOperator,
    KeyedCoOperator,
)
from streamactors.sinks import Sink, WriterSink
from streamactors.sources import Source, SplitSource
from streamactors.time.watermarks import Watermarks

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
R = TypeVar("R")


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
        _check_watermarks(uid, watermarks)
        if not isinstance(source, SplitSource):
            raise InvalidDataflow(f"source {uid!r}: {_not_a_source(source)}")
        node = self._builder.add(SourceSpec(source, watermarks), uid=uid, parallelism=parallelism)
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

    # ------------------------------------------------------------------------------------------------ steps with a uid
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
        """As on a `Stream`; a `KeyedOperator` may hold state, which is that of the record's key."""
        spec = ProcessSpec(operator, keyed=True, on_error=_route(on_error, uid))
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

    def connect_broadcast(self, rules: Stream[U]) -> "BroadcastConnectedStreams[K, T, U]":
        """Beside the records of this stream by key, all records of `rules` to every subtask."""
        self._check_same_flow("connect_broadcast takes a stream", rules)
        return BroadcastConnectedStreams(self, rules.broadcast())

    @property
    def _selector(self) -> Callable[[T], K]:
        keyed = self._edges[0].partitioning  # all edges of a keyed stream have the same
        assert isinstance(keyed, Keyed)
        return cast(Callable[[T], K], keyed.selector)


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


def _check_watermarks(uid: str, watermarks: object) -> None:
    if watermarks is not None and not isinstance(watermarks, Watermarks):
        raise InvalidDataflow(f"source {uid!r}: watermarks= is made by sa.Watermarks.bounded(…), not {watermarks!r}")


def _not_a_source(source: object) -> str:
    if isinstance(source, type):
        return f"{source.__name__} is a class: make a source of it, {source.__name__}(…)"
    return f"a {type(source).__name__} is no source: derive its class from streamactors.sources.SplitSource"
