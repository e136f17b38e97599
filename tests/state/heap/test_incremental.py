"""Incremental checkpoints of the heap against a model: whatever is changed, completed, given up, restored and rescaled
in whatever order, every complete checkpoint that is kept restores to exactly what it should hold, from the files that
are left. And when a version ends, which is what they rest on."""

import copy
import datetime as dt
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import coroutine
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, initialize, rule

from streamactors.checkpoint.layout import Place, place_of
from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    KeyedHandle,
    Manifest,
    NativeHandle,
    NodeState,
    SubtaskState,
)
from streamactors.checkpoint.registry import FileRegistry
from streamactors.checkpoint.storage.contract import DIGEST_SIZE, Written
from streamactors.elements import Barrier
from streamactors.errors import StateAccessError
from streamactors.runtime.incremental import COPIES, Increments
from streamactors.runtime.messages import NodeRestore
from streamactors.state.backend import KeyedSnapshot, StateBlock
from streamactors.state.descriptors import ListState, MapState, ReducingState, Ttl, ValueState
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.heap.timers import HeapTimers
from streamactors.state.key_groups import KeyGroupRange, key_group
from streamactors.state.timers import TimerState
from tests.state.backend_model import DECLARED, GROUPS, KEYS, BackendModel, Model, Subtask, _contents
from tests.state.kinds_contract import no_turn, sweep
from tests.state.manual_clock import ManualClock

pytestmark = pytest.mark.slow

FULL_EVERY = 4
KEPT = 2
"""Complete checkpoints."""


# ------------------------------------------------------------------------------------------------------------ the model
class Folder:
    """What is stored, and the target of the checkpoints in flight. Only what the registry has in use is left."""

    def __init__(self) -> None:
        self.registry = FileRegistry()
        self.files: dict[str, bytes] = {}
        self.flying: dict[Place, None] = {}
        self.complete: dict[Place, tuple[Manifest, Model]] = {}
        self._written = 0

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        return [self.registry.take(barrier.checkpoint, content.size, content.digest) for content in contents]

    def write(self, place: Place, data: bytes, padding: int) -> FileHandle:
        """`padding`: what else was packed with it."""
        self._written += 1
        path, whole = f"{place.folder}/{self._written:04}-state", b"-" * padding + data
        self.files[path] = whole
        return FileHandle(path, len(whole), blake2b(whole, digest_size=DIGEST_SIZE).digest(), padding)

    def read(self, handle: KeyedHandle, ref: BlockRef) -> StateBlock:
        start = handle.file.start + ref.offset
        return StateBlock(ref.state, ref.group, ref.entries, self.files[handle.file.path][start : start + ref.length])

    def aborted(self, place: Place) -> None:
        self.flying.pop(place, None)
        self.registry.aborted(place.checkpoint)
        self._clean()

    def completed(self, place: Place, manifest: Manifest, expected: Model) -> None:
        del self.flying[place]
        self.registry.completed(place, manifest)
        self.complete[place] = manifest, expected
        for old in list(self.complete)[:-KEPT]:
            del self.complete[old]
            self.registry.forget([old])
        self._clean()

    def _clean(self) -> None:
        used = self.registry.in_use()
        for path in list(self.files):
            place = place_of(path)
            assert place is not None
            if path not in used and place not in self.flying:
                del self.files[path]


def at_once(work: Coroutine[Any, Any, None]) -> None:
    """What waits for nothing."""
    with pytest.raises(StopIteration):
        work.send(None)


@coroutine
def _pause() -> Generator[None, None, None]:
    yield


