"""The public API is a contract: programs outside this repository are written against these names and arguments.

A pin is an argument list: names, order, kinds and defaults, where `...` is any default. Types are pinned in
`tests/typing`. Adding a keyword argument means adding it here; anything else breaks somebody's program.
"""

import inspect
from typing import Any

import pytest

import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.kafka import KafkaSink, KafkaSource
from connectors.memory import ListSink, ListSource

EXPORTS = {
    "Aggregate", "Aggregates", "AggregatingState", "Avg", "Collect", "Count", "Distinct", "Max", "Min", "ReducingState",
    "Sum", "TopN", "Ttl",
    "BroadcastConnectedStreams", "BroadcastState", "CoOperator", "ConnectedStreams", "KeyedBroadcastOperator",
    "KeyedCoOperator", "KeyedConnectedStreams",
    "Checkpoints", "Config", "Context", "CorruptCheckpoint", "Counter", "Dataflow", "DeadLetter", "Decoder",
    "Deployment", "Encoder", "ErrorRoute", "Heap", "Histogram", "IncompatibleState", "InvalidConfig",
    "InvalidDataflow", "JobFailed", "Json", "KeyedOperator", "KeyedStream", "ListState", "Local", "MapState",
    "MetricGroup", "MsgPack", "Operator", "OperatorContext", "OperatorListState", "OutputTag", "Raw", "Ray", "Restart",
    "Sink", "Source", "StateAccessError", "StateBackend", "StorageInUse", "Stream", "StreamactorsError", "Text",
    "TransactionLost", "UnionListState", "ValueState",
    "BatchOf", "CallCancelled", "Retry",
    "Autoscale", "record_id", "record_ids",
    "Watermarks", "NoSuchStep", "SubscriptionLagged",
    "Alias", "AsyncKeyedOperator", "CheckpointFailed", "CheckpointInfo", "ClusterUnfit", "CountWindow", "Custom",
    "FencedOff", "GlobalWindow", "JobHandle", "JobNotRunning", "Match", "MissingExtra", "Pattern", "Pickle",
    "RecordFailed", "RescaleFailed", "RescaleInfo", "RescaleUnderWay", "RocksDB", "Session", "Sliding",
    "StorageFailed", "Timer", "Timers", "TooManyPartialMatches", "TransactionAlreadyCommitted", "Trigger", "Tumbling",
    "UnserialisableKey", "UnserialisableValue", "WatermarkGenerator", "WindowAssigner", "WindowOperator", "Windowed",
    "WindowedStream", "collect", "main", "run", "start", "stored_as",
}  # fmt: skip

