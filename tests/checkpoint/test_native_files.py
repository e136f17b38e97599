"""Files shared by checkpoints: written once, found by content, and deleted when nobody refers to them any more; in
whatever order checkpoints are begun, aborted, completed, retired, damaged and lost in a crash, also side by side."""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamactors.checkpoint import layout
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import (
    FileHandle,
    Manifest,
    NativeFileHandle,
    NativeHandle,
    NodeState,
    OperatorMeta,
    SubtaskState,
    decode_manifest,
    requirements,
)
from streamactors.checkpoint.registry import FileRegistry
from streamactors.checkpoint.restorable import FlowFolder, Restorable
from streamactors.checkpoint.storage.local import LocalFiles
from streamactors.checkpoint.store import CheckpointStore
from streamactors.checkpoint.writer import CheckpointWriter
from streamactors.clock import SYSTEM
from streamactors.errors import CorruptCheckpoint, Crashed
from streamactors.testing.simulation.disk import File, Folder, VolatileDisk

T = TypeVar("T")

STORAGE = "/data/storage"
FLOW = "orders"


def content(number: int) -> bytes:
    """Of table `number`; some are of the same size."""
    return f"table {number:04} ".encode() * (1 + number % 3)


def name(number: int) -> str:
    """Names come again for other contents, as after a fail-over."""
    return f"{number % 3:06}.sst"


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def manifest_of(store: CheckpointStore, checkpoint: int, files: dict[int, FileHandle], **options: Any) -> Manifest:
    parts = tuple(NativeFileHandle(name(number), file, 0, file.size) for number, file in files.items())
    subtasks = (
        SubtaskState("totals", 0, (NodeState("totals", native=(NativeHandle("rocksdb-1", 0, 8, parts, {}),)),)),
    )
    return Manifest(
        flow=store.flow,
        run=store.run,
        attempt=store.attempt,
        checkpoint=checkpoint,
        time_ms=checkpoint,
        operators=(OperatorMeta("totals", "process", 1, 8),),
        subtasks=subtasks,
        requires=requirements(subtasks),
        **options,
    )


async def upload(writer: CheckpointWriter, number: int) -> tuple[FileHandle, bool]:
    """Whether it was there already."""
    data = content(number)
    if (found := writer.reuse(len(data), digest(data))) is not None:
        return found, True
    return await writer.write(name(number), [data], alone=True), False


async def tables_of(restorable: Restorable) -> set[int]:
    """Every byte is verified, and is what the manifest's tables should be."""
    await restorable.verify("digests")
    found = set()
    for _, node in restorable.manifest.nodes():
        for handle in node.native:
            for part in handle.files:
                data = await restorable.files.read(restorable.path(part.file))
                number = int(data.split()[1])
                assert data == content(number) and part.name == name(number)
                found.add(number)
    return found


@dataclass
class InFlight:
    writer: CheckpointWriter
    missing: list[int]
    files: dict[int, FileHandle]


