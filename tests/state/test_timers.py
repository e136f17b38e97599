"""Timers as keyed state, in every backend: unique, in order, snapshotted, restored by any of them."""

import gc
import random
from collections.abc import Iterator
from typing import Any

import pytest

from streamactors.errors import InvalidDataflow, StateAccessError, UnserialisableKey
from streamactors.state.backend import KeyedBackend, NativeBackend, StateBlock, native_of
from streamactors.state.blocks import codec_for
from streamactors.state.descriptors import ValueState, stored_as
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.rocksdb.backend import RocksDBBackend
from streamactors.state.timers import TimeIndex, TimerRow, TimerState, TimerStore
from tests.state.timer_stores import BACKENDS, done, fired, timers_of

GROUPS = 4
ALL = KeyGroupRange(0, GROUPS)
KEYS: list[Any] = ["a", "b", 1, True, ("t", 2), 0.5, None, b"\0\xff", "é\0x"]
each_backend = pytest.mark.parametrize("name", BACKENDS)


@pytest.fixture
def opened() -> Iterator[list[KeyedBackend]]:
    """Closed at the end."""
    backends: list[KeyedBackend] = []
    yield backends
    for backend in backends:
        backend.close()


def make(name: str, opened: list[KeyedBackend], groups: KeyGroupRange = ALL) -> tuple[KeyedBackend, TimerStore]:
    backend = BACKENDS[name](groups, GROUPS)
    opened.append(backend)
    return backend, timers_of(backend)


def put(store: TimerStore, key: Any, time: int, name: str = "") -> TimerRow:
    return store.set(key, key_group(key, GROUPS), time, name)


def blocks_of(backend: KeyedBackend, **options: Any) -> list[StateBlock]:
    snapshot = backend.begin_snapshot(1)
    blocks = []
    while (block := snapshot.next_block(**options)) is not None:
        blocks.append(block)
    return blocks


def many(seed: int, count: int = 300) -> set[tuple[int, Any, str]]:
    draw = random.Random(seed)
    wide = (0, 5, -1000, 10**6, 2**63 - 1, -(2**63))
    times = [draw.choice(wide) if draw.random() < 0.3 else draw.randrange(100_000) for _ in range(count)]
    return {(time, draw.choice(KEYS), draw.choice(["", "x", "ü\0"])) for time in times}