class Writing:
    """One subtask's part of a checkpoint, written block by block."""

    def __init__(
        self, folder: Folder, place: Place, backend: HeapBackend, increments: Increments, padding: int
    ) -> None:
        self._folder = folder
        self._place = place
        self._padding = padding
        self._backend = backend
        self._storing = increments.begin(place.checkpoint)
        self._work: Coroutine[None, None, tuple[KeyedHandle, ...]] | None = None
        self.handles: tuple[KeyedHandle, ...] | None = None

    def step(self) -> bool:
        """Whether it has come to its end."""
        if self._work is None:
            at_once(self._storing.refer(self._folder, Barrier(self._place.checkpoint), no_turn))
            self._work = self._storing.store(self._write, no_turn)
        if self.handles is None:
            try:
                self._work.send(None)
            except StopIteration as ended:
                self.handles = ended.value
        return self.handles is not None

    async def _write(self, snapshot: KeyedSnapshot) -> KeyedHandle | None:
        data, refs = b"", list[BlockRef]()
        while (block := snapshot.next_block(max_entries=2)) is not None:
            refs.append(BlockRef(block.state, block.group, block.entries, len(data), len(block.data)))
            data += block.data
            await _pause()
        return KeyedHandle(self._folder.write(self._place, data, self._padding), tuple(refs)) if refs else None

    def abort(self) -> None:
        if self._work is not None:
            self._work.close()
        self._storing.abort()

    def node(self) -> NodeState:
        while not self.step():
            pass
        assert self.handles is not None
        return NodeState("model", keyed=self.handles, schemas=self._backend.schemas())


@dataclass
class Flying:
    place: Place
    expected: Model
    parts: list[Writing] = field(default_factory=list)


flying = Bundle("flying")