class Flow(RuleBasedStateMachine):
    """A job whose state is a set of tables, and a model of which checkpoint holds which."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.disk = VolatileDisk()
        self.tables: set[int] = set()
        self.next_table = 0
        self.complete: dict[Place, frozenset[int]] = {}
        """Those that may be there: all kept ones are."""
        self.kept: set[Place] = set()
        """Those that have to be there."""
        self.unclaimed: set[Place] = set()
        self.damaged: set[Place] = set()
        self.base: frozenset[int] = frozenset()
        """The tables that the next checkpoint must not write again."""
        self.in_flight: dict[int, InFlight] = {}
        self.retiring: list[asyncio.Task[None]] = []
        self.call(self.reopen())

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.call(self.end())
        self.runner.close()

    async def end(self) -> None:
        self.disk.crashed = True
        await self.settle()
        with contextlib.suppress(Crashed):
            await self.store.close()

    async def settle(self) -> None:
        """What runs beside ends, however it ends."""
        results = await asyncio.gather(*self.retiring, return_exceptions=True)
        assert all(result is None or isinstance(result, Crashed) for result in results), results
        self.retiring.clear()

    # ------------------------------------------------------------------------------------------------------- the job
    async def reopen(self) -> None:
        files = LocalFiles(STORAGE, disk=self.disk)
        self.store = await CheckpointStore.open(STORAGE, FLOW, clock=SYSTEM, files=files)
        await self.restore_latest()

    async def restore_latest(self) -> None:
        await self.settle()
        found = await self.store.latest()
        while found is not None and place_of(found.manifest) in self.damaged:
            with pytest.raises(CorruptCheckpoint) as reason:
                await tables_of(found)
            found = await self.store.fall_back(found, reason.value)
        await self.restore(found)

    async def restore(self, restored: Restorable | None) -> None:
        """A new attempt, from there."""
        await self.settle()
        self.in_flight.clear()
        if restored is None:
            assert not self.kept - self.damaged
        place = None if restored is None else place_of(restored.manifest)
        if place is None or restored is None:
            self.tables, self.base = set(), frozenset()
        else:
            self.tables = await tables_of(restored)
            assert self.tables == self.complete[place]
            self.kept.add(place)  # it was found once
            self.base = frozenset() if place in self.unclaimed else frozenset(self.tables)
        await self.store.begin_attempt({}, restored)

    @rule(more=st.integers(1, 3))
    def write_tables(self, more: int) -> None:
        self.tables.update(range(self.next_table, self.next_table + more))
        self.next_table += more

    @precondition(lambda self: len(self.tables) > 1)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        merged = data.draw(st.sets(st.sampled_from(sorted(self.tables)), min_size=1))
        self.tables = self.tables - merged | {self.next_table}
        self.next_table += 1

    @precondition(lambda self: len(self.in_flight) < 3)
    @rule()
    def begin(self) -> None:
        writer = self.call(self.store.writer(self.store.next_checkpoint_id()))
        self.in_flight[writer.checkpoint] = InFlight(writer, sorted(self.tables), {})

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), count=st.integers(1, 4))
    def upload(self, data: st.DataObject, count: int) -> None:
        flying = self.in_flight[data.draw(st.sampled_from(sorted(self.in_flight)))]
        self.call(self.upload_some(flying, count))

    async def upload_some(self, flying: InFlight, count: int) -> None:
        for number in flying.missing[:count]:
            base = self.base
            file, reused = await upload(flying.writer, number)
            assert reused == (number in base)
            flying.files[number] = file
        del flying.missing[:count]

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        checkpoint = data.draw(st.sampled_from(sorted(self.in_flight)))
        del self.in_flight[checkpoint]
        self.call(self.store.abort(checkpoint))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def complete_one(self, data: st.DataObject) -> None:
        checkpoint = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.call(self.complete_it(self.in_flight.pop(checkpoint)))

    async def complete_it(self, flying: InFlight) -> None:
        await self.upload_some(flying, len(flying.missing))
        manifest = manifest_of(self.store, flying.writer.checkpoint, flying.files)
        self.complete[place_of(manifest)] = frozenset(flying.files)
        await self.store.complete(manifest)
        self.kept.add(place_of(manifest))
        self.base = frozenset(flying.files)

    # ----------------------------------------------------------------------------------------------------- retention
    @rule(retain=st.integers(1, 3), turns=st.integers(0, 40))
    def retire(self, retain: int, turns: int) -> None:
        """It goes on beside what comes next."""
        self.call(self.begin_retiring(retain, turns))

    async def begin_retiring(self, retain: int, turns: int) -> None:
        if any(place.run == self.store.run for place in self.kept - self.damaged):
            latest = sorted(self.kept - self.damaged, key=lambda place: (place.run, place.checkpoint))[-retain:]
            self.kept = {place for place in self.kept if place in self.unclaimed or place in latest}
        self.retiring.append(asyncio.create_task(self.store.retire(self.in_flight, retain=retain)))
        for _ in range(turns):
            await asyncio.sleep(0)

    # ------------------------------------------------------------------------------------------------------- failure
    @rule(operations=st.none() | st.integers(0, 60), power=st.booleans(), seed=st.integers(0, 1000), data=st.data())
    def crash(self, operations: int | None, power: bool, seed: int, data: st.DataObject) -> None:
        """At once, or in the middle of completing a checkpoint and of retiring others."""
        self.call(self.die(operations))
        self.disk = self.disk.after_crash(random.Random(seed) if power else None)
        self.call(self.reopen())

    async def die(self, operations: int | None) -> None:
        if operations is not None:
            self.disk._crash_after = self.disk.operations + operations
            with contextlib.suppress(Crashed):
                if self.in_flight:
                    await self.complete_it(self.in_flight.pop(min(self.in_flight)))
                await self.begin_retiring(1, 0)
                await asyncio.gather(*self.retiring)
        await self.end()

    @rule()
    def fail_over(self) -> None:
        """Another attempt of the same process."""
        self.call(self.restore_latest())

    @precondition(lambda self: len(self.kept) > 1)
    @rule()
    def damage_the_latest(self) -> None:
        """A file of its own: back to the one before."""
        self.call(self.settle())
        found = self.call(self.store.latest())
        assert found is not None
        own = [file for file in found.manifest.own_files if not self.used_by_others(found, file)]
        older = self.kept - self.damaged - {place_of(found.manifest)}
        if own and older and not found.explicit:
            folder, file = self.disk.folder(f"{STORAGE}/{FLOW}"), own[0].path
            node = folder.find(file)
            assert isinstance(node, File)
            node.content[:1] = b"?"
            node.durable = bytes(node.content)
            self.damaged.add(place_of(found.manifest))
            self.call(self.restore_latest())

    def used_by_others(self, one: Restorable, file: FileHandle) -> bool:
        return any(
            number in tables
            for place, tables in self.complete.items()
            if place != place_of(one.manifest)
            for number in self.complete[place_of(one.manifest)]
            if (len(content(number)), digest(content(number))) == (file.size, file.digest)
        )

    @precondition(lambda self: self.kept - self.damaged)
    @rule(data=st.data(), claim=st.booleans())
    def restore_explicitly(self, data: st.DataObject, claim: bool) -> None:
        """A new run that was told what to start from."""
        place = data.draw(st.sampled_from(sorted(self.kept - self.damaged)))
        self.call(self.start_from(place, claim))

    async def start_from(self, place: Place, claim: bool) -> None:
        await self.settle()
        await self.store.close()
        files = LocalFiles(STORAGE, disk=self.disk)
        self.store = await CheckpointStore.open(STORAGE, FLOW, clock=SYSTEM, files=files)
        chosen = await self.store.load(f"{STORAGE}/{FLOW}/{place.folder}")
        await self.store.record_base(chosen, claim=claim)
        (self.unclaimed.discard if claim else self.unclaimed.add)(place)
        await self.restore(chosen)

    # ---------------------------------------------------------------------------------------------------- what holds
    @invariant()
    def what_has_to_be_there_is_there(self) -> None:
        """Also in the middle of a retirement, so the disk is looked at while nothing goes on."""
        root = self.disk.folder(f"{STORAGE}/{FLOW}")
        paths = set(files_in(root, ""))
        found = {place for path in paths if is_named(path, layout.MANIFEST) and (place := layout.place_of(path))}
        assert self.kept <= found
        assert {layout.place_of(path) for path in paths if is_named(path, layout.UNCLAIMED)} == self.unclaimed
        for place in found - self.damaged:
            manifest = decode_manifest(bytes_of(root, f"{place.folder}/manifest"), "")
            assert {int(bytes_of(root, file.path).split()[1]) for file in manifest.files} == self.complete[place]
            assert all(digest(bytes_of(root, file.path)) == file.digest for file in manifest.files)

    @precondition(lambda self: self.kept and not self.in_flight)
    @rule(retain=st.integers(1, 2))
    def nothing_is_left_that_nobody_uses(self, retain: int) -> None:
        self.call(self.check_leftovers(retain))

    async def check_leftovers(self, retain: int) -> None:
        await self.settle()
        if not any(place.run == self.store.run for place in self.kept - self.damaged):
            return
        await self.begin_retiring(retain, 0)
        await self.settle()
        folder = FlowFolder(LocalFiles(STORAGE, disk=self.disk), FLOW, FLOW)
        scanned = await folder.scan_all()
        complete = [await folder.open(found.place) for found in scanned if found.complete]
        used = {file.path for restorable in complete for file in restorable.manifest.files}
        root = self.disk.folder(f"{STORAGE}/{FLOW}")
        assert {path for path in files_in(root, "") if path.endswith(".sst")} == used


def place_of(manifest: Manifest) -> Place:
    return Place(manifest.run, manifest.attempt, manifest.checkpoint)


def is_named(path: str, name: str) -> bool:
    return path.rpartition("/")[2] == name


def bytes_of(root: Folder, path: str) -> bytes:
    file = root.find(path)
    assert isinstance(file, File), path
    return bytes(file.content)


def files_in(folder: Folder, path: str) -> Iterator[str]:
    for each, node in folder.names.items():
        inside = f"{path}/{each}" if path else each
        if isinstance(node, Folder):
            yield from files_in(node, inside)
        else:
            yield inside


TestFlow = pytest.mark.slow(Flow.TestCase)
TestFlow.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# --------------------------------------------------------------------------------------------------------- the registry
def whole(number: int, checkpoint: int) -> FileHandle:
    data = content(number)
    return FileHandle(f"run-1/attempt-1/chk-{checkpoint}/{number}", len(data), digest(data))


def taken(checkpoint: int, *files: FileHandle) -> Manifest:
    parts = tuple(NativeFileHandle(file.path.rpartition("/")[2], file, 0, file.size) for file in files)
    subtasks = (SubtaskState("totals", 0, (NodeState("totals", native=(NativeHandle("x", 0, 8, parts, {}),)),)),)
    return Manifest(flow=FLOW, run=1, attempt=1, checkpoint=checkpoint, time_ms=0, operators=(), subtasks=subtasks)


def complete(registry: FileRegistry, checkpoint: int, *files: FileHandle) -> Place:
    place = Place(1, 1, checkpoint)
    registry.completed(place, taken(checkpoint, *files))
    return place


def ask(registry: FileRegistry, checkpoint: int, number: int) -> FileHandle | None:
    return registry.take(checkpoint, len(content(number)), digest(content(number)))


def test_what_is_in_flight_keeps_what_it_has_taken() -> None:
    registry = FileRegistry()
    first = complete(registry, 1, whole(1, 1))
    assert ask(registry, 2, 1) == whole(1, 1)
    complete(registry, 3, whole(2, 3))
    registry.forget([first])
    assert registry.in_use() == {whole(1, 1).path, whole(2, 3).path}
    registry.aborted(2)
    assert registry.in_use() == {whole(2, 3).path}


def test_what_is_offered_is_in_use() -> None:
    registry = FileRegistry()
    registry.go_on_from(taken(1, whole(1, 1)))
    assert registry.in_use() == {whole(1, 1).path}
    registry.go_on_from(None)
    assert not registry.in_use()
    assert ask(registry, 2, 1) is None


def test_only_what_was_completed_is_offered_and_by_content() -> None:
    registry = FileRegistry()
    complete(registry, 1, whole(1, 1), whole(2, 1))
    assert ask(registry, 2, 3) is None
    assert registry.take(2, 1, digest(content(1))) is None
    complete(registry, 2, whole(2, 1), whole(3, 2))
    assert (ask(registry, 3, 1), ask(registry, 3, 2), ask(registry, 3, 3)) == (None, whole(2, 1), whole(3, 2))


def test_a_part_of_a_file_is_not_offered() -> None:
    """Its digest is not that of the part."""
    registry = FileRegistry()
    part = NativeFileHandle("CURRENT", whole(1, 1), 0, 3)
    handle = NativeHandle("x", 0, 8, (part,), {})
    content_of = taken(1)
    subtasks = (SubtaskState("totals", 0, (NodeState("totals", native=(handle,)),)),)
    registry.completed(Place(1, 1, 1), msgspec.structs.replace(content_of, subtasks=subtasks))
    assert ask(registry, 2, 1) is None
    assert registry.in_use() == {whole(1, 1).path}
