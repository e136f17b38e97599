"""What is frozen for a snapshot, against plain dicts: slices of writing it, in turn with touches, changes, sweeps,
reads in flight, aborts and other snapshots, canonical and native."""

import copy
import shutil
import tempfile
from collections.abc import Coroutine, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, consumes, multiple, rule

from streamactors.errors import CheckpointFailed
from streamactors.state.backend import KeyedBackend, NativePart
from streamactors.state.key_groups import KeyGroupRange, key_group, subtask_of
from streamactors.state.pace import Pace
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.rocksdb.fetch import Fetch
from streamactors.state.rocksdb.native import RocksNativeSnapshot
from streamactors.state.rocksdb.snapshot import RocksSnapshot
from tests.state.backend_model import GROUPS, KEYS, MORTAL, Model, Snapshot, _contents, keys, numbers, snapshots, words
from tests.state.manual_clock import ManualClock
from tests.state.rocksdb.test_model import NARROW, WIDE, SetOnlyModel

pytestmark = pytest.mark.slow

SETTINGS = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class OneByOne(Pace):
    """The smallest slices."""

    def items(self, seconds: float) -> int:
        return 1


class Turn:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def turn() -> None:
    await Turn()


def through(settling: Coroutine[Any, Any, None], steps: int) -> bool:
    """Take so many steps at most, and give it up then: whether it has come to its end."""
    try:
        for _ in range(steps):
            settling.send(None)
    except StopIteration:
        return True
    settling.close()
    return False


@dataclass
class Native:
    attempt: int
    expected: Model
    running: list[RocksNativeSnapshot]
    settled: set[int] = field(default_factory=set)
    linked: set[int] = field(default_factory=set)

    def settle(self, index: int, steps: int) -> None:
        if index not in self.settled and through(self.running[index].settle(turn), steps):
            self.settled.add(index)

    def link(self, index: int) -> None:
        while index not in self.settled:
            self.settle(index, 3)
        if index not in self.linked:
            self.linked.add(index)
            self.running[index].link()

    def abort(self) -> None:
        for running in self.running:
            running.linked()
            running.abort()


@dataclass
class Reading:
    attempt: int
    fetch: Fetch | None


