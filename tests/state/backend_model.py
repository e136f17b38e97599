"""A backend against plain dicts: operations in any order, with snapshots in progress, restores and rescales, while time
passes and what has expired is swept.

A test module derives a class from `BackendModel` for its backend and takes its `TestCase`.
"""

import asyncio
import copy
import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from streamactors.state.aggregates import Aggregates, Collect, Count, Max
from streamactors.state.backend import KeyedBackend, KeyedSnapshot, StateBlock
from streamactors.state.descriptors import AggregatingState, ListState, MapState, ReducingState, Ttl, ValueState
from streamactors.state.key_groups import KeyGroupRange, key_group, subtask_of, subtask_range
from tests.state.kinds_contract import sweep
from tests.state.manual_clock import ManualClock

GROUPS = 3
KEYS: list[Any] = ["a", "b", "c", "d", 1, 2, 3, ("t", 1), None, 0.5]


class Account(msgspec.Struct):
    balance: int
    notes: list[str]


SECONDS = 10
"""That what has a ttl lives."""
TTL = Ttl(dt.timedelta(seconds=SECONDS))
TOUCHED = Ttl(dt.timedelta(seconds=SECONDS), refresh_on="read-write")


def plus(a: int, b: int) -> int:
    return a + b


DECLARED: dict[str, Callable[[], Any]] = {
    "total": lambda: ValueState(int, default=0),
    "account": lambda: ValueState(Account),
    "tags": lambda: ValueState(list[str], default_factory=list),
    "numbers": lambda: ListState(int),
    "accounts": lambda: ListState(Account),
    "counts": lambda: MapState(str, int),
    "books": lambda: MapState(str, Account),
    "reduced": lambda: ReducingState(int, plus),
    "folded": lambda: AggregatingState(Aggregates(n=Count(), most=Max[Any, Any](_itself), all=Collect[Any]())),
    "fleeting": lambda: ValueState(int, ttl=TTL),
    "touched": lambda: ValueState(int, ttl=TOUCHED),
    "visits": lambda: ListState(int, ttl=TTL),
    "visitors": lambda: MapState(str, int, ttl=TTL),
    "recent": lambda: ReducingState(int, plus, ttl=TTL),
}
MORTAL = ("fleeting", "touched", "visits", "visitors", "recent")


def _itself(value: Any) -> Any:
    return value


Model = dict[str, dict[Any, Any]]


@dataclass
class Snapshot:
    """One consistent snapshot over all subtasks, and what it must hold."""

    attempt: int
    expected: Model
    running: list[KeyedSnapshot]
    blocks: list[StateBlock] = field(default_factory=list)


@dataclass
class Subtask:
    backend: KeyedBackend
    states: dict[str, Any]


keys = st.sampled_from(KEYS)
numbers = st.integers(-3, 3)
words = st.sampled_from(["x", "y", "z"])
snapshots = Bundle("snapshots")


