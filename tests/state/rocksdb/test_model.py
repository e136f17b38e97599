"""The RocksDB backend against plain dicts, alone and in turn with the heap: what one has written the other restores."""

import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from streamactors.state.backend import KeyedBackend, NativePart
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from tests.state.backend_model import Account, BackendModel, keys, numbers, words
from tests.state.manual_clock import ManualClock

pytestmark = pytest.mark.slow

WIDE = RocksDBOptions(memory=8 << 20)
NARROW = RocksDBOptions(memory=8 << 20, cache=16, dirty=4)
SETTINGS = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
turns = count()


def wide(groups: KeyGroupRange, max_parallelism: int, clock: ManualClock) -> KeyedBackend:
    return RocksDBBackend(groups, max_parallelism, options=WIDE, clock=clock)


def narrow(groups: KeyGroupRange, max_parallelism: int, clock: ManualClock) -> KeyedBackend:
    return RocksDBBackend(groups, max_parallelism, options=NARROW, clock=clock)


def in_turn(groups: KeyGroupRange, max_parallelism: int, clock: ManualClock) -> KeyedBackend:
    if next(turns) % 2:
        return narrow(groups, max_parallelism, clock)
    return HeapBackend(groups, max_parallelism, clock=clock)


class SetOnlyModel(BackendModel):
    """A value stays changed only by being stored: what is changed in place may be forgotten."""

    @rule(key=keys, number=numbers)
    def change_items_while_appending(self, key: Any, number: int) -> None:
        state = self._at(key)["accounts"]
        expected = self.model["accounts"].setdefault(key, [])
        assert list(state) == expected
        state.append(Account(number, []))
        expected.append(Account(number, []))

    @rule(key=keys, word=words, number=numbers)
    def change_book_in_place(self, key: Any, word: str, number: int) -> None:
        state = self._at(key)["books"]
        expected = self.model["books"].setdefault(key, {})
        for name, account in list(state.items()):
            account.notes.append(word)
            state[name] = account
            expected[name].notes.append(word)
        state[word] = Account(number, [])
        expected[word] = Account(number, [])
        assert dict(state) == expected

    @rule(key=keys, many=st.integers(60, 140), gone=st.integers(0, 150))
    def grow(self, key: Any, many: int, gone: int) -> None:
        """Beyond what is kept as a whole."""
        states = self._at(key)
        states["numbers"].extend(range(many))
        self.model["numbers"].setdefault(key, []).extend(range(many))
        expected = self.model["counts"].setdefault(key, {})
        for number in range(many):
            states["counts"][f"{number:03}"] = number
            expected[f"{number:03}"] = number
        assert states["counts"].pop(f"{gone:03}", None) == expected.pop(f"{gone:03}", None)
        assert states["counts"].get("070") == expected.get("070")
        assert sorted(states["counts"].items()) == sorted(expected.items())
        assert len(states["counts"]) == len(expected)

    @rule(key=keys, many=st.integers(60, 140))
    def grow_mortal(self, key: Any, many: int) -> None:
        states, now = self._at(key), self.clock.now_ms
        states["visits"].extend(range(many))
        self.model["visits"].setdefault(key, []).extend((number, now) for number in range(many))
        states["visitors"].update({f"{number:03}": number for number in range(many)})
        self.model["visitors"].setdefault(key, {}).update({f"{number:03}": (number, now) for number in range(many)})
        assert list(states["visits"]) == self._visible("visits")[key]
        assert len(states["visitors"]) == len(self._visible("visitors")[key])

    def teardown(self) -> None:
        super().teardown()
        self.subtasks = []


class NativeModel(SetOnlyModel):
    """Besides, a native snapshot of all subtasks, from which all start again at another parallelism."""

    @rule(parallelism=st.integers(1, 3), key=keys, items=st.lists(numbers, min_size=1, max_size=9))
    def restart_from_native_files(self, parallelism: int, key: Any, items: list[int]) -> None:
        self.attempt += 1
        old: list[RocksDBBackend] = [cast(RocksDBBackend, subtask.backend) for subtask in self.subtasks]
        native = [backend.begin_native_snapshot(1) for backend in old]
        self._at(key)["numbers"].extend(items)  # too late: lost with the attempt
        self._at(key)["total"].set(99)
        with tempfile.TemporaryDirectory() as folder:
            parts = []
            for index, (backend, snapshot) in enumerate(zip(old, native, strict=True)):
                snapshot.link()
                snapshot.linked()
                part = NativePart(f"{folder}/{index}", backend.groups)
                Path(part.folder).mkdir()
                for file in snapshot.files():
                    shutil.copyfile(file.path, Path(part.folder, file.name))
                if snapshot.entries:
                    parts.append(part)
                backend.close()
            self.subtasks = self._open(parallelism)
            for subtask in self.subtasks:
                cast(RocksDBBackend, subtask.backend).restore_native(parts)


class WideModel(NativeModel):
    make = staticmethod(wide)


class NarrowModel(NativeModel):
    make = staticmethod(narrow)


class CrossModel(SetOnlyModel):
    make = staticmethod(in_turn)


TestWideModel = WideModel.TestCase
TestNarrowModel = NarrowModel.TestCase
TestCrossModel = CrossModel.TestCase
for _case in (TestWideModel, TestNarrowModel, TestCrossModel):
    _case.settings = SETTINGS
del _case