def plain(rows: list[TimerRow]) -> list[tuple[int, Any, str]]:
    assert all(group == key_group(key, GROUPS) for _, group, key, _ in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    return [(time, key, name) for time, _, key, name in rows]


@each_backend
def test_each_is_there_once_and_they_come_in_the_order_of_their_times(name: str, opened: list[KeyedBackend]) -> None:
    backend, store = make(name, opened)
    wanted = many(1)
    for _ in range(2):
        for time, key, called in wanted:
            put(store, key, time, called)
    early = plain(fired(store, 50_000))
    assert len(early) == len(set(early)) and set(early) == {each for each in wanted if each[0] <= 50_000}
    late = plain(fired(store, 2**63 - 1))
    assert len(late) == len(set(late)) and set(late) == wanted - set(early)
    assert backend.entries() == {"@timers.event": 0} and store.earliest() is None


@each_backend
def test_what_is_deleted_does_not_fire(name: str, opened: list[KeyedBackend]) -> None:
    backend, store = make(name, opened)
    wanted = many(2)
    for time, key, called in wanted:
        put(store, key, time, called)
    gone = set(sorted(wanted, key=repr)[::2])
    for time, key, called in [*gone, (77, "nobody", "")]:
        store.delete(key, key_group(key, GROUPS), time, called)
    assert set(plain(fired(store, 2**63 - 1))) == wanted - gone
    assert backend.entries() == {"@timers.event": 0}


@each_backend
def test_one_that_was_drawn_is_pending_until_it_is_taken(name: str, opened: list[KeyedBackend]) -> None:
    _, store = make(name, opened)
    rows = [put(store, "a", time) for time in range(5)]
    done(store.bring(10))
    drawn = store.draw(10, 5)
    assert drawn == rows
    store.delete("a", drawn[1][1], 1, "")
    store.delete("a", drawn[2][1], 2, "")
    put(store, "a", 2)
    assert [store.take(row) for row in drawn[:3]] == [True, False, True]
    store.put_back(drawn[3:])
    assert not store.take(drawn[0])
    assert fired(store, 10) == rows[3:]


@each_backend
def test_a_timer_set_again_after_it_fired_fires_again(name: str, opened: list[KeyedBackend]) -> None:
    _, store = make(name, opened)
    for _ in range(3):
        row = put(store, "a", 1)
        assert fired(store, 5) == [row]


@each_backend
def test_earliest_is_never_too_late(name: str, opened: list[KeyedBackend]) -> None:
    _, store = make(name, opened)
    times = random.Random(3).sample(range(100_000), 200)
    for time in times:
        put(store, time % 7, time)
    for time in sorted(times):
        earliest = store.earliest()
        assert earliest is not None and earliest <= time
        assert [row[0] for row in fired(store, time)] == [time]


@pytest.mark.parametrize("writer", BACKENDS)
@pytest.mark.parametrize("reader", BACKENDS)
def test_a_snapshot_is_restored_by_any_backend(writer: str, reader: str, opened: list[KeyedBackend]) -> None:
    backend, store = make(writer, opened)
    wanted = many(4)
    for time, key, called in wanted:
        put(store, key, time, called)
    first = sorted(wanted, key=repr)[:20]
    for time, key, called in first:
        store.delete(key, key_group(key, GROUPS), time, called)
    snapshot = backend.begin_snapshot(1)
    late = plain(fired(store, 40_000))
    put(store, "new", 3)
    blocks = []
    while (block := snapshot.next_block(max_entries=7)) is not None:
        blocks.append(block)
    assert late and sum(block.entries for block in blocks) == len(wanted) - 20

    found: list[tuple[int, Any, str]] = []
    for groups in (KeyGroupRange(0, 1), KeyGroupRange(1, GROUPS)):
        other, restored = make(reader, opened, groups)
        other.check_schemas(backend.schemas())
        other.restore(block for block in blocks if block.group in groups)
        found += plain(fired(restored, 2**63 - 1))
    assert len(found) == len(set(found)) and set(found) == wanted - set(first)


def keep_native(backend: NativeBackend, reader: NativeBackend) -> None:
    """What `backend` holds, in `reader`."""
    snapshot = backend.begin_native_snapshot(1)
    snapshot.link()
    snapshot.linked()
    part = reader.new_part(ALL)
    for file in snapshot.files():
        reader.receive(part, file.name, snapshot.read(file, 0, file.size))
    snapshot.abort()
    reader.restore_native([part])
    reader.drop(part)


@pytest.mark.parametrize("groups", [ALL, KeyGroupRange(1, 2), KeyGroupRange(1, 4)])
@pytest.mark.parametrize("name", ["rocksdb", "narrow"])
def test_native_files_hold_them_too(name: str, groups: KeyGroupRange, opened: list[KeyedBackend]) -> None:
    backend, store = make(name, opened)
    wanted = many(5)
    for time, key, called in wanted:
        put(store, key, time, called)
    other, restored = make(name, opened, groups)
    native, reader = native_of(backend), native_of(other)
    assert native is not None and reader is not None
    keep_native(native, reader)
    mine = {each for each in wanted if key_group(each[1], GROUPS) in groups}
    assert other.entries()["@timers.event"] == len(mine)
    assert (restored.earliest() or 0) <= min(time for time, *_ in mine)
    put(restored, *next((key, time, called) for time, key, called in mine))
    found = plain(fired(restored, 2**63 - 1))
    assert len(found) == len(set(found)) and set(found) == mine
    assert other.entries() == {"@timers.event": 0}


def test_deleting_in_vain_makes_no_group_seem_empty(opened: list[KeyedBackend]) -> None:
    """What counts as empty would not be looked for after a restore from native files."""
    backend, store = make("narrow", opened)
    wanted = {(time, "a", "") for time in range(0, 4_000_000, 20_000)}
    for time, key, called in wanted:
        put(store, key, time, called)
    for time in range(1_000_001, 4_000_000, 7_000):
        store.delete("a", key_group("a", GROUPS), time, "")
    assert backend.entries() == {"@timers.event": 1}
    fired_already = set(plain(fired(store, 0)))
    other, restored = make("narrow", opened)
    native, reader = native_of(backend), native_of(other)
    assert native is not None and reader is not None
    keep_native(native, reader)
    assert set(plain(fired(restored, 2**63 - 1))) == wanted - fired_already


@each_backend
def test_those_of_groups_that_are_ahead(name: str, opened: list[KeyedBackend]) -> None:
    _, store = make(name, opened)
    rows = [put(store, key, time) for key in range(40) for time in (5, 50)]
    early = done(store.early(range(1, 3), 10))
    assert sorted(early, key=repr) == sorted((row for row in rows if row[1] in (1, 2) and row[0] == 5), key=repr)
    assert all(store.take(row) for row in early)
    assert sorted(fired(store, 10), key=repr) == sorted(
        (row for row in rows if row[1] not in (1, 2) and row[0] == 5), key=repr
    )


@each_backend
def test_after_close_nothing_is_set(name: str, opened: list[KeyedBackend]) -> None:
    backend, store = make(name, opened)
    backend.close()
    with pytest.raises(StateAccessError, match="stopped"):
        put(store, "a", 1)


@each_backend
def test_a_key_without_a_stable_form_is_refused_at_the_snapshot_at_the_latest(
    name: str, opened: list[KeyedBackend]
) -> None:
    backend, store = make(name, opened)

    def keep() -> None:
        store.set(object(), 0, 1, "")
        blocks_of(backend)

    with pytest.raises(UnserialisableKey, match=r"op.*timers"):
        keep()


@each_backend
def test_they_are_out_of_reach_by_name(name: str, opened: list[KeyedBackend]) -> None:
    backend, _ = make(name, opened)
    with pytest.raises(StateAccessError, match="no state '@timers.event'"):
        backend.query("@timers.event", "a", 0)
    with pytest.raises(InvalidDataflow, match="@timers.event"):
        stored_as("@timers.event", ValueState(int))


def test_memory_and_local_rows_of_rocksdb_are_bounded(opened: list[KeyedBackend]) -> None:
    backend, store = make("narrow", opened)
    assert isinstance(backend, RocksDBBackend)
    timers: Any = store
    for time in range(2000):
        put(store, time % 50, time)
        assert len(timers._near) <= 21 and len(timers.dirty) <= 5
    assert backend.entries() == {"@timers.event": 2000}
    for limit in range(0, 2000, 100):
        fired(store, limit)
        assert len(timers._near) <= 16 + 4 * GROUPS


def test_of_a_short_life_nothing_reaches_the_database(opened: list[KeyedBackend]) -> None:
    _, store = make("rocksdb", opened)
    timers: Any = store
    for time in range(100):
        put(store, "a", time)
        put(store, "b", time)
        store.delete("b", key_group("b", GROUPS), time, "")
        fired(store, time)
    assert timers.dirty == {}


def test_the_codec_of_a_timer_state_is_that_of_timers() -> None:
    schema = codec_for(TimerState("processing")).schema()
    assert schema["kind"] == "timers"
    backend = HeapBackend(ALL, GROUPS)
    timers_of(backend, "processing")
    assert backend.schemas() == {"@timers.processing": schema}
    assert list(backend.declarations) == ["@timers.processing"]


# ---------------------------------------------------------------------------------------------------------- the index
@pytest.mark.parametrize("spread", [1, 20, 10**5, 10**9])
def test_index_against_a_set(spread: int) -> None:
    draw, index, held = random.Random(spread), TimeIndex(), set[TimerRow]()
    for step in range(6000):
        row = (draw.randrange(-spread, spread), 0, draw.randrange(30), "")
        if draw.random() < 0.55:
            index.add(row)
            held.add(row)
        elif draw.random() < 0.6:
            index.remove(row)
            held.discard(row)
        else:
            limit = draw.randrange(-spread, spread)
            found = index.take_first(limit, draw.randint(1, 4))
            due = sorted(each[0] for each in held if each[0] <= limit)
            assert held.issuperset(found) and [each[0] for each in found] == due[: len(found)]
            assert found or not due
            held.difference_update(found)
        if step % 50 == 0:
            assert index.earliest() == min((each[0] for each in held), default=None)


def test_index_lets_go_of_what_comes_and_goes() -> None:
    index: Any = TimeIndex()
    index.add((0, 0, "stays", ""))
    assert index.earliest() == 0
    for number in range(10_000):
        for time in (number % 3, 10**9 + number % 3):
            index.add((time, 0, "k", ""))
            index.remove((time, 0, "k", ""))
    assert len(index._order) < 100 and len(index._times) < 100 and len(index._spans) == 1


def test_index_gives_the_garbage_collector_little_to_walk() -> None:
    """A container for each time or span, of which there are as many as timers, would be walked again and again."""
    index: Any = TimeIndex()
    for number in range(1000):
        for time in (number * 20_000, -number):  # each in a span of its own; all in one
            index.add((time, 0, f"k{number}", ""))
            index.add((time, 0, f"l{number}", ""))
    gc.collect()
    gc.collect()  # it may come to what is around a tuple before it comes to the tuple
    held = [each for span in index._spans.values() for each in (span.values() if type(span) is dict else [span])]
    assert len(held) > 1900 and not any(map(gc.is_tracked, held))


def test_index_cut_takes_off_the_end() -> None:
    index = TimeIndex()
    rows: list[TimerRow] = [(time * 50_000, 0, "k", "") for time in range(100)]
    for row in rows:
        index.add(row)
    start, gone = index.cut(10) or (0, [])
    assert sorted(gone) == rows[90:] and rows[89][0] < start <= rows[90][0]
    assert index.take_first(10**9, 1000) == rows[:90] and index.cut(1) is None


@each_backend
def test_those_put_back_while_others_went_out_of_memory_come_again(name: str, opened: list[KeyedBackend]) -> None:
    _, store = make(name, opened)
    rows = [put(store, "a", time) for time in range(15)]
    drawn = store.draw(100, 15)
    assert drawn == rows and all(map(store.pending, drawn))
    earlier = [put(store, "a", time) for time in range(-10, 0)]  # with those, more than a narrow one keeps
    store.put_back(drawn)
    assert fired(store, 100) == earlier + rows and not any(map(store.pending, rows))
