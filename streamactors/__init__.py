"""Stateful stream processing as an asyncio library: `import streamactors as sa`."""

from streamactors.api.dataflow import Dataflow, KeyedStream, Stream
from streamactors.config import Checkpoints, Config, Deployment, Heap, Local, Restart, RocksDB, StateBackend
from streamactors.elements import DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import (
    CheckpointFailed,
    CorruptCheckpoint,
    FencedOff,
    IncompatibleState,
    InvalidConfig,
    InvalidDataflow,
    JobFailed,
    JobNotRunning,
    MissingExtra,
    RecordFailed,
    StateAccessError,
    StorageFailed,
    StorageInUse,
    StreamactorsError,
    TransactionAlreadyCommitted,
    TransactionLost,
    UnserialisableKey,
    UnserialisableValue,
)
from streamactors.formats import Decoder, Encoder, Json, MsgPack, Raw, Text
from streamactors.launch import JobHandle, collect, main, run, start
from streamactors.metrics import Counter, Histogram, MetricGroup
from streamactors.operators.base import Context, KeyedOperator, Operator, OperatorContext
from streamactors.runtime.info import CheckpointInfo
from streamactors.sinks import Sink
from streamactors.sources import Source
from streamactors.state.descriptors import ListState, MapState, OperatorListState, Ttl, UnionListState, ValueState
from streamactors.state.serializers import Pickle
from streamactors.time.watermarks import WatermarkGenerator, Watermarks

__all__ = [
    "CheckpointFailed",
    "CheckpointInfo",
    "Checkpoints",
    "Config",
    "Context",
    "CorruptCheckpoint",
    "Counter",
    "Dataflow",
    "DeadLetter",
    "Decoder",
    "Deployment",
    "Encoder",
    "ErrorRoute",
    "FencedOff",
    "Heap",
    "Histogram",
    "IncompatibleState",
    "InvalidConfig",
    "InvalidDataflow",
    "JobFailed",
    "JobHandle",
    "JobNotRunning",
    "Json",
    "KeyedOperator",
    "KeyedStream",
    "ListState",
    "Local",
    "MapState",
    "MetricGroup",
    "MissingExtra",
    "MsgPack",
    "Operator",
    "OperatorContext",
    "OperatorListState",
    "OutputTag",
    "Pickle",
    "Raw",
    "RecordFailed",
    "Restart",
    "RocksDB",
    "Sink",
    "Source",
    "StateAccessError",
    "StateBackend",
    "StorageFailed",
    "StorageInUse",
    "Stream",
    "StreamactorsError",
    "Text",
    "TransactionAlreadyCommitted",
    "TransactionLost",
    "Ttl",
    "UnionListState",
    "UnserialisableKey",
    "UnserialisableValue",
    "ValueState",
    "WatermarkGenerator",
    "Watermarks",
    "collect",
    "main",
    "run",
    "start",
]
