"""Stateful stream processing as an asyncio library: `import streamactors as sa`."""

from streamactors.api.dataflow import (
    BroadcastConnectedStreams,
    ConnectedStreams,
    Dataflow,
    KeyedConnectedStreams,
    KeyedStream,
    Stream,
    WindowedStream,
)
from streamactors.config import Checkpoints, Config, Deployment, Heap, Local, Restart, RocksDB, StateBackend
from streamactors.elements import DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import (
    CallCancelled,
    CheckpointFailed,
    CorruptCheckpoint,
    FencedOff,
    IncompatibleState,
    InvalidConfig,
    InvalidDataflow,
    JobFailed,
    JobNotRunning,
    MissingExtra,
    NoSuchStep,
    RecordFailed,
    StateAccessError,
    StorageFailed,
    StorageInUse,
    StreamactorsError,
    SubscriptionLagged,
    TooManyPartialMatches,
    TransactionAlreadyCommitted,
    TransactionLost,
    UnserialisableKey,
    UnserialisableValue,
)
from streamactors.formats import Decoder, Encoder, Json, MsgPack, Raw, Text
from streamactors.launch import JobHandle, collect, run, start
from streamactors.metrics import Counter, Histogram, MetricGroup
from streamactors.operators.async_io.keyed import AsyncKeyedOperator
from streamactors.operators.async_io.settings import BatchOf, Retry
from streamactors.operators.base import Context, KeyedOperator, Operator, OperatorContext
from streamactors.operators.patterns.pattern import Match, Pattern
from streamactors.operators.record_ids import record_id, record_ids
from streamactors.operators.two_inputs import CoOperator, KeyedBroadcastOperator, KeyedCoOperator
from streamactors.operators.windows.base import Windowed, WindowOperator
from streamactors.program import main
from streamactors.runtime.info import CheckpointInfo
from streamactors.sinks import Sink
from streamactors.sources import Source
from streamactors.state.aggregates import Aggregate, Aggregates, Avg, Collect, Count, Distinct, Max, Min, Sum, TopN
from streamactors.state.broadcast import BroadcastState
from streamactors.state.descriptors import (
    AggregatingState,
    ListState,
    MapState,
    OperatorListState,
    ReducingState,
    Ttl,
    UnionListState,
    ValueState,
    stored_as,
)
from streamactors.state.serialisation.aliases import Alias
from streamactors.state.serialisation.formats import Custom
from streamactors.state.serialisation.pickled import Pickle
from streamactors.time.timers import Timer, Timers
from streamactors.time.triggers import Trigger
from streamactors.time.watermarks import WatermarkGenerator, Watermarks
from streamactors.time.windows import CountWindow, GlobalWindow, Session, Sliding, Tumbling, WindowAssigner

__all__ = [
    "Aggregate",
    "Aggregates",
    "AggregatingState",
    "Alias",
    "AsyncKeyedOperator",
    "Avg",
    "BatchOf",
    "BroadcastConnectedStreams",
    "BroadcastState",
    "CallCancelled",
    "CheckpointFailed",
    "CheckpointInfo",
    "Checkpoints",
    "CoOperator",
    "Collect",
    "Config",
    "ConnectedStreams",
    "Context",
    "CorruptCheckpoint",
    "Count",
    "CountWindow",
    "Counter",
    "Custom",
    "Dataflow",
    "DeadLetter",
    "Decoder",
    "Deployment",
    "Distinct",
    "Encoder",
    "ErrorRoute",
    "FencedOff",
    "GlobalWindow",
    "Heap",
    "Histogram",
    "IncompatibleState",
    "InvalidConfig",
    "InvalidDataflow",
    "JobFailed",
    "JobHandle",
    "JobNotRunning",
    "Json",
    "KeyedBroadcastOperator",
    "KeyedCoOperator",
    "KeyedConnectedStreams",
    "KeyedOperator",
    "KeyedStream",
    "ListState",
    "Local",
    "MapState",
    "Match",
    "Max",
    "MetricGroup",
    "Min",
    "MissingExtra",
    "MsgPack",
    "NoSuchStep",
    "Operator",
    "OperatorContext",
    "OperatorListState",
    "OutputTag",
    "Pattern",
    "Pickle",
    "Raw",
    "RecordFailed",
    "ReducingState",
    "Restart",
    "Retry",
    "RocksDB",
    "Session",
    "Sink",
    "Sliding",
    "Source",
    "StateAccessError",
    "StateBackend",
    "StorageFailed",
    "StorageInUse",
    "Stream",
    "StreamactorsError",
    "SubscriptionLagged",
    "Sum",
    "Text",
    "Timer",
    "Timers",
    "TooManyPartialMatches",
    "TopN",
    "TransactionAlreadyCommitted",
    "TransactionLost",
    "Trigger",
    "Ttl",
    "Tumbling",
    "UnionListState",
    "UnserialisableKey",
    "UnserialisableValue",
    "ValueState",
    "WatermarkGenerator",
    "Watermarks",
    "WindowAssigner",
    "WindowOperator",
    "Windowed",
    "WindowedStream",
    "collect",
    "main",
    "record_id",
    "record_ids",
    "run",
    "start",
    "stored_as",
]