class BackendModel(RuleBasedStateMachine):
    """In the model, what has a ttl is (value, time), as items of lists and values of maps are."""

    make: Callable[[KeyGroupRange, int, ManualClock], KeyedBackend]
    """Opens an empty backend."""

    def __init__(self) -> None:
        super().__init__()
        self.attempt = 0
        self.model: Model = {name: {} for name in DECLARED}
        self.subtasks: list[Subtask] = []
        self.begun = 0
        self.clock = ManualClock()

    @initialize(parallelism=st.integers(1, 3))
    def start(self, parallelism: int) -> None:
        self.subtasks = self._open(parallelism)

    def _open(self, parallelism: int) -> list[Subtask]:
        opened = []
        for index in range(parallelism):
            backend = self.make(subtask_range(index, parallelism, GROUPS), GROUPS, self.clock)
            opened.append(Subtask(backend, {name: backend.bind(name, made()) for name, made in DECLARED.items()}))
        return opened

    def _at(self, key: Any) -> dict[str, Any]:
        """The states of the subtask that owns a key, standing on it."""
        group = key_group(key, GROUPS)
        subtask = self.subtasks[subtask_of(group, len(self.subtasks), GROUPS)]
        subtask.backend.cursor.key, subtask.backend.cursor.group = key, group
        return subtask.states

    def _update(self, name: str, key: Any, entry: Any) -> None:
        """Empty lists and maps leave nothing behind."""
        if entry or entry == 0:
            self.model[name][key] = entry
        else:
            self.model[name].pop(key, None)

    # ----------------------------------------------------------------------------------------------------- processing
    @rule(key=keys, number=numbers)
    def add(self, key: Any, number: int) -> None:
        total = self._at(key)["total"]
        assert total.get() == self.model["total"].get(key, 0)
        total.set(total.get() + number)
        self.model["total"][key] = self.model["total"].get(key, 0) + number

    @rule(key=keys, number=numbers, note=words)
    def change_account_in_place_and_set(self, key: Any, number: int, note: str) -> None:
        state = self._at(key)["account"]
        account = state.get() or Account(0, [])
        assert account == self.model["account"].get(key, Account(0, []))
        account.balance += number
        account.notes.append(note)
        state.set(account)
        self.model["account"][key] = copy.deepcopy(account)

    @rule(key=keys, word=words)
    def tag(self, key: Any, word: str) -> None:
        tags = self._at(key)["tags"]
        found = tags.get()
        assert found == self.model["tags"].get(key, [])
        found.append(word)
        tags.set(found)
        self.model["tags"][key] = list(found)

    @rule(key=keys, items=st.lists(numbers, max_size=3))
    def extend(self, key: Any, items: list[int]) -> None:
        state = self._at(key)["numbers"]
        state.extend(items)
        for item in items:
            state.append(item)
        self._update("numbers", key, self.model["numbers"].get(key, []) + items + items)
        assert list(state) == self.model["numbers"].get(key, [])

    @rule(key=keys, number=numbers)
    def change_items_while_appending(self, key: Any, number: int) -> None:
        """Changing a stored item in place is a user error, but it must not reach a snapshot from before."""
        state = self._at(key)["accounts"]
        expected = self.model["accounts"].setdefault(key, [])
        for item, twin in zip(state, expected, strict=True):
            assert item == twin
            item.balance += number
            twin.balance += number
        state.append(Account(number, []))
        expected.append(Account(number, []))

    @rule(key=keys, entries=st.dictionaries(words, numbers, max_size=2), gone=words)
    def count(self, key: Any, entries: dict[str, int], gone: str) -> None:
        state = self._at(key)["counts"]
        state.update(entries)
        expected = self.model["counts"].get(key, {}) | entries
        assert state.pop(gone, None) == expected.pop(gone, None)
        assert dict(state) == expected
        self._update("counts", key, expected)

    @rule(key=keys, word=words, number=numbers)
    def change_book_in_place(self, key: Any, word: str, number: int) -> None:
        state = self._at(key)["books"]
        expected = self.model["books"].setdefault(key, {})
        for name, account in state.items():
            account.notes.append(word)
            expected[name].notes.append(word)
        state[word] = Account(number, [])
        expected[word] = Account(number, [])
        assert dict(state) == expected

    # ----------------------------------------------------------------------------------------- folding, time to live
    @rule(key=keys, number=numbers)
    def fold(self, key: Any, number: int) -> None:
        states = self._at(key)
        states["reduced"].add(number)
        states["folded"].add(number)
        self.model["reduced"][key] = expected = self.model["reduced"].get(key, 0) + number
        folded = self.model["folded"].setdefault(key, {"n": 0, "most": number, "all": []})
        folded.update(n=folded["n"] + 1, most=max(folded["most"], number), all=[*folded["all"], number])
        assert states["reduced"].get() == expected
        assert states["folded"].get() == folded

    @rule(key=keys, number=numbers)
    def set_mortal_values(self, key: Any, number: int) -> None:
        states = self._at(key)
        for name in ("fleeting", "touched"):
            states[name].set(number)
            self.model[name][key] = number, self.clock.now_ms

    @rule(key=keys)
    def read_mortal_values(self, key: Any) -> None:
        states = self._at(key)
        for name in ("fleeting", "touched"):
            assert states[name].get() == self._visible(name).get(key)
        if key in self._visible("touched"):
            self.model["touched"][key] = self.model["touched"][key][0], self.clock.now_ms

    @rule(key=keys, number=numbers, word=words, gone=words)
    def visit(self, key: Any, number: int, word: str, gone: str) -> None:
        states, now = self._at(key), self.clock.now_ms
        states["visits"].append(number)
        self.model["visits"].setdefault(key, []).append((number, now))
        assert list(states["visits"]) == self._visible("visits")[key]
        assert len(states["visits"]) == len(self._visible("visits")[key])
        expected = self._visible("visitors").get(key, {})
        assert states["visitors"].pop(gone, None) == expected.get(gone)
        states["visitors"][word] = number
        entries = self.model["visitors"].setdefault(key, {})
        entries.pop(gone, None)
        entries[word] = number, now
        assert dict(states["visitors"]) == self._visible("visitors")[key]
        assert list(states["visitors"].range("y")) == sorted(
            (word, number) for word, number in self._visible("visitors")[key].items() if word >= "y"
        )

    @rule(key=keys, number=numbers)
    def reduce_mortal(self, key: Any, number: int) -> None:
        states = self._at(key)
        states["recent"].add(number)
        expected = self._visible("recent").get(key, 0) + number
        self.model["recent"][key] = expected, self.clock.now_ms
        assert states["recent"].get() == expected

    @rule(seconds=st.sampled_from([1, 4, SECONDS]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        for subtask in self.subtasks:
            subtask.backend.cursor.clear()
            asyncio.run(sweep(subtask.backend))
        for name in MORTAL:
            there = sum(subtask.backend.entries()[name] for subtask in self.subtasks)
            assert there == len(self._visible(name))

    def _visible(self, name: str) -> dict[Any, Any]:
        return visible(self.model[name], self.clock.now_ms) if name in MORTAL else self.model[name]

    @rule(key=keys, name=st.sampled_from(list(DECLARED)))
    def clear(self, key: Any, name: str) -> None:
        self._at(key)[name].clear()
        self.model[name].pop(key, None)

    @rule(key=keys, name=st.sampled_from(list(DECLARED)))
    def query(self, key: Any, name: str) -> None:
        self._at(key)
        group = key_group(key, GROUPS)
        found = self.subtasks[subtask_of(group, len(self.subtasks), GROUPS)].backend.query(name, key, group)
        if key in (held := self._visible(name)):
            assert found == held[key]
        else:
            assert found == EMPTY.get(name)

    # ------------------------------------------------------------------------------------------------------ snapshots
    @rule(target=snapshots)
    def begin(self) -> Snapshot:
        self.begun += 1
        running = [subtask.backend.begin_snapshot(self.begun) for subtask in self.subtasks]
        return Snapshot(self.attempt, copy.deepcopy(self.model), running)

    @rule(snapshot=snapshots, index=st.integers(0, 2), max_entries=st.integers(1, 2))
    def write_a_block(self, snapshot: Snapshot, index: int, max_entries: int) -> None:
        running = snapshot.running[index % len(snapshot.running)]
        if (block := running.next_block(max_entries=max_entries)) is not None:
            snapshot.blocks.append(block)

    @rule(snapshot=consumes(snapshots))
    def abort(self, snapshot: Snapshot) -> None:
        for running in snapshot.running:
            running.abort()

    @rule(snapshot=consumes(snapshots), max_entries=st.integers(1, 4))
    def complete(self, snapshot: Snapshot, max_entries: int) -> None:
        if snapshot.attempt != self.attempt:
            return
        self._write_all(snapshot, max_entries)
        (alone,) = self._open(1)
        alone.backend.restore(snapshot.blocks)
        assert _contents([alone]) == self._all_visible(snapshot.expected)
        alone.backend.close()

    @rule(snapshot=consumes(snapshots), parallelism=st.integers(1, 3))
    def fail_and_restore_at_another_parallelism(self, snapshot: Snapshot, parallelism: int) -> None:
        """The other snapshots die with their attempt."""
        if snapshot.attempt != self.attempt:
            return
        self.attempt += 1
        self._write_all(snapshot, 2)
        for subtask in self.subtasks:
            subtask.backend.close()
        self.subtasks = self._open(parallelism)
        for subtask in self.subtasks:
            for block in snapshot.blocks:
                if block.group in subtask.backend.groups:
                    subtask.backend.restore([block])
        self.model = snapshot.expected

    def _write_all(self, snapshot: Snapshot, max_entries: int) -> None:
        for running in snapshot.running:
            while (block := running.next_block(max_entries=max_entries)) is not None:
                snapshot.blocks.append(block)

    # ----------------------------------------------------------------------------------------------------- invariants
    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if self.subtasks:
            assert _contents(self.subtasks) == self._all_visible(self.model)

    def _all_visible(self, model: Model) -> Model:
        now = self.clock.now_ms
        return {name: visible(held, now) if name in MORTAL else held for name, held in model.items()}

    @invariant()
    def counts_what_the_model_counts(self) -> None:
        for name in self.model if self.subtasks else ():
            there = sum(subtask.backend.entries()[name] for subtask in self.subtasks)
            if name in MORTAL:
                assert there >= len(self._visible(name))
            else:
                assert there == len(self.model[name])

    def teardown(self) -> None:
        for subtask in self.subtasks:
            subtask.backend.close()


def visible(held: dict[Any, Any], now: int) -> dict[Any, Any]:
    """What has not expired, without its times."""
    found = {key: _young(entry, now - SECONDS * 1000) for key, entry in held.items()}
    return {key: entry for key, entry in found.items() if entry is not None}


def _young(entry: Any, limit: int) -> Any:
    match entry:
        case list():
            return [item for item, time in entry if time > limit] or None
        case dict():
            return {inner: value for inner, (value, time) in entry.items() if time > limit} or None
    value, time = entry
    return value if time > limit else None


EMPTY: dict[str, Any] = {
    "total": 0, "tags": [], "numbers": [], "accounts": [], "visits": [],
    "counts": {}, "books": {}, "visitors": {}, "folded": {"n": 0, "most": None, "all": []},
}  # fmt: skip


def _contents(subtasks: list[Subtask]) -> Model:
    return {name: dict(_scan(subtasks, name)) for name in DECLARED}


def _scan(subtasks: list[Subtask], name: str) -> Iterator[tuple[Any, Any]]:
    for subtask in subtasks:
        for group, key, held in subtask.backend.scan(name):
            assert group == key_group(key, GROUPS)
            yield key, held