class FreezeModel(SetOnlyModel):
    options: RocksDBOptions
    natives: Bundle[Native] = Bundle("natives")
    readings: Bundle[Reading] = Bundle("readings")

    def make(self, groups: KeyGroupRange, max_parallelism: int, clock: ManualClock) -> KeyedBackend:
        backend = RocksDBBackend(groups, max_parallelism, options=self.options, clock=clock)
        backend._writing = OneByOne()
        return backend

    @property
    def backends(self) -> list[RocksDBBackend]:
        return [cast(RocksDBBackend, subtask.backend) for subtask in self.subtasks]

    # ------------------------------------------------------------------------------------------------------- canonical
    @rule(snapshot=snapshots, index=st.integers(0, 2), steps=st.integers(1, 8))
    def settle_some(self, snapshot: Snapshot, index: int, steps: int) -> None:
        running = cast(RocksSnapshot, snapshot.running[index % len(snapshot.running)])
        through(running.settle(turn), steps)

    # ---------------------------------------------------------------------------------------------------------- native
    @rule(target=natives)
    def begin_native(self) -> Native | MultipleResults[Native]:
        begun = []
        try:
            for backend in self.backends:
                begun += [backend.begin_native_snapshot(1)]
        except CheckpointFailed:
            assert any(backend._database.held for backend in self.backends)
            for snapshot in begun:
                snapshot.abort()
            return multiple()
        return Native(self.attempt, copy.deepcopy(self.model), begun)

    @rule(native=natives, index=st.integers(0, 2), steps=st.integers(1, 8))
    def settle_native(self, native: Native, index: int, steps: int) -> None:
        if native.attempt == self.attempt:
            native.settle(index % len(native.running), steps)

    @rule(native=natives, index=st.integers(0, 2))
    def link_native(self, native: Native, index: int) -> None:
        if native.attempt == self.attempt:
            native.link(index % len(native.running))

    @rule(
        touched=st.lists(st.tuples(keys, words, numbers), min_size=1, max_size=8),
        steps=st.integers(0, 9),
        forgetting=st.booleans(),
        given_up=st.booleans(),
    )
    def all_changes_while_snapshots_settle(
        self, touched: list[tuple[Any, str, int]], steps: int, forgetting: bool, given_up: bool
    ) -> None:
        """What takes the rules apart many draws to come upon."""
        for key in KEYS:
            self.change_all(key, "x", 1)
        native = self.begin_native()
        canonical = None if isinstance(native, Native) else self.begin()
        for key, word, number in touched:
            for index in range(len(self.subtasks)):
                if isinstance(native, Native):
                    native.settle(index, steps)
                elif canonical is not None:
                    self.settle_some(canonical, index, steps)
            self.change_all(key, word, number)
            if forgetting:
                self.forget()  # so that later changes are written, too
            self.holds_what_the_model_holds()
        if isinstance(native, Native):
            self.abort_native(native) if given_up else self.complete_native(native)
        elif canonical is not None:
            self.abort(canonical) if given_up else self.complete(canonical, 2)
        self.forget()

    def change_all(self, key: Any, word: str, number: int) -> None:
        self.add(key, number)
        self.change_account_in_place_and_set(key, number, word)
        self.tag(key, word)
        self.extend(key, [number])
        self.change_items_while_appending(key, number)
        self.count(key, {word: number}, "y")
        self.change_book_in_place(key, word, number)
        self.fold(key, number)
        self.clear(key, ("tags", "numbers", "books")[number % 3])

    @rule(native=consumes(natives))
    def abort_native(self, native: Native) -> None:
        native.abort()

    @rule(native=consumes(natives))
    def complete_native(self, native: Native) -> None:
        if native.attempt != self.attempt:
            native.abort()
            return
        with tempfile.TemporaryDirectory() as folder:
            parts = []
            for index, snapshot in enumerate(native.running):
                native.link(index)
                snapshot.linked()
                part = NativePart(f"{folder}/{index}", self.backends[index].groups)
                Path(part.folder).mkdir()
                for file in snapshot.files():
                    shutil.copyfile(file.path, Path(part.folder, file.name))
                if snapshot.entries:
                    parts.append(part)
            native.abort()
            (alone,) = self._open(1)
            cast(RocksDBBackend, alone.backend).restore_native(parts)
        assert _contents([alone]) == self._all_visible(native.expected)
        for name, count in alone.backend.entries().items():
            assert count == len(native.expected[name]) or name in MORTAL
        alone.backend.close()

    # ----------------------------------------------------------------------------------------------------------- reads
    @rule(target=readings, chosen=st.lists(keys, min_size=1, max_size=6))
    def read_ahead(self, chosen: list[Any]) -> Reading:
        key = chosen[0]
        backend = self.backends[subtask_of(key_group(key, GROUPS), len(self.subtasks), GROUPS)]
        own = [key for key in chosen if key_group(key, GROUPS) in backend.groups]
        fetch = backend.fetch(own, [key_group(key, GROUPS) for key in own])
        if fetch is not None:
            fetch.read()
        return Reading(self.attempt, fetch)

    @rule(reading=consumes(readings))
    def keep_what_was_read(self, reading: Reading) -> None:
        if reading.fetch is not None and reading.attempt == self.attempt:
            reading.fetch.keep()

    @rule()
    def forget(self) -> None:
        """All that is not needed leaves the cache, and is written."""
        for backend in self.backends:
            for store in backend._stores.values():
                while store.old or store.young:
                    store._dismiss(list(store.old))
                    store._age()


class WideFreezeModel(FreezeModel):
    options = WIDE


class NarrowFreezeModel(FreezeModel):
    options = NARROW


def test_there_are_keys_in_every_group() -> None:
    assert {key_group(key, GROUPS) for key in KEYS} == set(range(GROUPS))


TestWideFreezeModel = WideFreezeModel.TestCase
TestNarrowFreezeModel = NarrowFreezeModel.TestCase
for _case in (TestWideFreezeModel, TestNarrowFreezeModel):
    _case.settings = SETTINGS
del _case
