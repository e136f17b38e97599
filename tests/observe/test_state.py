"""How the state of a job is spread: by its API, its metrics, and out of what its checkpoints have stored."""

from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from streamactors.observe.state import state_of
from streamactors.runtime.figures import SnapshotFigures, SubtaskCheckpoint
from streamactors.runtime.group_figures import GroupFigures
from streamactors.service import served
from streamactors.state.key_groups import key_group
from tests.observe.jobs import client_at, config, flow_of, running, taken
from tests.runtime.feeds import Feed, until


def part(subtask: int, size: int, groups: GroupFigures) -> SubtaskCheckpoint:
    return SubtaskCheckpoint(f"sum[{subtask}]", 1.0, SnapshotFigures(), {"sum": size}, 0, (groups,))


def test_subtasks_are_put_together() -> None:
    """Bucket 1 belongs to both; the largest group holds 60 of 100 bytes in 4 groups."""
    first = GroupFigures("sum", 4, 0, (1, 2), (1, 2), (10, 20), (1, 20))
    second = GroupFigures("sum", 4, 1, (1, 0, 5), (3, 5), (10, 0, 60), (3, 60))
    (told,) = state_of([part(0, 30, first), part(1, 70, second)])
    assert [(one.first, one.last, one.entries, one.bytes) for one in told.key_groups] == [
        (0, 0, 1, 10),
        (1, 1, 3, 30),
        (2, 2, 0, 0),
        (3, 3, 5, 60),
    ]
    assert (told.bytes, told.entries, told.subtasks, told.max_parallelism) == (100, 9, 2, 4)
    assert (told.skew, told.skew_of, told.largest) == (2.4, "bytes", 3)
    assert told.subtask_skew == 1.4


def test_without_bytes_it_goes_by_keys() -> None:
    native = GroupFigures("sum", 4, 0, (1, 3), (1, 3))
    full = GroupFigures("sum", 4, 2, (0, 4), (3, 4), (0, 90), (3, 90))
    (told,) = state_of([part(0, 30, native), part(1, 90, full)])
    assert (told.skew, told.skew_of, told.largest) == (2.0, "entries", 3)
    assert [one.bytes for one in told.key_groups] == [None] * 4


def test_state_without_keys_is_told_too() -> None:
    (told,) = state_of([SubtaskCheckpoint("in[0]", 1.0, SnapshotFigures(), {"in": 12}, 0)])
    assert (told.uid, told.bytes, told.key_groups, told.skew) == ("in", 12, [], None)


def test_subtasks_that_hold_nothing_count_in_the_mean() -> None:
    """One key, in one of four subtasks: nothing could be less even."""
    others = [
        SubtaskCheckpoint(subtask, 1.0, SnapshotFigures(), {}, 0) for subtask in ("sum[0]", "sum[2]", "sum[3]", "in[0]")
    ]
    (told,) = state_of([*others, part(1, 30, GroupFigures("sum", 4, 1, (1,), (1, 1), (30,), (1, 30)))])
    assert (told.subtasks, told.subtask_skew, told.skew) == (4, 4.0, 4.0)


async def test_a_job_tells_how_its_state_is_spread(tmp_path: Path) -> None:
    """By checkpoint, and by the keys' own groups; a savepoint counts too."""
    async with running(tmp_path, feed := Feed()) as (job, api):
        assert await api.get("/state") == {"checkpoint": None, "operators": []}
        feed.put(*range(10))
        await taken(job, 10)
        await job.checkpoint()
        told = await api.get("/state")
        (state,) = [each for each in told["operators"] if each["uid"] == "sum"]
        assert told["checkpoint"] == 1 and state["entries"] == 2 and state["max_parallelism"] == 128
        filled = [each for each in state["key_groups"] if each["entries"]]
        groups = sorted(key_group(key, 128) for key in (0, 1))
        assert [each["first"] <= group <= each["last"] for each, group in zip(filled, groups, strict=True)] == [
            True
        ] * 2
        assert sum(each["bytes"] for each in filled) == state["bytes"] and state["largest"] in groups
        assert state["skew"] == pytest.approx(128 * max(each["bytes"] for each in filled) / state["bytes"], abs=0.001)
        metrics = (await api.client.get("/metrics")).text
        assert f'streamactors_state_key_group_skew_ratio{{job="sums",operator="sum"}} {state["skew"]}' in metrics
        await job.savepoint(str(tmp_path / "saved" / "one"))
        await until(lambda: len(job.checkpoints) == 3)  # the one that commits what the sink has prepared
        assert (await api.get("/state"))["checkpoint"] == 3
        assert [bool(groups_in(info)) for info in job.checkpoints] == [False, False, True]
        feed.fail(OSError("gone"))
        await until(lambda: job.restarts == 1 and job.status == "running")
        feed.put(*range(10))
        await taken(job, 10)
        assert (await api.get("/state"))["checkpoint"] == 3
        await job.checkpoint()
        again = await api.get("/state")
        assert again["checkpoint"] == job.checkpoints[-1].id > 3
        (restored,) = [each for each in again["operators"] if each["uid"] == "sum"]
        assert [one["entries"] for one in restored["key_groups"]] == [one["entries"] for one in state["key_groups"]]


def groups_in(info: sa.CheckpointInfo) -> Any:
    return [figures for each in info.subtasks for figures in each.groups]


async def test_rocksdb_tells_keys_by_its_files_and_bytes_by_a_savepoint(tmp_path: Path) -> None:
    """And after a restore with another parallelism, all of it again."""
    pytest.importorskip("rocksdict")
    settings, feed = config(tmp_path), Feed()

    async def told(parallelism: int) -> list[Any]:
        by_rocksdb = sa.Config(
            parallelism=parallelism, checkpoints=settings.checkpoints, restart=settings.restart, state_backend="rocksdb"
        )
        async with (
            sa.start(flow_of(feed), by_rocksdb, on_exit="cancel") as job,
            served(job, "127.0.0.1:0") as where,
            client_at(where) as api,
        ):
            feed.put(*range(10))
            await taken(job, 10)
            await job.checkpoint()
            native = await api.get("/state")
            await job.stop(savepoint=str(tmp_path / f"saved-{parallelism}"))
            both = [native, await api.get("/state")]
            return [each for one in both for each in one["operators"] if each["uid"] == "sum"]

    for parallelism in (2, 3):
        native, full = await told(parallelism)
        assert (native["skew_of"], native["skew"], full["skew_of"]) == ("entries", 64.0, "bytes")
        assert [each["entries"] for each in native["key_groups"]] == [each["entries"] for each in full["key_groups"]]
        assert {each["bytes"] for each in native["key_groups"]} == {None}
