"""New savepoints of old ones: what is changed is changed, and the rest is as it was."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.files import FileSink
from connectors.memory import ListSink, ListSource
from streamactors import state_processor
from streamactors.checkpoint.manifest import GroupTime, Manifest, encode_manifest
from streamactors.errors import (
    IncompatibleState,
    InvalidConfig,
    InvalidDataflow,
    StateAccessError,
    UnserialisableValue,
)
from streamactors.state_processor import DROP, Snapshot, Transformation
from tests.recovery.flows import dropped, until
from tests.runtime.feeds import Feed, Gate
from tests.state_processor.jobs import (
    Keeper,
    Total,
    all_of,
    as_dict,
    config,
    entries_of,
    keeping,
    last_of,
    numbers,
    opened,
    sink,
    stored,
    total_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture
async def uri(tmp_path: Path) -> str:
    return await stored(keeping(numbers(120), sink()), config(tmp_path / "job"))


async def blocks_of(snapshot: Snapshot, uid: str) -> dict[tuple[str, int], bytes]:
    restorable = snapshot._restorable
    return {
        (ref.state, ref.group): data
        for _, node in snapshot.manifest.nodes(uid)
        for handle in node.keyed
        for ref, data in zip(handle.blocks, await restorable.read_blocks(handle, handle.blocks), strict=True)
    }


async def transformed(uri: str, target: Path, change: Any) -> str:
    async with opened(uri) as snapshot:
        made: Transformation = change(snapshot.transform())
        return await made.write(str(target))


async def test_nothing_changed_is_the_same(uri: str, tmp_path: Path) -> None:
    copy = await transformed(uri, tmp_path / "copy", lambda transform: transform)
    async with opened(uri) as before, opened(copy) as after:
        assert await blocks_of(before, "keep") == await blocks_of(after, "keep")
        old, new = before.manifest, after.manifest
        assert new.savepoint and after.committed == before.committed
        assert (old.checkpoint, old.flow, old.operators) == (new.checkpoint, new.flow, new.operators)
        for (old_subtask, old_node), (new_subtask, new_node) in zip(old.nodes(), new.nodes(), strict=True):
            assert (old_subtask.vertex, old_subtask.index) == (new_subtask.vertex, new_subtask.index)
            for name in ("uid", "schemas", "positions", "pending", "watermark", "ahead", "splits", "list_schemas"):
                assert getattr(old_node, name) == getattr(new_node, name)


async def test_a_job_goes_on_from_the_copy_of_a_folder_that_was_moved(uri: str, tmp_path: Path) -> None:
    await transformed(uri, tmp_path / "copy", lambda transform: transform)
    (tmp_path / "copy").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved")
    settings = config(tmp_path / "rest", backend="rocksdb", parallelism=3)
    after = await stored(keeping(ListSource(range(300)), sink()), settings, restore=moved)
    assert await entries_of(after, "keep", "numbers") == all_of(300)


async def test_edits(uri: str, tmp_path: Path) -> None:
    async def doubled(key: str, value: float) -> Any:
        await asyncio.sleep(0)
        return DROP if key == "k3" else value * 2

    def without_first(key: str, items: list[int]) -> list[int]:
        return items[1:] if key != "k4" else []

    def counted(key: str, total: Total) -> Total:
        return msgspec.structs.replace(total, count=-total.count)

    def change(transform: Transformation) -> Transformation:
        transform.edit("keep", "plain", doubled).edit("keep", "numbers", without_first)
        return transform.edit("keep", "total", counted, declaration=Keeper.total)

    edited = await transformed(uri, tmp_path / "edited", change)
    lists = all_of(120)
    sums = {key: 2.0 * sum(found) for key, found in lists.items() if key != "k3"}
    assert await entries_of(edited, "keep", "plain", Keeper) == sums
    assert await entries_of(edited, "keep", "numbers", Keeper) == {k: v[1:] for k, v in lists.items() if k != "k4"}
    counts = {key: total.count for key, total in (await entries_of(edited, "keep", "total", Keeper)).items()}
    assert counts == {key: -number for key, number in last_of(120).items()}
    async with opened(uri) as before, opened(edited) as after:
        old, new = await blocks_of(before, "keep"), await blocks_of(after, "keep")
        assert {place: data for place, data in old.items() if place[0] == "totals"}.items() <= new.items()


async def test_edits_of_what_was_declared_by_classes_that_are_not_at_hand(uri: str, tmp_path: Path) -> None:
    def grown(key: str, total: dict[str, Any]) -> dict[str, Any]:
        assert total == as_dict(total["count"])
        return total | {"count": total["count"] + 1000, "colour": "red", "sizes": {"new": (1, 2.0)}}

    edited = await transformed(uri, tmp_path / "edited", lambda transform: transform.edit("keep", "total", grown))
    for key, total in (await entries_of(edited, "keep", "total", Keeper)).items():
        before = total_of(last_of(120)[key])
        assert total == msgspec.structs.replace(
            before, count=before.count + 1000, colour=type(before.colour)("red"), sizes={"new": (1, 2.0)}
        )


async def test_an_edit_into_another_type(uri: str, tmp_path: Path) -> None:
    class Texts(sa.KeyedOperator[str, int, Any]):
        plain = sa.ValueState(str, default="")

        def process(self, value: int, ctx: sa.Context[str, Any], /) -> None:
            self.plain.set(self.plain.get() + f"+{value}")
            ctx.emit(self.plain.get())

    def change(transform: Transformation) -> Transformation:
        for state in ("total", "numbers", "totals", "anything"):
            transform.drop_state("keep", state)
        return transform.edit("keep", "plain", lambda key, value: str(int(value)), into=Texts.plain)

    edited = await transformed(uri, tmp_path / "edited", change)
    out: ListSink[str] = ListSink()
    source = ListSource([*range(120), 1000])
    await sa.run(keeping(source, out, Texts), config(tmp_path / "next"), restore=edited)
    assert out.values == [f"{sum(all_of(120)['k0'])}+1000"]


async def test_an_edit_that_does_not_fit_leaves_nothing(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UnserialisableValue, match="operator 'keep', state 'plain'.*expected float"):
        await transformed(uri, tmp_path / "edited", lambda t: t.edit("keep", "plain", lambda key, value: "x"))
    assert not (tmp_path / "edited").exists()

    def fail(key: str, value: float) -> float:
        raise LookupError("of the user")

    with pytest.raises(LookupError, match="of the user"):
        await transformed(uri, tmp_path / "edited", lambda t: t.edit("keep", "plain", fail))
    assert not (tmp_path / "edited").exists()


async def test_renamed_and_dropped(uri: str, tmp_path: Path) -> None:
    class Fewer(sa.KeyedOperator[str, int, Any]):
        sums = sa.ValueState(float, default=0.0)
        numbers = sa.ListState(int)

        def process(self, value: int, ctx: sa.Context[str, Any], /) -> None:
            self.sums.set(self.sums.get() + value)
            ctx.emit((ctx.key, self.sums.get(), len(self.numbers)))

    def change(transform: Transformation) -> Transformation:
        transform.rename_flow("renamed").rename_operator("keep", "fewer").rename_state("keep", "plain", "sums")
        for state in ("total", "totals", "anything"):
            transform.drop_state("keep", state)
        return transform.with_source_positions("numbers", {"0/1": 119})

    made = await transformed(uri, tmp_path / "made", change)
    async with opened(made) as snapshot:
        assert snapshot.flow == "renamed" and list(snapshot.operators["fewer"].states) == ["sums", "numbers"]
        assert b"note 119" not in b"".join(path.read_bytes() for path in (tmp_path / "made").iterdir())
    out: ListSink[Any] = ListSink()
    flow = sa.Dataflow("renamed")
    values = flow.source("numbers", numbers(120), parallelism=1)
    values.key_by(lambda n: f"k{n % 50}").process("fewer", Fewer).sink("out", out)
    await sa.run(flow, config(tmp_path / "next", parallelism=5), restore=made)
    assert out.values == [("k19", sum(all_of(120)["k19"]) + 119.0, 3)]


async def test_a_dropped_operator_is_gone(uri: str, tmp_path: Path) -> None:
    made = await transformed(uri, tmp_path / "made", lambda t: t.drop_operator("keep").drop_operator("numbers"))
    async with opened(made) as snapshot:
        assert list(snapshot.operators) == ["out"] and [path.name for path in (tmp_path / "made").iterdir()].count(
            "manifest"
        )
    out: ListSink[Any] = ListSink()
    await sa.run(keeping(numbers(10), out), config(tmp_path / "next"), restore=made)
    assert len(out.values) == 10


@pytest.mark.parametrize("backend", ["heap", "rocksdb"])
async def test_keys_of_another_kind(uri: str, tmp_path: Path, backend: str) -> None:
    """`k7` becomes `7 % 10`: five keys each become one."""

    def change(transform: Transformation) -> Transformation:
        merges = {
            "plain": lambda a, b: a + b,
            "total": max_count,
            "anything": lambda a, b: max(a, b, key=lambda v: v[1]),
        }
        return transform.rekey("keep", lambda key: int(key[1:]) % 10 if key != "k9" else DROP, merge=merges)

    def max_count(one: Any, other: Any) -> Any:
        return max(one, other, key=lambda total: total["count"])

    made = await transformed(uri, tmp_path / "made", change)
    expected: dict[int, list[int]] = {}
    for key, found in all_of(120).items():
        if key != "k9":
            expected.setdefault(int(key[1:]) % 10, []).extend(found)
    lists = await entries_of(made, "keep", "numbers")
    assert {key: sorted(found) for key, found in lists.items()} == {k: sorted(v) for k, v in expected.items()}
    assert await entries_of(made, "keep", "plain") == {key: float(sum(found)) for key, found in expected.items()}
    settings = config(tmp_path / "next", backend=backend, parallelism=3)
    flow = keeping(numbers(300), sink(), key=lambda n: n % 10)
    after = await stored(flow, settings, restore=made)
    after_all = await entries_of(after, "keep", "numbers", Keeper)
    assert {key: sorted(items) for key, items in after_all.items()} == {
        key: sorted([*expected[key], *(n for n in range(120, 300) if n % 10 == key)]) for key in range(10)
    }


async def test_two_values_that_become_one_need_a_merge(uri: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleState, match=r"state '\w+': the key 'one' comes twice"):
        await transformed(uri, tmp_path / "made", lambda t: t.rekey("keep", lambda key: "one"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("typed", [False, True])
async def test_another_max_parallelism(uri: str, tmp_path: Path, typed: bool) -> None:
    def change(transform: Transformation) -> Transformation:
        transform.with_max_parallelism(12)
        return transform.with_types("keep", Keeper) if typed else transform

    made = await transformed(uri, tmp_path / "made", change)
    async with opened(made) as snapshot:
        assert {operator.max_parallelism for operator in snapshot.operators.values()} == {12}
        assert snapshot.info("keep", "total").groups.keys() <= set(range(12))
    after = await stored(keeping(numbers(300), sink()), config(tmp_path / "next", parallelism=5), restore=made)
    whole = await stored(keeping(numbers(300), sink()), config(tmp_path / "whole"))
    for state in ("total", "plain", "numbers", "totals", "anything"):
        assert await entries_of(after, "keep", state, Keeper) == await entries_of(whole, "keep", state, Keeper)


async def test_keys_whose_class_is_not_at_hand_can_not_be_moved(tmp_path: Path) -> None:
    class Holder(sa.KeyedOperator[Any, int, int]):
        seen = sa.ValueState(int, default=0)

        def process(self, value: int, ctx: sa.Context[Any, int], /) -> None:
            self.seen.set(value)

    def made() -> Any:
        class Vanishing(msgspec.Struct, frozen=True):
            number: int

        return Vanishing

    cls = made()
    uri = await stored(keeping(numbers(10), sink(), Holder, key=lambda n: cls(n)), config(tmp_path / "job"))
    assert len(await entries_of(uri, "keep", "seen")) == 10
    for path in (Path(uri.removeprefix("file://"))).iterdir():
        if "keep" in path.name:
            path.write_bytes(path.read_bytes().replace(b"Vanishing", b"Banishing"))
    async with state_processor.open(uri) as snapshot:
        with pytest.raises(sa.CorruptCheckpoint, match="altered"):
            await snapshot.state("keep", "seen").first(1)
    await _resealed(uri)
    rows = await entries_of(uri, "keep", "seen")
    assert {key["number"]: value for key, value in rows.items()} == {n: n for n in range(10)}
    copy = await transformed(uri, tmp_path / "copy", lambda t: t)
    assert await entries_of(copy, "keep", "seen") == rows
    with pytest.raises(IncompatibleState, match="Banishing: import the module that defines it"):
        await transformed(uri, tmp_path / "made", lambda t: t.with_max_parallelism(3))


async def _resealed(uri: str) -> None:
    """Its manifest, with the digests of its files as they are now."""
    async with state_processor.open(uri, verify="manifest") as snapshot:
        files, restorable = snapshot._files, snapshot._restorable

        def again(node: Any, digests: dict[str, bytes]) -> Any:
            keyed = tuple(
                msgspec.structs.replace(
                    handle, file=msgspec.structs.replace(handle.file, digest=digests[handle.file.path])
                )
                for handle in node.keyed
            )
            return msgspec.structs.replace(node, keyed=keyed)

        digests = {
            file.path: (await files.at(uri).digest(restorable.path(file).rpartition("/")[2])).digest
            for file in snapshot.manifest.files
        }
        subtasks = tuple(
            msgspec.structs.replace(subtask, nodes=tuple(again(node, digests) for node in subtask.nodes))
            for subtask in snapshot.manifest.subtasks
        )
        data = encode_manifest(msgspec.structs.replace(snapshot.manifest, subtasks=subtasks))
        (Path(uri.removeprefix("file://")) / "manifest").write_bytes(data)


# --------------------------------------------------------------------------------------------------- what is carried on
async def test_prepared_transactions_are_carried_and_not_dropped(tmp_path: Path) -> None:
    """Of a savepoint that a job lives on after, which does not commit."""
    (tmp_path / "in.jsonl").write_text("".join(f"{number}\n" for number in range(50)))
    feed = Feed()
    feed.put(*range(50))
    flow = keeping(feed, FileSink(str(tmp_path / "out"), value=sa.Json()))
    async with dropped(flow, config(tmp_path / "job")) as job:
        await until(lambda: job.metrics()["status"] == "running")
        async with asyncio.timeout(60):
            while await job.query("keep", "plain", "k49") != 49.0:
                await asyncio.sleep(0.005)
        uri = await job.savepoint(str(tmp_path / "savepoint"))
    async with opened(uri) as snapshot:
        pending = snapshot.operator("out").pending
        assert pending and not snapshot.committed
        with pytest.raises(IncompatibleState, match="'out' can't be dropped: it has prepared transactions"):
            await snapshot.transform().drop_operator("out").write(str(tmp_path / "made"))
    made = await transformed(uri, tmp_path / "made", lambda t: t.with_max_parallelism(64))
    async with opened(made) as snapshot:
        assert snapshot.operator("out").pending == pending and not snapshot.committed
        assert snapshot.operator("numbers").positions
    feed.end()
    await sa.run(flow_again(feed, tmp_path), config(tmp_path / "next"), restore=made)
    written = [line for path in sorted((tmp_path / "out").glob("[!.]*")) for line in path.read_text().splitlines()]
    assert len(written) == 50


def flow_again(feed: Feed, tmp_path: Path) -> sa.Dataflow:
    return keeping(feed, FileSink(str(tmp_path / "out"), value=sa.Json()))


async def test_a_committed_checkpoint_stays_so(tmp_path: Path) -> None:
    flow = keeping(numbers(10), FileSink(str(tmp_path / "out"), value=sa.Json()))
    uri = await stored(flow, config(tmp_path / "job"))
    made = await transformed(uri, tmp_path / "made", lambda t: t.drop_operator("out"))
    async with opened(uri) as before, opened(made) as after:
        assert before.committed and after.committed and "out" not in after.operators


async def test_watermarks_of_keys_that_move_go_back_to_the_least(uri: str, tmp_path: Path) -> None:
    """Nobody can tell which of them had come further."""

    def timed(manifest: Manifest) -> Manifest:
        def node(index: int, old: Any) -> Any:
            if old.uid != "keep":
                return old
            return msgspec.structs.replace(old, watermark=100 + index, ahead=(GroupTime(3, 5, 500),))

        subtasks = [
            msgspec.structs.replace(subtask, nodes=tuple(node(subtask.index, old) for old in subtask.nodes))
            for subtask in manifest.subtasks
        ]
        return msgspec.structs.replace(manifest, subtasks=tuple(subtasks))

    async with state_processor.open(uri) as snapshot:
        content = timed(snapshot.manifest)
    (Path(uri.removeprefix("file://")) / "manifest").write_bytes(encode_manifest(content))

    def marks(snapshot: Snapshot) -> list[Any]:
        return [(node.watermark, node.ahead) for _, node in snapshot.manifest.nodes("keep")]

    kept = await transformed(uri, tmp_path / "kept", lambda t: t.drop_state("keep", "plain"))
    moved = await transformed(uri, tmp_path / "moved", lambda t: t.with_max_parallelism(64))
    async with opened(kept) as first, opened(moved) as second:
        assert marks(first) == [(100, (GroupTime(3, 5, 500),)), (101, (GroupTime(3, 5, 500),))]
        assert marks(second) == [(100, ()), (100, ())]


class Watching(sa.KeyedOperator[str, int, Any]):
    """Emits each number with the watermark that it met."""

    seen = sa.ListState(int)

    def process(self, number: int, ctx: sa.Context[str, Any], /) -> None:
        self.seen.append(number)
        ctx.emit((ctx.key, number, ctx.watermark))


@pytest.mark.parametrize("moves", [False, True])
async def test_event_time_goes_on(tmp_path: Path, moves: bool) -> None:
    def watching(feed: Feed, out: Any) -> sa.Dataflow:
        watermarks = sa.Watermarks[int].monotonic(lambda number: number)
        flow = sa.Dataflow("watching")
        values = flow.source("numbers", feed, parallelism=1, watermarks=watermarks)
        values.key_by(lambda n: f"k{n % 50}").process("watch", Watching).sink("out", out)
        return flow

    feed, out = Feed(), sink()
    feed.put(*range(120))
    async with dropped(watching(feed, out), config(tmp_path / "job")) as job:
        async with asyncio.timeout(60):
            while len(await job.query("watch", "seen", "k19")) < 3:
                await asyncio.sleep(0.005)
        uri = await job.savepoint(str(tmp_path / "savepoint"))
    made = await transformed(uri, tmp_path / "made", lambda t: t.with_max_parallelism(12) if moves else t)
    async with opened(uri) as before, opened(made) as after:
        marks = before.operator("watch").watermarks
        assert after.operator("watch").watermarks == (dict.fromkeys(marks, min(marks.values())) if moves else marks)
        assert any(subtask.channels for subtask in before.manifest.subtasks)
        assert any(subtask.channels for subtask in after.manifest.subtasks) != moves
    feed.put(*range(120, 200))
    feed.end()
    later: ListSink[Any] = sink()
    await sa.run(watching(feed, later), config(tmp_path / "next", parallelism=3), restore=made)
    met = {number: watermark for _, number, watermark in later.values}
    assert sorted(met) == list(range(120, 200))
    assert all(min(marks.values()) <= watermark < number for number, watermark in met.items())


async def test_what_is_in_flight_is_carried_and_keeps_keys_where_they_are(tmp_path: Path) -> None:
    feed, gate = Feed(), Gate(0, delay=0.05)
    feed.put(*range(2000))
    flow = sa.Dataflow("keeping")
    values = flow.source("numbers", feed, parallelism=1).key_by(lambda n: f"k{n % 50}")
    values.map(gate, name="gate").key_by(lambda n: f"k{n % 50}").process("keep", Keeper).sink("out", sink())
    settings = config(tmp_path / "job", alignment="unaligned")
    async with dropped(flow, settings) as job:
        await until(lambda: gate.held > 0)
        uri = (await job.checkpoint()).uri
    async with opened(uri) as snapshot:
        before = snapshot.in_flight
        assert sum(edge.records for edge in before) > 0
        for change, named in (
            (snapshot.transform().with_max_parallelism(64), "another max parallelism"),
            (snapshot.transform().rekey("keep", lambda key: key), "operator 'keep' re-keyed"),
            (snapshot.transform().rename_operator("keep", "kept"), "operator 'keep' renamed"),
            (snapshot.transform().drop_operator("keep"), "operator 'keep' dropped"),
        ):
            with pytest.raises(IncompatibleState, match=f"holds records in flight.*{named}"):
                await change.write(str(tmp_path / "refused"))
        assert not (tmp_path / "refused").exists()
    made = await transformed(uri, tmp_path / "made", lambda t: t.edit("keep", "plain", lambda key, value: value + 0.5))
    async with opened(made) as snapshot:
        assert snapshot.in_flight == before
    feed.end()
    gate.passes = 10**9
    after = await stored(flow_like(feed), settings_of(tmp_path), restore=made)
    assert {key: sorted(found) for key, found in (await entries_of(after, "keep", "numbers")).items()} == all_of(2000)


def flow_like(feed: Feed) -> sa.Dataflow:
    flow = sa.Dataflow("keeping")
    values = flow.source("numbers", feed, parallelism=1).key_by(lambda n: f"k{n % 50}")
    values.map(lambda n: n, name="gate").key_by(lambda n: f"k{n % 50}").process("keep", Keeper).sink("out", sink())
    return flow


def settings_of(tmp_path: Path) -> sa.Config:
    return config(tmp_path / "next", alignment="unaligned")


async def test_refusals(uri: str, tmp_path: Path) -> None:
    async with opened(uri) as snapshot:
        transform = snapshot.transform
        with pytest.raises(StateAccessError, match="no operator 'kept'; it holds: numbers, keep, out"):
            transform().drop_operator("kept")
        with pytest.raises(StateAccessError, match="no state 'plian'; it has: total, plain"):
            transform().edit("keep", "plian", lambda key, value: value)
        with pytest.raises(StateAccessError, match="'out' has no keyed state"):
            transform().rekey("out", lambda key: key)
        with pytest.raises(StateAccessError, match="'keep' is no source"):
            transform().with_source_positions("keep", {})
        with pytest.raises(StateAccessError, match="no state 'plian'; it has: total, plain"):
            transform().rekey("keep", lambda key: key, merge={"plian": max})
        with pytest.raises(InvalidDataflow, match="must not be empty"):
            transform().rename_operator("keep", "")
        with pytest.raises(InvalidDataflow, match="must not be empty"):
            transform().rename_state("keep", "plain", "")
        with pytest.raises(UnserialisableValue, match="state 'numbers', key 'k.*': expected a list of its items"):
            await transform().edit("keep", "numbers", lambda key, value: None).write(str(tmp_path / "made"))
        with pytest.raises(InvalidDataflow, match="two operators of the new savepoint have the uid 'out'"):
            await transform().rename_operator("keep", "out").write(str(tmp_path / "made"))
        with pytest.raises(InvalidDataflow, match="two states of operator 'keep'.*'plain'"):
            await transform().rename_state("keep", "total", "plain").write(str(tmp_path / "made"))
        with pytest.raises(InvalidConfig, match="not empty"):
            await transform().write(str(tmp_path / "job"))
        assert (
            await transform()
            .rename_state("keep", "total", "plain")
            .drop_state("keep", "plain")
            .write(str(tmp_path / "swapped"))
        )
    assert await entries_of(str(tmp_path / "swapped"), "keep", "plain", Keeper.total) == {
        key: total_of(number) for key, number in last_of(120).items()
    }