STEP = "name=None, parallelism=None, chain=True"
MARKS = "idle_after=None, max_ahead=None, ahead=None, align=None, align_group=''"
PINS: list[tuple[Any, str, str]] = [
    (sa.Dataflow, "__init__", "self, name"),
    (sa.Dataflow, "source", "self, uid, source, *, watermarks=None, parallelism=None"),
    (sa.Dataflow, "explain", "self, config=None, *, workers=None"),
    (sa.Dataflow, "to_mermaid", "self, config=None, *, workers=None"),
    (sa.Stream, "map", f"self, fn, *, {STEP}"),
    (sa.Stream, "filter", f"self, fn, *, {STEP}"),
    (sa.Stream, "flat_map", f"self, fn, *, {STEP}"),
    (sa.Stream, "process", f"self, uid, operator, *, {STEP}, on_error='fail'"),
    (
        sa.Stream,
        "map_async",
        "self, uid, fn, *, capacity=100, timeout=None, ordered=True, retry=None, batch=None, on_error='fail', " + STEP,
    ),
    (sa.BatchOf, "__init__", "self, max_size, max_wait"),
    (sa.Retry, "__init__", "self, attempts, *, initial=..., maximum=..., on=..."),
    (sa.Stream, "key_by", "self, fn"),
    (sa.Stream, "union", "self, *others"),
    (sa.Stream, "rebalance", "self"),
    (sa.Stream, "broadcast", "self"),
    (sa.Stream, "side_output", "self, tag"),
    (sa.Stream, "print", f"self, label='', *, {STEP}"),
    (sa.Stream, "sink", f"self, uid, sink, *, {STEP}"),
    (sa.KeyedStream, "filter", f"self, fn, *, {STEP}"),
    (sa.KeyedStream, "process", f"self, uid, operator, *, {STEP}, on_error='fail'"),
    (sa.KeyedStream, "reduce", f"self, uid, fn, *, {STEP}"),
    (sa.Stream, "connect", "self, other"),
    (sa.KeyedStream, "connect", "self, other"),
    (sa.KeyedStream, "connect_broadcast", "self, rules"),
    (sa.ConnectedStreams, "key_by", "self, left, right"),
    (sa.ConnectedStreams, "process", f"self, uid, operator, *, {STEP}, on_error='fail'"),
    (sa.KeyedConnectedStreams, "process", f"self, uid, operator, *, {STEP}, on_error='fail'"),
    (sa.BroadcastConnectedStreams, "process", f"self, uid, operator, *, {STEP}, on_error='fail'"),
    (sa.OutputTag, "__init__", "self, name, type"),
    (sa.Watermarks, "bounded", f"timestamp, out_of_orderness, *, {MARKS}"),
    (sa.Watermarks, "monotonic", f"timestamp, *, {MARKS}"),
    (sa.Watermarks, "custom", f"timestamp, generator, *, {MARKS}"),
    (sa.Watermarks, "none", ""),
    (sa.Stream, "with_timestamps", f"self, watermarks, *, uid=None, {STEP}, on_error='fail'"),
    (sa.Operator, "open", "self, ctx, /"),
    (sa.Operator, "process", "self, value, ctx, /"),
    (sa.Operator, "close", "self"),
    (sa.KeyedOperator, "open", "self, ctx, /"),
    (sa.KeyedOperator, "process", "self, value, ctx, /"),
    (sa.KeyedOperator, "close", "self"),
    (sa.CoOperator, "process_left", "self, value, ctx, /"),
    (sa.CoOperator, "process_right", "self, value, ctx, /"),
    (sa.KeyedCoOperator, "process_left", "self, value, ctx, /"),
    (sa.KeyedCoOperator, "process_right", "self, value, ctx, /"),
    (sa.KeyedBroadcastOperator, "process", "self, value, ctx, /"),
    (sa.KeyedBroadcastOperator, "process_broadcast", "self, value, ctx, /"),
    (sa.Context, "emit", "self, value, timestamp=None"),
    (sa.Context, "emit_to", "self, tag, value"),
    (sa.Context, "drain", "self"),
    (sa.MetricGroup, "counter", "self, name"),
    (sa.MetricGroup, "gauge", "self, name, read"),
    (sa.MetricGroup, "histogram", "self, name"),
    (sa.Counter, "inc", "self, by=1"),
    (sa.Histogram, "observe", "self, value"),
    (sa.ValueState, "__init__", "self, type, *, default=..., default_factory=..., ttl=None"),
    (sa.ValueState, "get", "self"),
    (sa.ValueState, "set", "self, value"),
    (sa.ValueState, "clear", "self"),
    (sa.ListState, "__init__", "self, type, *, ttl=None"),
    (sa.ListState, "append", "self, value"),
    (sa.ListState, "extend", "self, values"),
    (sa.ListState, "clear", "self"),
    (sa.OperatorListState, "__init__", "self, type, *, ttl=None"),
    (sa.UnionListState, "__init__", "self, type, *, ttl=None"),
    (sa.MapState, "__init__", "self, key_type, value_type, *, ttl=None"),
    (sa.MapState, "range", "self, start=None, stop=None"),
    (sa.ReducingState, "__init__", "self, type, fn, *, ttl=None"),
    (sa.ReducingState, "add", "self, value"),
    (sa.ReducingState, "get", "self"),
    (sa.ReducingState, "clear", "self"),
    (sa.AggregatingState, "__init__", "self, aggregate, *, ttl=None"),
    (sa.AggregatingState, "add", "self, value"),
    (sa.AggregatingState, "get", "self"),
    (sa.AggregatingState, "clear", "self"),
    (sa.Ttl, "__init__", "self, after, *, refresh_on='write'"),
    (sa.Aggregate, "create", "self"),
    (sa.Aggregate, "add", "self, accumulator, value"),
    (sa.Aggregate, "merge", "self, left, right"),
    (sa.Aggregate, "result", "self, accumulator"),
    (sa.Sum, "__init__", "self, fn"),
    (sa.Min, "__init__", "self, fn"),
    (sa.Max, "__init__", "self, fn"),
    (sa.Avg, "__init__", "self, fn"),
    (sa.Distinct, "__init__", "self, fn"),
    (sa.TopN, "__init__", "self, n, fn"),
    (sa.Collect, "__init__", "self"),
    (sa.BroadcastState, "__init__", "self, key_type, value_type, *, ttl=None"),
    (sa.Json, "__init__", "self, type=None"),
    (sa.Json, "decode", "self, data"),
    (sa.Json, "encode", "self, value"),
    (
        sa.Checkpoints,
        "__init__",
        "self, storage, *, interval, mode='exactly-once', alignment='aligned', alignment_timeout=None, timeout=..., "
        "min_pause=..., max_concurrent=1, tolerable_failures=0, retain=3, incremental=True, storage_options=None",
    ),
    (sa.JobHandle, "query", "self, uid, state, key"),
    (sa.JobHandle, "subscribe", "self, uid, *, tag=None, buffer=..."),
    (sa.SubscriptionLagged, "__init__", "self, uid, lost, buffer"),
    (sa.Restart, "none", ""),
    (sa.Restart, "fixed", "delay, attempts"),
    (sa.Restart, "exponential", "initial=..., maximum=..., *, jitter=0.1, reset_after=..."),
    (sa.Restart, "failure_rate", "failures, per, delay"),
    (
        sa.Config,
        "__init__",
        "self, *, parallelism=1, max_parallelism=None, mailbox_capacity=4096, execution='streaming', "
        "state_backend='heap', checkpoints=None, restart=None, deployment=None, sort_memory=..., sort_folder=None, "
        "autoscale=None",
    ),
    (
        sa.Autoscale,
        "__init__",
        "self, *, target=0.7, tolerance=0.2, min_parallelism=1, max_parallelism=None, steps=None, every=..., "
        "window=..., cooldown=..., scale_down_after=..., catch_up=..., max_factor=3.0, dry_run=False",
    ),
    (sa.Config, "from_toml", "path"),
    (FileSource, "__init__", "self, path, *, value, follow=False, on_error='fail'"),
    (FileSink, "__init__", "self, folder, *, value, roll_bytes=..., roll_after=..."),
    (
        KafkaSource,
        "__init__",
        "self, brokers, topics, *, value, start='earliest', bounded=False, group=None, isolation='read_committed', "
        "on_error='fail', client=None",
    ),
    (KafkaSource, "records", "brokers, topics, *, key, value, **options"),
    (
        KafkaSink,
        "__init__",
        "self, brokers, topic, *, value, key=None, headers=None, timestamp=None, delivery=None, "
        "transactional_id_prefix=None, client=None",
    ),
    (ListSource, "__init__", "self, values"),
    (ListSink, "__init__", "self"),
]

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def arguments(signature: inspect.Signature) -> tuple[list[tuple[str, Any]], set[tuple[str, Any]]]:
    """(name, kind) in order where order counts; keyword-only ones and ** as a set."""
    each = [(parameter.name, parameter.kind) for parameter in signature.parameters.values()]
    ordered = [(name, kind) for name, kind in each if kind in (*POSITIONAL, inspect.Parameter.VAR_POSITIONAL)]
    return ordered, set(each) - set(ordered)