class IncrementalModel(BackendModel):
    """As `BackendModel`, but snapshots become checkpoints in a `Folder`."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Folder()
        self.increments: list[Increments] = []

    make = staticmethod(lambda groups, count, clock: HeapBackend(groups, count, clock=clock))
    begin = write_a_block = abort = complete = fail_and_restore_at_another_parallelism = None  # type: ignore[assignment]

    @initialize(parallelism=st.integers(1, 3))
    def start(self, parallelism: int) -> None:
        self.attempt = 1
        self._start(parallelism, None)

    def _start(self, parallelism: int, manifest: Manifest | None) -> None:
        self.subtasks = self._open(parallelism)
        self.increments = [self._restored(subtask, manifest) for subtask in self.subtasks]

    def _restored(self, subtask: Subtask, manifest: Manifest | None) -> Increments:
        backend = subtask.backend
        assert isinstance(backend, HeapBackend)
        increments = Increments(backend, FULL_EVERY)
        start = restore_of(manifest, backend.groups)
        backend.check_schemas(start.schemas)
        backend.restore(self.folder.read(handle, ref) for handle, refs in start.blocks for ref in refs)
        at_once(increments.restored(start, backend.schemas(), no_turn))
        return increments

    # ---------------------------------------------------------------------------------------------------- checkpoints
    @rule(target=flying, padding=st.sampled_from([0, 3]))
    def begin_checkpoint(self, padding: int) -> Flying:
        return self._begin(padding)

    def _begin(self, padding: int) -> Flying:
        self.begun += 1
        begun = Flying(Place(1, self.attempt, self.begun), copy.deepcopy(self.model))
        self.folder.flying[begun.place] = None
        for subtask, increments in zip(self.subtasks, self.increments, strict=True):
            assert isinstance(subtask.backend, HeapBackend)
            begun.parts.append(Writing(self.folder, begun.place, subtask.backend, increments, padding))
        return begun

    @rule(begun=flying, index=st.integers(0, 2))
    def write_some(self, begun: Flying, index: int) -> None:
        if begun.place in self.folder.flying:
            begun.parts[index % len(begun.parts)].step()

    @rule(begun=consumes(flying))
    def abort_checkpoint(self, begun: Flying) -> None:
        if begun.place in self.folder.flying:
            self._abort(begun)

    def _abort(self, begun: Flying) -> None:
        for part in begun.parts:
            part.abort()
        self.folder.aborted(begun.place)

    @rule(begun=consumes(flying))
    def complete_checkpoint(self, begun: Flying) -> None:
        if begun.place in self.folder.flying:
            self._complete(begun)

    @rule(padding=st.sampled_from([0, 3]))
    def take_checkpoint(self, padding: int) -> None:
        self._complete(self._begin(padding))

    @rule(
        changes=st.lists(st.tuples(st.sampled_from(sorted(DECLARED)), st.integers(0, 9)), min_size=3, max_size=3),
        steps=st.integers(0, 6),
        completed=st.lists(st.booleans(), min_size=2, max_size=2),
        latest_first=st.booleans(),
    )
    def two_at_once(
        self, changes: list[tuple[str, int]], steps: int, completed: list[bool], latest_first: bool
    ) -> None:
        """What is to happen in one example often enough: each sees what the other one has left, or has not."""
        begun = [self._begin(0)]
        self._drop_or_add(*changes[0])
        for step in range(steps):
            begun[0].parts[step % len(self.subtasks)].step()
        begun.append(self._begin(0))
        self._drop_or_add(*changes[1])
        for part in begun[1].parts:
            part.step()
        for place in (1, 0) if latest_first else (0, 1):
            (self._complete if completed[place] else self._abort)(begun[place])
        self._drop_or_add(*changes[2])
        self._complete(self._begin(0))

    def _drop_or_add(self, name: str, place: int) -> None:
        held = list(self.model[name])
        if held and place < 5:
            key = held[place % len(held)]
            self._at(key)[name].clear()
            del self.model[name][key]
        else:
            total = self._at(KEYS[place])["total"]
            total.set(place)
            self.model["total"][KEYS[place]] = place

    def _complete(self, begun: Flying) -> None:
        nodes = [part.node() for part in begun.parts]
        latest = max(self.folder.complete, default=begun.place)
        if latest > begun.place:  # subsumed: the coordinator gives it up
            self._abort(begun)
            return
        manifest = manifest_of(begun.place, nodes)
        ages = [begun.place.checkpoint - written(file) for file in manifest.files]
        assert max(ages, default=0) < FULL_EVERY
        self.folder.completed(begun.place, manifest, begun.expected)
        self._check_all_kept()

    def _check_all_kept(self) -> None:
        for manifest, expected in self.folder.complete.values():
            [alone] = self._open(1)
            start = restore_of(manifest, alone.backend.groups)
            alone.backend.restore(self.folder.read(handle, ref) for handle, refs in start.blocks for ref in refs)
            assert _contents([alone]) == self._all_visible(expected)
            alone.backend.close()

    @rule(parallelism=st.integers(1, 3), earlier=st.booleans(), claimed=st.booleans())
    def fail_and_go_on(self, parallelism: int, earlier: bool, claimed: bool) -> None:
        """From the latest, or from one that the user names, and may claim. What was in flight dies with its attempt."""
        if not self.folder.complete:
            return
        for subtask in self.subtasks:
            subtask.backend.close()
        for place in list(self.folder.flying):
            self.folder.aborted(place)
        self.attempt += 1
        place = min(self.folder.complete) if earlier else max(self.folder.complete)
        manifest, self.model = copy.deepcopy(self.folder.complete[place])
        self.folder.registry.go_on_from(manifest if claimed or not earlier else None)
        self._start(parallelism, manifest)


def written(file: FileHandle) -> int:
    """For which checkpoint."""
    place = place_of(file.path)
    assert place is not None
    return place.checkpoint


def manifest_of(place: Place, nodes: Sequence[NodeState]) -> Manifest:
    subtasks = tuple(SubtaskState("model", index, (node,)) for index, node in enumerate(nodes))
    return Manifest(
        flow="model",
        run=place.run,
        attempt=place.attempt,
        checkpoint=place.checkpoint,
        time_ms=0,
        operators=(),
        subtasks=subtasks,
    )


def restore_of(manifest: Manifest | None, groups: KeyGroupRange) -> NodeRestore:
    nodes = [] if manifest is None else [node for _, node in manifest.nodes()]
    blocks = tuple(
        (handle, refs)
        for node in nodes
        for handle in node.keyed
        if (refs := tuple(ref for ref in handle.blocks if ref.group in groups))
    )
    return NodeRestore(blocks, {name: schema for node in nodes for name, schema in node.schemas.items()})


TestIncrementalModel = IncrementalModel.TestCase
TestIncrementalModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


# -------------------------------------------------------------------------------------------------- when a version ends
ALL = KeyGroupRange(0, GROUPS)
KEY = "a"
GROUP = key_group(KEY, GROUPS)
ELSEWHERE = next(key for key in ("b", "c", "d", "e") if key_group(key, GROUPS) != GROUP)


class Bound:
    """One of each, with an entry of `KEY`."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = HeapBackend(ALL, GROUPS, clock=self.clock)
        ttl = Ttl(dt.timedelta(seconds=10))
        self.number = self.backend.bind("number", ValueState(int, default=0))
        self.words = self.backend.bind("words", ValueState(list[str], default_factory=list))
        self.items = self.backend.bind("items", ListState(int))
        self.table = self.backend.bind("table", MapState(str, int))
        self.tables = self.backend.bind("tables", MapState(str, list[int]))
        self.most = self.backend.bind("most", ReducingState(int, max))
        self.mortal = self.backend.bind("mortal", ValueState(int, ttl=ttl))
        self.timers = cast(HeapTimers, self.backend.bind("timers", TimerState("event")))
        self.stand(KEY)
        self.number.set(1)
        self.words.set(["x"])
        self.items.append(1)
        self.table["x"] = 1
        self.tables["x"] = [1]
        self.most.add(1)
        self.mortal.set(1)
        self.timers.set(KEY, GROUP, 5, "x")

    def stand(self, key: Any) -> None:
        self.backend.cursor.key, self.backend.cursor.group = key, key_group(key, GROUPS)

    async def sweep_after(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.backend.cursor.clear()
        await sweep(self.backend)

    def dict_of(self, state: str) -> Any:
        return self.backend._stores[state].tables[GROUP]


def _elsewhere(bound: Bound) -> None:
    bound.stand(ELSEWHERE)
    bound.number.set(7)


KEEPS: dict[str, tuple[str, Callable[[Bound], Any]]] = {
    "reading what can't be changed": ("number", lambda bound: bound.number.get()),
    "iterating over such items": ("items", lambda bound: list(bound.items)),
    "reading such entries of a map": ("table", lambda bound: (bound.table.get("x"), dict(bound.table))),
    "another key group": ("number", _elsewhere),
    "another state": ("number", lambda bound: bound.items.append(2)),
    "a query": ("words", lambda bound: bound.backend.query("words", KEY, GROUP)),
    "a scan": ("words", lambda bound: list(bound.backend.scan("words"))),
    "a sweep that finds nothing": ("mortal", lambda bound: bound.sweep_after(5)),
    "a timer that is set again": ("timers", lambda bound: bound.timers.set(KEY, GROUP, 5, "x")),
    "looking at timers": ("timers", lambda bound: bound.timers.put_back(bound.timers.draw(9, 9))),
    "counting": ("number", lambda bound: bound.backend.entries()),
}
ENDS: dict[str, tuple[str, Callable[[Bound], Any]]] = {
    "setting": ("number", lambda bound: bound.number.set(1)),
    "clearing": ("number", lambda bound: bound.number.clear()),
    "reading what can be changed": ("words", lambda bound: bound.words.get()),
    "appending": ("items", lambda bound: bound.items.append(2)),
    "extending": ("items", lambda bound: bound.items.extend([2])),
    "an entry of a map": ("table", lambda bound: bound.table.update(y=2)),
    "an entry less": ("table", lambda bound: bound.table.pop("x")),
    "reading a map of what can be changed": ("tables", lambda bound: bound.tables["x"]),
    "folding": ("most", lambda bound: bound.most.add(2)),
    "a sweep that deletes": ("mortal", lambda bound: bound.sweep_after(11)),
    "a timer": ("timers", lambda bound: bound.timers.set(KEY, GROUP, 6, "x")),
    "a timer less": ("timers", lambda bound: bound.timers.delete(KEY, GROUP, 5, "x")),
    "a timer that fires": ("timers", lambda bound: bound.timers.take((5, GROUP, KEY, "x"))),
}


async def done(call: Callable[[Bound], Any], bound: Bound) -> None:
    result = call(bound)
    if isinstance(result, Coroutine):
        await result


@pytest.mark.parametrize(("state", "call"), KEEPS.values(), ids=KEEPS)
async def test_a_version_lasts(state: str, call: Callable[[Bound], Any]) -> None:
    bound = Bound()
    before = bound.backend.version(state, GROUP)
    await done(call, bound)
    assert bound.backend.version(state, GROUP) is before


@pytest.mark.parametrize(("state", "call"), ENDS.values(), ids=ENDS)
async def test_a_version_ends_and_its_table_is_out_of_the_way(state: str, call: Callable[[Bound], Any]) -> None:
    bound = Bound()
    before = bound.backend.version(state, GROUP)
    assert type(bound.dict_of(state)) is not dict
    await done(call, bound)
    assert type(bound.dict_of(state)) is dict
    assert bound.backend.version(state, GROUP) is not before


def test_a_snapshot_shows_versions_and_leaves_out_what_it_is_told_to() -> None:
    bound = Bound()
    first = bound.backend.begin_versioned_snapshot(1)
    assert {group for _, group in first.versions} == {GROUP} and len(first.versions) == 8
    bound.number.set(2)
    second = bound.backend.begin_versioned_snapshot(2)
    changed = [place for place, version in first.versions.items() if second.versions[place] is not version]
    assert changed == [("number", GROUP)]
    second.leave_out({place for place in second.versions if place not in changed})
    blocks = [second.next_block(), second.next_block()]
    assert [block and block.state for block in blocks] == ["number", None]
    first.abort()
    assert type(bound.dict_of("number")) is not dict
    bound.number.get()
    bound.number.set(3)
    assert type(bound.dict_of("number")) is dict


def test_restoring_more_ends_a_version() -> None:
    bound = Bound()
    snapshot = bound.backend.begin_snapshot(1)
    blocks = list(iter(snapshot.next_block, None))
    before = {block.state: bound.backend.version(block.state, GROUP) for block in blocks}
    other = Bound()
    other.timers.set(KEY, GROUP, 7, "y")
    more = other.backend.begin_snapshot(1)
    bound.backend.restore(iter(more.next_block, None))
    for state, version in before.items():
        assert bound.backend.version(state, GROUP) is not version


def test_without_versions_nothing_stays_in_the_way() -> None:
    bound = Bound()
    snapshot = bound.backend.begin_snapshot(1)
    list(iter(snapshot.next_block, None))
    assert all(type(table) is dict for store in bound.backend._stores.values() for table in store.tables[:GROUPS])


def test_what_was_closed_stays_closed() -> None:
    bound = Bound()
    bound.backend.version("number", GROUP)
    guard = bound.dict_of("number")
    bound.backend.close()
    guard[KEY] = 2
    with pytest.raises(StateAccessError, match="stopped"):
        bound.number.get()


@pytest.mark.parametrize(("state", "group"), [("other", 0), ("number", 99)])
def test_a_version_of_what_is_not_there_is_refused(state: str, group: int) -> None:
    with pytest.raises(StateAccessError, match=f"'{state}'|{group}"):
        Bound().backend.version(state, group)


# ------------------------------------------------------------------------------------------- what may be referred to
class Everything:
    """Offers every file, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    async def reuse(self, barrier: Barrier, contents: Sequence[Written]) -> list[FileHandle | None]:
        self.asked += len(contents)
        return [FileHandle("run-1/attempt-1/chk-3/elsewhere", content.size, content.digest) for content in contents]


def file_of(checkpoint: int, start: int = 0) -> FileHandle:
    return FileHandle(f"run-1/attempt-1/chk-{checkpoint}/0001-state", 100, bytes(DIGEST_SIZE), start)


REF = BlockRef("number", GROUP, 1, 0, 10)


def referred(start: NodeRestore, checkpoint: int, schemas: dict[str, Any] | None = None) -> int:
    """How many groups of what was restored from the checkpoint 3."""
    bound = Bound()
    increments = Increments(bound.backend, FULL_EVERY)
    at_once(increments.restored(start, bound.backend.schemas() if schemas is None else schemas, no_turn))
    storing = increments.begin(checkpoint)
    before = len(storing._snapshot.versions)
    at_once(storing.refer(Everything(), Barrier(checkpoint), no_turn))
    return before - len(storing._snapshot.versions)


def test_what_was_restored_is_referred_to_until_it_is_too_old() -> None:
    schemas = Bound().backend.schemas()
    blocks = ((KeyedHandle(file_of(3), ()), (REF,)),)
    assert [referred(NodeRestore(blocks, schemas), checkpoint) for checkpoint in (4, 6, 7, 8)] == [1, 1, 0, 0]


def test_what_was_not_stored_as_it_would_be_now_is_written() -> None:
    bound = Bound()
    schemas = bound.backend.schemas()
    blocks = ((KeyedHandle(file_of(3), ()), (REF,)),)
    other = {"number": bound.backend.schemas()["words"]}
    assert referred(NodeRestore(blocks, {**schemas, **other}), 4) == 0
    assert referred(NodeRestore(blocks, {}), 4) == 0
    assert referred(NodeRestore((*blocks, (KeyedHandle(file_of(2), ()), (REF,))), schemas), 4) == 0
    native = NativeHandle("rocksdb-1", 0, GROUPS, (), {})
    assert referred(NodeRestore(blocks, schemas, native=(native,)), 4) == 0
    savepoint = KeyedHandle(FileHandle("0001-state", 100, bytes(DIGEST_SIZE)), ())
    assert referred(NodeRestore(((savepoint, (REF,)),), schemas), 4) == 0
    dropped = ((KeyedHandle(file_of(3), ()), (BlockRef("gone", GROUP, 1, 0, 10),)),)
    assert referred(NodeRestore(dropped, {**schemas, "gone": {}}, allow_dropped=True), 4) == 0


async def test_a_part_of_a_pack_is_referred_to_where_it_lies_and_the_storage_is_asked_once() -> None:
    bound, target = Bound(), Everything()
    increments = Increments(bound.backend, FULL_EVERY)
    refs = tuple(BlockRef(state, GROUP, 1, 10 * place, 10) for place, state in enumerate(("number", "items", "number")))
    start = NodeRestore(((KeyedHandle(file_of(3, start=20), ()), refs),), bound.backend.schemas())
    await increments.restored(start, bound.backend.schemas(), no_turn)
    storing = increments.begin(4)
    await storing.refer(target, Barrier(4), no_turn)
    assert target.asked == 1

    async def nothing(snapshot: KeyedSnapshot) -> None:
        snapshot.abort()

    [handle] = await storing.store(nothing, no_turn)
    assert handle.file == FileHandle("run-1/attempt-1/chk-3/elsewhere", 100, bytes(DIGEST_SIZE), 20)
    assert sorted(handle.blocks, key=lambda ref: ref.offset) == list(refs)


async def test_many_key_groups_take_turns() -> None:
    """With 1,000 of them: nothing holds the loop for long but what has to be synchronous."""
    groups = KeyGroupRange(0, 1000)
    backend = HeapBackend(groups, groups.stop)
    backend.bind("number", ValueState(int))
    refs = tuple(BlockRef("number", group, 1, 10 * group, 10) for group in groups)
    for group in groups:
        backend._stores["number"].table(group)["x"] = 1
    increments, turns = Increments(backend, FULL_EVERY), 0

    async def turn() -> None:
        nonlocal turns
        turns += 1

    file = FileHandle("run-1/attempt-1/chk-3/0001-state", 10_000, bytes(DIGEST_SIZE))
    await increments.restored(NodeRestore(((KeyedHandle(file, ()), refs),), backend.schemas()), backend.schemas(), turn)
    after_restore = turns
    storing = increments.begin(4)
    await storing.refer(Everything(), Barrier(4), turn)
    assert after_restore == 12 and turns == 20 and not storing._snapshot.versions
    [handle] = await storing.store(_nothing, turn)
    assert sorted(handle.blocks, key=lambda ref: ref.offset) == list(refs)


async def _nothing(snapshot: KeyedSnapshot) -> None:
    assert snapshot.next_block() is None


def test_copies_are_few() -> None:
    """However often checkpoints fail."""
    bound = Bound()
    increments = Increments(bound.backend, FULL_EVERY)
    version = bound.backend.version("number", GROUP)
    for checkpoint in range(1, 50):
        increments.stored(version, KeyedHandle(file_of(checkpoint), (REF,)))
    known = [file.path for file in increments.files(version)]
    assert known == [file_of(checkpoint).path for checkpoint in (46, 47, 48, 49)] and len(known) == COPIES
    assert increments.found(version, {}) is None
    there = {file.path: file for file in map(file_of, (47, 48))}
    found = increments.found(version, there)
    assert found is not None and found.file == file_of(48), "the latest, which is to stay the longest"
