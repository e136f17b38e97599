"""Timers against a plain set: set, deleted, fired by watermarks, snapshotted, restored by another backend at another
parallelism, in any order."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from streamactors.state.backend import KeyedBackend, KeyedSnapshot, NativePart, StateBlock, native_of
from streamactors.state.key_groups import KeyGroupRange, key_group, subtask_of, subtask_range
from streamactors.state.timers import TimerRow, TimerStore
from tests.state.timer_stores import BACKENDS, done, timers_of

pytestmark = pytest.mark.slow

GROUPS = 3
KEYS: list[Any] = ["a", "b", "c", "d", 1, 2, ("t", 1), None, 0.5]
FAR = 2**63 - 1

keys = st.sampled_from(KEYS)
times = st.one_of(st.integers(0, 40), st.integers(0, 40).map(lambda each: each * 20_000), st.just(FAR))
names = st.sampled_from(["", "x"])
backends = st.sampled_from(sorted(BACKENDS))
snapshots = Bundle("snapshots")

Pending = set[TimerRow]


@dataclass
class Subtask:
    backend: KeyedBackend
    store: TimerStore
    kind: str
    drawn: list[TimerRow] = field(default_factory=list)


@dataclass
class Snapshot:
    attempt: int
    expected: Pending
    running: list[KeyedSnapshot]
    blocks: list[StateBlock] = field(default_factory=list)


class TimersModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pending: Pending = set()
        self.subtasks: list[Subtask] = []
        self.attempt = 0
        self.begun = 0

    @initialize(parallelism=st.integers(1, 3), kind=backends)
    def start(self, parallelism: int, kind: str) -> None:
        self._open(parallelism, kind)

    def _open(self, parallelism: int, kind: str) -> None:
        for index in range(parallelism):
            backend = BACKENDS[kind](subtask_range(index, parallelism, GROUPS), GROUPS)
            self.subtasks.append(Subtask(backend, timers_of(backend), kind))

    def _of(self, key: Any) -> tuple[Subtask, int]:
        group = key_group(key, GROUPS)
        return self.subtasks[subtask_of(group, len(self.subtasks), GROUPS)], group

    def _mine(self, subtask: Subtask) -> Pending:
        return {row for row in self.pending if row[1] in subtask.backend.groups}

    # ------------------------------------------------------------------------------------------------------- changing
    @rule(each=st.lists(st.tuples(keys, times, names), min_size=1, max_size=25))
    def set(self, each: list[tuple[Any, int, str]]) -> None:
        for key, time, name in each:
            subtask, group = self._of(key)
            row = subtask.store.set(key, group, time, name)
            assert row == (time, group, key, name)
            self.pending.add(row)

    @rule(key=keys, time=times, name=names)
    def delete_any(self, key: Any, time: int, name: str) -> None:
        subtask, group = self._of(key)
        subtask.store.delete(key, group, time, name)
        self.pending.discard((time, group, key, name))

    @rule(data=st.data())
    def delete_pending(self, data: st.DataObject) -> None:
        if self.pending:
            row = data.draw(st.sampled_from(sorted(self.pending, key=repr)))
            self.delete_any(row[2], row[0], row[3])

    # --------------------------------------------------------------------------------------------------------- firing
    @rule(limit=times, count=st.integers(1, 5), slices=st.integers(1, 40), place=st.integers(0, 2))
    def fire(self, limit: int, count: int, slices: int, place: int) -> None:
        subtask = self.subtasks[place % len(self.subtasks)]
        last = -1
        for _ in range(slices):
            done(subtask.store.bring(limit))
            rows = subtask.store.draw(limit, count)
            due = [row for row in self._mine(subtask) if row[0] <= limit]
            assert bool(rows) or not due, f"{due} do not come"
            for row in rows:
                taken = subtask.store.take(row)
                assert taken == (row in self.pending)
                if taken:
                    assert last <= row[0] == min(each[0] for each in self._mine(subtask))
                    last = row[0]
                    self.pending.discard(row)

    @rule(limit=times, key=keys, time=times)
    def interrupted_in_the_middle(self, limit: int, key: Any, time: int) -> None:
        """The first sets and deletes others; the rest of the slice is put back."""
        subtask, group = self._of(key)
        done(subtask.store.bring(limit))
        rows = subtask.store.draw(limit, 6)
        if not rows:
            return
        if subtask.store.take(rows[0]):
            self.pending.discard(rows[0])
        self.pending.add(subtask.store.set(key, group, time, "y"))
        for row in rows[2:3]:
            subtask.store.delete(row[2], row[1], row[0], row[3])
            self.pending.discard(row)
        subtask.store.put_back(rows[1:])

    @rule(limit=times, key=keys)
    def fire_those_of_a_group(self, limit: int, key: Any) -> None:
        subtask, group = self._of(key)
        rows = done(subtask.store.early(range(group, group + 1), limit))
        assert set(rows) == {row for row in self.pending if row[1] == group and row[0] <= limit}
        for row in rows:
            assert subtask.store.take(row)
        self.pending.difference_update(rows)

    # ------------------------------------------------------------------------------------------------------ snapshots
    @rule(target=snapshots)
    def begin_snapshot(self) -> Snapshot:
        self.begun += 1
        running = [subtask.backend.begin_snapshot(self.begun) for subtask in self.subtasks]
        return Snapshot(self.attempt, set(self.pending), running)

    @rule(snapshot=snapshots)
    def write_a_block(self, snapshot: Snapshot) -> None:
        if snapshot.attempt == self.attempt:
            self._write(snapshot, 1)

    def _write(self, snapshot: Snapshot, blocks: int) -> None:
        while blocks and snapshot.running:
            blocks -= 1
            block = snapshot.running[0].next_block(max_entries=3)
            if block is None:
                snapshot.running.pop(0)
            else:
                snapshot.blocks.append(block)

    @rule(snapshot=consumes(snapshots), parallelism=st.integers(1, 3), kind=backends)
    def restore(self, snapshot: Snapshot, parallelism: int, kind: str) -> None:
        if snapshot.attempt == self.attempt:
            self._write(snapshot, 10_000)
        if snapshot.running:
            return  # it died with its attempt
        self.teardown()
        self._open(parallelism, kind)
        self.pending = set(snapshot.expected)
        for subtask in self.subtasks:
            subtask.backend.restore(block for block in snapshot.blocks if block.group in subtask.backend.groups)

    @rule(parallelism=st.integers(1, 3), narrow=st.booleans())
    def restore_native(self, parallelism: int, narrow: bool) -> None:
        if any(native_of(subtask.backend) is None for subtask in self.subtasks):
            return
        old, self.subtasks = self.subtasks, []
        self._open(parallelism, "narrow" if narrow else "rocksdb")
        for subtask in self.subtasks:
            _restore_native(subtask.backend, [each.backend for each in old])
        for each in old:
            each.backend.close()
        self.attempt += 1

    @invariant()
    def earliest_is_not_too_late(self) -> None:
        for subtask in self.subtasks:
            first = min((row[0] for row in self._mine(subtask)), default=None)
            known = subtask.store.earliest()
            assert first is None or (known is not None and known <= first)

    @invariant()
    def counted(self) -> None:
        """Exactly on the heap; elsewhere nothing that is there counts as nothing."""
        for subtask in self.subtasks:
            count = subtask.backend.entries()["@timers.event"]
            if subtask.kind == "heap":
                assert count == len(self._mine(subtask))
            assert count > 0 or not self._mine(subtask)

    def teardown(self) -> None:
        for subtask in self.subtasks:
            subtask.backend.close()
        self.subtasks = []
        self.attempt += 1


def _restore_native(backend: KeyedBackend, olds: list[KeyedBackend]) -> None:
    reader = native_of(backend)
    assert reader is not None
    parts: list[NativePart] = []
    for old in olds:
        native = native_of(old)
        assert native is not None
        groups: KeyGroupRange = old.groups
        snapshot = native.begin_native_snapshot(1)
        snapshot.link()
        snapshot.linked()
        if snapshot.entries:
            parts.append(reader.new_part(groups))
            for file in snapshot.files():
                reader.receive(parts[-1], file.name, snapshot.read(file, 0, file.size))
        snapshot.abort()
    reader.restore_native(parts)


TestTimersModel = TimersModel.TestCase
TestTimersModel.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