def differs(found: Any, pinned: Any) -> bool:
    if pinned is ...:
        return found is inspect.Parameter.empty
    return bool(found != pinned)


@pytest.mark.parametrize(("owner", "name", "pin"), PINS, ids=[f"{owner.__name__}.{name}" for owner, name, _ in PINS])
def test_arguments_are_as_pinned(owner: Any, name: str, pin: str) -> None:
    pinned = inspect.signature(eval(f"lambda {pin}: None"))
    found = inspect.signature(getattr(owner, name))
    assert arguments(found) == arguments(pinned)
    for parameter in pinned.parameters.values():
        default = found.parameters[parameter.name].default
        assert not differs(default, parameter.default), f"{parameter.name}={default!r}"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (sa.Context, {"key", "timestamp"}),
        (sa.DeadLetter, {"uid", "origin", "value", "error", "traceback"}),
        (sa.OperatorContext(uid="x", subtask=0, parallelism=1), {"uid", "subtask", "parallelism", "log", "metrics"}),
        (ListSink(), {"values"}),
    ],
)
def test_attributes_are_as_pinned(owner: object, names: set[str]) -> None:
    assert names <= set(dir(owner))


def test_exports_are_as_pinned() -> None:
    assert set(sa.__all__) == EXPORTS
    assert sorted(sa.__all__) == sa.__all__
    assert [name for name in sa.__all__ if not hasattr(sa, name)] == []
