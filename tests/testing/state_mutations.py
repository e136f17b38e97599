"""Mutants of state: native snapshots and the files that checkpoints share, savepoints, what is restored from, state
without a key."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from streamactors.checkpoint import deletion, store
from streamactors.checkpoint.coordinator import CheckpointCoordinator
from streamactors.checkpoint.manifest import EdgeKey, FileHandle
from streamactors.checkpoint.registry import FileRegistry
from streamactors.checkpoint.store import CheckpointStore
from streamactors.graph import edges
from streamactors.operators.two_inputs import TwoInputLink
from streamactors.runtime import restore_lists
from streamactors.runtime.native import NativeStoring
from streamactors.state.backend import NativePart
from streamactors.state.broadcast import BroadcastStore
from streamactors.state.rocksdb import RocksDBBackend
from streamactors.state.rocksdb_database import Database
from streamactors.testing.simulation import Faults, Scenario, scenario
from tests.testing.mutants import COUNTS, DISORDER, LOST, TWICE, mutant

ROCKSDB: Final = "backends=rocksdb,savepoints=0,rewinds=0"
MISSING: Final = "which is not there|is missing"
"""A file of a checkpoint."""
NATIVE: Final[dict[str, Scenario]] = {}
