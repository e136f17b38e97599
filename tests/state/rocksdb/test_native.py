"""Native snapshots: the very moment, only new tables the next time, restored as they are, in part, and put together."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rocksdict import Options, Rdict

from streamactors.errors import (
    CheckpointFailed,
    CorruptCheckpoint,
    IncompatibleState,
    StateAccessError,
    StorageFailed,
    UnserialisableValue,
)
from streamactors.state.backend import NativeBackend, NativeFile, NativePart, NativeSnapshot, PrefetchingBackend
from streamactors.state.descriptors import ListState, MapState, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group, subtask_range
from streamactors.state.rocksdb.backend import RocksDBBackend, RocksDBOptions
from streamactors.state.rocksdb.database import Database
from tests.state.backend_contract import ALL, GROUPS, contents, drained, stand_on

pytestmark = pytest.mark.slow

DECLARED: dict[str, Callable[[], Any]] = {
    "total": lambda: ValueState(int, default=0),
    "events": lambda: ListState(int),
    "seen": lambda: MapState(str, int),
}
KEYS: list[Any] = [f"key-{number}" for number in range(60)] + [True, ("t", 1), 0.5, None]

Make = Callable[..., RocksDBBackend]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[RocksDBBackend] = []

    def open_one(groups: KeyGroupRange = ALL, declared: Any = None, max_parallelism: int = GROUPS) -> RocksDBBackend:
        options = RocksDBOptions(folder=str(tmp_path / "local"), memory=8 << 20)
        backend = RocksDBBackend(groups, max_parallelism, uid="totals", options=options)
        made.append(backend)
        for name, declaration in (declared or DECLARED).items():
            vars(backend)[f"state_{name}"] = backend.bind(name, declaration())
        return backend

    yield open_one
    for backend in made:
        backend.close()
    assert not (tmp_path / "local").exists() or list((tmp_path / "local").iterdir()) == []


def fill(backend: RocksDBBackend, number: int = 1) -> None:
    for key in KEYS:
        group = key_group(key, GROUPS)
        if group in backend.groups:
            stand_on(backend.cursor, key)
            states = vars(backend)
            states["state_total"].set(number)
            states["state_events"].extend(range(100 + number))
            states["state_seen"].update({str(each): number for each in range(number + 70)})


def everything(*backends: RocksDBBackend) -> dict[str, dict[Any, Any]]:
    return {name: {k: v for backend in backends for k, v in contents(backend, name).items()} for name in DECLARED}


def stored(snapshot: NativeSnapshot, folder: Path) -> list[NativeFile]:
    """As a checkpoint store does it: the files go elsewhere, and the snapshot ends."""
    snapshot.link()
    snapshot.linked()
    files = snapshot.files()
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file.path, folder / file.name)
    snapshot.abort()
    return files


def test_it_holds_the_moment_when_it_began(make: Make, tmp_path: Path) -> None:
    backend = make()
    fill(backend)
    before = everything(backend)
    snapshot = backend.begin_native_snapshot(7)
    fill(backend, 2)
    assert (snapshot.checkpoint_id, snapshot.format) == (7, "rocksdb-1")
    after = everything(backend)
    canonical = drained(backend.begin_snapshot(8))
    stored(snapshot, tmp_path / "7")
    restored = make()
    restored.restore_native([NativePart(str(tmp_path / "7"), ALL)])
    assert everything(restored) == before
    assert restored.entries() == dict.fromkeys(DECLARED, len(KEYS))
    assert everything(backend) == after
    from_blocks = make()
    from_blocks.restore(canonical)
    assert everything(from_blocks) == after


def test_what_is_held_back_is_written_afterwards(make: Make, tmp_path: Path) -> None:
    backend = make()
    fill(backend)
    stored(backend.begin_native_snapshot(1), tmp_path / "1")
    snapshot = backend.begin_native_snapshot(2)
    fill(backend, 2)
    backend.begin_snapshot(9).abort()
    assert backend._database.waiting
    expected = everything(backend)
    stored(snapshot, tmp_path / "2")
    stored(backend.begin_native_snapshot(3), tmp_path / "3")
    assert not backend._database.waiting
    restored = make()
    restored.restore_native([NativePart(str(tmp_path / "3"), ALL)])
    assert everything(restored) == everything(backend) == expected


def test_a_restored_backend_goes_on(make: Make, tmp_path: Path) -> None:
    backend = make()
    fill(backend)
    stored(backend.begin_native_snapshot(1), tmp_path / "1")
    second = make()
    second.restore_native([NativePart(str(tmp_path / "1"), ALL)])
    fill(second, 2)
    fill(backend, 2)
    stored(second.begin_native_snapshot(2), tmp_path / "2")
    third = make()
    third.restore_native([NativePart(str(tmp_path / "2"), ALL)])
    assert everything(third) == everything(backend)
    assert third.entries() == backend.entries()


def test_tables_stay_the_same_files(make: Make, tmp_path: Path) -> None:
    backend = make()
    fill(backend)
    first = stored(backend.begin_native_snapshot(1), tmp_path / "1")
    stand_on(backend.cursor, KEYS[0])
    vars(backend)["state_total"].set(99)
    second = stored(backend.begin_native_snapshot(2), tmp_path / "2")
    tables = [{file.digest for file in files if file.shared} for files in (first, second)]
    assert tables[0] < tables[1]
    assert len(tables[1] - tables[0]) == 1
    for file in second:
        content = (tmp_path / "2" / file.name).read_bytes()
        assert file.size == len(content)
        assert file.digest == hashlib.blake2b(content, digest_size=16).digest()
    assert {file.name.rpartition(".")[2] for file in second if file.shared} == {"sst"}
    assert "CURRENT" in {file.name for file in second if not file.shared}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 4), (2, 1), (3, 2), (4, 3), (2, 16)])
def test_rescaled(make: Make, tmp_path: Path, before: int, after: int) -> None:
    parts = []
    old = []
    for index in range(before):
        backend = make(subtask_range(index, before, GROUPS))
        fill(backend)
        stored(backend.begin_native_snapshot(1), tmp_path / f"{index}")
        parts.append(NativePart(str(tmp_path / f"{index}"), backend.groups))
        old.append(backend)
    new = []
    for index in range(after):
        backend = make(subtask_range(index, after, GROUPS))
        backend.restore_native(parts)
        for name in DECLARED:
            assert all(group in backend.groups for group, _, _ in backend.scan(name))
        new.append(backend)
    assert everything(*new) == everything(*old)
    for name in DECLARED:
        assert sum(backend.entries()[name] for backend in new) == len(KEYS)
    again = [stored(backend.begin_native_snapshot(2), tmp_path / f"again-{n}") for n, backend in enumerate(new)]
    assert all(again)


def test_a_native_checkpoint_becomes_canonical_blocks(make: Make, tmp_path: Path) -> None:
    backend = make()
    fill(backend)
    stored(backend.begin_native_snapshot(1), tmp_path / "1")
    restored = make()
    restored.restore_native([NativePart(str(tmp_path / "1"), ALL)])
    again = make()
    again.restore(drained(restored.begin_snapshot(2)))
    assert everything(again) == everything(backend)


def test_state_of_another_schema_is_rewritten(make: Make, tmp_path: Path) -> None:
    """Rows of two schemas in one database could not be told apart later."""
    point = msgspec.defstruct("Point", [("x", int)])
    wider = msgspec.defstruct("Point", [("x", float), ("y", int, 7)])
    backend = make(declared={"point": lambda: ValueState(point), "gone": lambda: ValueState(int)})
    stand_on(backend.cursor, "a")
    vars(backend)["state_point"].set(point(1))
    vars(backend)["state_gone"].set(1)
    stored(backend.begin_native_snapshot(1), tmp_path / "1")
    later = make(declared={"point": lambda: ValueState(wider), "new": lambda: ListState(int)})
    later.check_schemas(backend.schemas(), allow_dropped=True)
    later.restore_native([NativePart(str(tmp_path / "1"), ALL)])
    assert contents(later, "point") == {"a": wider(1.0, 7)}
    assert later.entries() == {"point": 1, "new": 0}
    (block,) = drained(later.begin_snapshot(2))
    assert block.state == "point"


def test_the_backend_says_what_it_can(make: Make) -> None:
    assert isinstance(make(), NativeBackend)
    assert isinstance(make(), PrefetchingBackend)
    assert not isinstance(HeapBackend(ALL, GROUPS), NativeBackend | PrefetchingBackend)


def test_one_at_a_time(make: Make) -> None:
    backend = make()
    fill(backend)
    first = backend.begin_native_snapshot(1)
    with pytest.raises(CheckpointFailed, match="the snapshot before this one has not written its files yet"):
        backend.begin_native_snapshot(2)
    first.abort()
    backend.begin_native_snapshot(3).abort()


def test_a_value_that_cannot_be_stored_fails_the_snapshot(make: Make) -> None:
    backend = make(declared={"tags": lambda: ValueState(list[str])})
    stand_on(backend.cursor, "a")
    vars(backend)["state_tags"].set([3])
    snapshot = backend.begin_native_snapshot(1)
    with pytest.raises(UnserialisableValue, match="'totals', state 'tags', key 'a'"):
        snapshot.link()
    snapshot.abort()


async def no_turn() -> None:
    """Nobody else wants to work."""


async def test_a_later_snapshot_does_not_make_it_forget_its_error(make: Make) -> None:
    """It would be stored without the entry."""
    backend = make(declared={"tags": lambda: ValueState(list[str])})
    stand_on(backend.cursor, "a")
    vars(backend)["state_tags"].set([3])
    first = backend.begin_native_snapshot(1)
    vars(backend)["state_tags"].set(["mended"])
    second = backend.begin_snapshot(2)
    with pytest.raises(UnserialisableValue, match="'totals', state 'tags', key 'a'"):
        await first.settle(no_turn)
    first.abort()
    assert len(drained(second)) == 1


async def test_what_is_given_up_does_not_pass_for_empty(make: Make) -> None:
    backend = make()
    fill(backend)
    snapshot = backend.begin_native_snapshot(1)
    snapshot.abort()
    with pytest.raises(StateAccessError, match="the snapshot 1 has been given up"):
        await snapshot.settle(no_turn)
    with pytest.raises(StateAccessError, match="the snapshot 1 has been given up"):
        snapshot.link()


def test_a_full_disk_leaves_the_database_free(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dirty: all there is to write is the description."""
    backend = make()
    fill(backend)
    drained(backend.begin_snapshot(1))
    assert backend._database.drain()
    with monkeypatch.context() as full:
        full.setattr(Database, "_write", refused)
        with pytest.raises(StorageFailed, match="no room"):
            backend.begin_native_snapshot(2)
    assert not backend._database.held
    backend.begin_native_snapshot(3).abort()


def test_a_view_that_cannot_be_had_leaves_the_database_free(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make()
    with monkeypatch.context() as broken:
        broken.setattr(Database, "rows_before", refused)
        with pytest.raises(StorageFailed, match="no room"):
            backend.begin_snapshot(1)
    assert not backend._database.held


def refused(*_: object) -> Any:
    raise StorageFailed("no room")


# ------------------------------------------------------------------------------------------------------------ bad files
@pytest.fixture
def part(make: Make, tmp_path: Path) -> NativePart:
    backend = make()
    fill(backend)
    stored(backend.begin_native_snapshot(1), tmp_path / "1")
    return NativePart(str(tmp_path / "1"), ALL)


def table_of(part: NativePart) -> Path:
    return next(path for path in Path(part.folder).iterdir() if path.suffix == ".sst")


def test_a_missing_table(make: Make, part: NativePart) -> None:
    table_of(part).unlink()
    with pytest.raises(CorruptCheckpoint, match=r"No such file|missing"):
        make().restore_native([part])


@pytest.mark.parametrize("groups", [ALL, KeyGroupRange(0, 4)])
def test_a_damaged_table(make: Make, part: NativePart, groups: KeyGroupRange) -> None:
    """Found at the latest when what it holds is read: a copy that ends early is none."""
    path = table_of(part)
    data = bytearray(path.read_bytes())
    for at in range(100, len(data) // 2, 50):
        data[at] ^= 255
    path.write_bytes(data)
    backend = make(groups)

    def restore_and_read() -> None:
        backend.restore_native([part])
        everything(backend)

    with pytest.raises(CorruptCheckpoint, match="can't read its files"):
        restore_and_read()


def test_a_foreign_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "letter.txt").write_text("dear diary")
    for folder in (tmp_path / "x", tmp_path / "nowhere"):
        with pytest.raises(CorruptCheckpoint, match="holds no RocksDB snapshot"):
            make().restore_native([NativePart(str(folder), ALL)])


def test_a_database_of_somebody_else(make: Make, tmp_path: Path) -> None:
    database = Rdict(str(tmp_path / "x"), Options(raw_mode=True))
    database.put(b"a", b"b")
    database.close()
    (tmp_path / "x" / "LOCK").unlink()
    with pytest.raises(CorruptCheckpoint, match="it says not whose"):
        make().restore_native([NativePart(str(tmp_path / "x"), ALL)])


def test_another_max_parallelism(make: Make, part: NativePart) -> None:
    with pytest.raises(IncompatibleState, match="stored with the max parallelism 16, and it is 32 now"):
        make(KeyGroupRange(0, 32), max_parallelism=32).restore_native([part])


def test_only_into_empty_state(make: Make, part: NativePart) -> None:
    backend = make()
    fill(backend)
    with pytest.raises(IncompatibleState, match="only be restored into empty state"):
        backend.restore_native([part])
