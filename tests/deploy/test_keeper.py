"""A job that nobody holds, and keepers of it that die at bad moments: here in one process, over a store in memory."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

import streamactors as sa
from streamactors.deploy import keeper as keeper_module
from streamactors.deploy.detached import Answer, Ending, ending_key, keeper_key, submission_key
from streamactors.deploy.keeper import Attended
from streamactors.errors import ConnectionLost
from streamactors.graph.parallelism import widths
from streamactors.observe import model
from streamactors.observe.detached import attended
from streamactors.runtime.handled import HandledJob
from tests.deploy.keepers import TOKEN, Cluster, Life, expected, order, submission, totals
from tests.runtime.feeds import PATIENCE, until

KEY, HELD = submission_key("shop", TOKEN), keeper_key("shop", TOKEN)


@pytest.fixture(autouse=True)
def registry_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))


async def test_it_is_kept_to_its_end_and_asked_meanwhile(tmp_path: Path) -> None:
    order(tmp_path, 9)
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.keeper.begin(cluster.ship(submission(tmp_path)))
        assert set(cluster.values) == {KEY, HELD}
        await until(lambda: totals(tmp_path) == expected(9))
        status, told = await life.ask("GET", "/v1/jobs/shop")
        assert (status, told["status"], told["target"]) == (200, "running", "jobs:flow")
        assert (await life.ask("GET", "/v1/jobs/shop/events"))[0] == 501
        assert (await life.ask("GET", "/v1/nothing"))[0] == 404
        target = (tmp_path / "savepoint").as_uri()
        assert (await life.ask("POST", "/v1/jobs/shop/savepoints", uri=target))[1]["uri"] == target
        status, ended = await life.ask("POST", "/v1/jobs/shop/stop", drain=False)
        assert (status, ended["status"]) == (200, "finished")
        assert cluster.ending is not None  # before anybody was answered
        await life.running
    assert list(cluster.values) == [ending_key("shop")]
    assert (cluster.ending.status, cluster.ending.error) == ("finished", None)
    assert cluster.ending.told is not None
    last = msgspec.json.decode(cluster.ending.told, type=model.JobStatus)
    assert last.status == "finished" and last.last_checkpoint is not None


async def test_whoever_comes_after_a_dead_keeper_goes_on_exactly_once(tmp_path: Path) -> None:
    cluster, ordered = Cluster(), 0
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.keeper.begin(cluster.ship(submission(tmp_path)))
        for _ in range(3):
            ordered += order(tmp_path, 30)
            await until(lambda wanted=ordered: len(totals(tmp_path)) >= wanted)  # type: ignore[misc]
            ordered += order(tmp_path, 30)
            await life.die()
            life = Life(cluster)
        await until(lambda: len(totals(tmp_path)) >= ordered)
        await life.ask("POST", "/v1/jobs/shop/stop", drain=False)
        await life.running
    assert len(cluster.jobs) == 4 and totals(tmp_path) == expected(ordered)
    assert cluster.ending is not None and cluster.ending.status == "finished"


async def test_a_rescale_outlives_its_keeper_and_not_a_new_start(tmp_path: Path) -> None:
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.keeper.begin(cluster.ship(submission(tmp_path)))
        assert (await life.ask("POST", "/v1/jobs/shop/rescale", steps={"totals": 2}))[0] == 200
        stored = cluster.jobs[0].checkpoints_completed
        await until(lambda: cluster.jobs[0].checkpoints_completed > stored)
        for _ in range(2):
            await life.die()
            life = Life(cluster)
            await until(lambda: cluster.jobs[-1].status == "running")
            assert totals_width(cluster) == 2
        await life.ask("POST", "/v1/jobs/shop/stop", drain=False)
        await life.running
        life = Life(cluster, token="another")
        await life.keeper.begin(cluster.ship(submission(tmp_path)))
        assert totals_width(cluster) == 3
        await life.ask("POST", "/v1/jobs/shop/cancel")
        await life.running
    assert len(cluster.jobs) == 4


def totals_width(cluster: Cluster) -> int:
    plan = cluster.jobs[-1].plan
    assert plan is not None
    return widths(plan)["totals"]


async def test_what_was_said_to_have_ended_does_not_begin_again(tmp_path: Path) -> None:
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        life.store.dies_before = lambda method, key: (method, key) == ("delete", KEY)
        await life.keeper.begin(cluster.ship(submission(tmp_path)))
        assert (await life.ask("POST", "/v1/jobs/shop/stop", drain=False))[0] == 200
        await life.running
        assert set(cluster.values) == {KEY, HELD, ending_key("shop")}
        await Life(cluster).running
    assert len(cluster.jobs) == 1 and list(cluster.values) == [ending_key("shop")]


async def test_dead_before_it_had_stored_what_to_run_it_is_told_again(tmp_path: Path) -> None:
    cluster = Cluster()
    shipped = cluster.ship(submission(tmp_path))
    async with asyncio.timeout(PATIENCE):
        first = Life(cluster)
        first.store.dies_before = lambda method, key: (method, key) == ("put", KEY)
        with pytest.raises(ConnectionLost):
            await first.keeper.begin(shipped)
        with pytest.raises(ConnectionLost):
            await first.running
        assert KEY not in cluster.values and not cluster.jobs
        life = Life(cluster)
        await life.keeper.begin(shipped)
        await life.keeper.begin(shipped)  # its answer was lost
        await life.ask("POST", "/v1/jobs/shop/cancel")
        await life.running
    assert len(cluster.jobs) == 1
    assert cluster.ending is not None and (cluster.ending.status, cluster.ending.error) == ("cancelled", None)


async def savepoint_in(folder: Path, cluster: Cluster) -> str:
    """Of a job that has counted nine orders."""
    life = Life(cluster, token="before")
    await life.keeper.begin(cluster.ship(submission(folder)))
    await until(lambda: len(totals(folder)) >= 9)
    _, ended = await life.ask("POST", "/v1/jobs/shop/stop", savepoint=(folder / "savepoint").as_uri(), drain=False)
    await life.running
    return str(ended["checkpoint"]["uri"])


async def test_a_job_that_was_restored_goes_on_from_its_own_checkpoints(tmp_path: Path) -> None:
    ordered = order(tmp_path, 9)
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        uri = await savepoint_in(tmp_path, cluster)
        life = Life(cluster)
        await life.keeper.begin(cluster.ship(submission(tmp_path, restore=uri)))
        ordered += order(tmp_path, 9)
        await until(lambda: len(totals(tmp_path)) >= ordered)
        await life.die()
        life = Life(cluster)
        ordered += order(tmp_path, 9)
        await until(lambda: len(totals(tmp_path)) >= ordered)
        await life.ask("POST", "/v1/jobs/shop/stop", drain=False)
        await life.running
    assert totals(tmp_path) == expected(ordered)


async def test_dead_before_it_ran_a_restored_job_is_not_restored_once_more(tmp_path: Path) -> None:
    order(tmp_path, 9)
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        uri = await savepoint_in(tmp_path, cluster)
        cluster.values[KEY] = cluster.ship(submission(tmp_path, restore=uri))
        life = Life(cluster)
        await life.running
        with pytest.raises(sa.JobFailed, match="died before the job ran.*start it again"):
            await life.keeper.begin(b"")
    assert cluster.ending is not None and cluster.ending.status == "failed"
    assert cluster.ending.error is not None and "died before the job ran" in cluster.ending.error
    assert list(cluster.values) == [ending_key("shop")]


async def test_what_keeps_it_from_running_is_raised_and_stored(tmp_path: Path) -> None:
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        with pytest.raises(sa.StreamactorsError, match="nowhere"):
            await life.keeper.begin(cluster.ship(submission(tmp_path, restore=(tmp_path / "nowhere").as_uri())))
        await life.running
    assert cluster.ending is not None and cluster.ending.status == "failed"
    assert cluster.ending.error is not None and "nowhere" in cluster.ending.error


async def test_a_job_that_fails_later_tells_why(tmp_path: Path) -> None:
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.keeper.begin(cluster.ship(submission(tmp_path)))
        (tmp_path / "orders.jsonl").write_text("no JSON\n")
        await life.running
    assert cluster.ending is not None and cluster.ending.status == "failed"
    assert cluster.ending.error is not None and "orders.jsonl:1" in cluster.ending.error


async def test_a_keeper_that_nobody_tells_anything_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "TOLD_WITHIN", 0.0)
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.running
        with pytest.raises(sa.JobNotRunning):
            await life.keeper.begin(b"")
    assert not cluster.values and await life.keeper.request("GET", "/v1/jobs", b"") is None


async def test_whether_it_has_a_job_is_known_as_soon_as_it_is_told_or_was(tmp_path: Path) -> None:
    """Whoever wants the name would wait for one that has none, whose driver has died, and not be refused."""
    cluster = Cluster()
    order(tmp_path, 3)
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await until(lambda: bool(cluster.values))
        assert not life.keeper.has_job
        begun = asyncio.ensure_future(life.keeper.begin(cluster.ship(submission(tmp_path))))
        await until(lambda: life.keeper.has_job)
        await begun
        await life.die()
        successor = Life(cluster)
        await until(lambda: successor.keeper.has_job)
        await successor.die()


async def test_there_is_one_job_of_a_name(tmp_path: Path) -> None:
    cluster = Cluster()
    killed, other = submission_key("shop", "killed"), submission_key("shop/2", "other")
    before = Ending(flow="shop", token="killed", ended_ms=0, status="finished")
    cluster.values |= {killed: b"0", keeper_key("shop", "killed"): b"", other: b"0"}
    cluster.values[ending_key("shop")] = msgspec.msgpack.encode(before)
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.keeper.begin(cluster.ship(submission(tmp_path)))
        assert set(cluster.values) == {KEY, HELD, other}
        await life.ask("POST", "/v1/jobs/shop/cancel")
        await life.running


async def test_a_keeper_that_was_taken_for_dead_leaves_the_end_to_its_successor(tmp_path: Path) -> None:
    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        cut_off = Life(cluster)
        await cut_off.keeper.begin(cluster.ship(submission(tmp_path)))
        cluster.values[HELD] = b"its successor"
        await cut_off.ask("POST", "/v1/jobs/shop/cancel")
        await cut_off.running
    assert set(cluster.values) == {KEY, HELD} and cluster.values[HELD] == b"its successor"


async def test_what_takes_no_checkpoints_does_not_begin_twice(tmp_path: Path) -> None:
    cluster = Cluster()
    made = submission(tmp_path)
    config = dataclasses.replace(made.spec.config, checkpoints=None)
    shipped = cluster.ship(dataclasses.replace(made, spec=dataclasses.replace(made.spec, config=config)))
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.keeper.begin(shipped)
        await life.die()
        await Life(cluster).running
    assert len(cluster.jobs) == 1 and cluster.ending is not None and cluster.ending.status == "failed"
    assert cluster.ending.error is not None and "takes no checkpoints" in cluster.ending.error


async def test_what_is_given_up_as_the_job_ends_has_no_answer(tmp_path: Path) -> None:
    @asynccontextmanager
    async def attend(job: HandledJob, task: "asyncio.Task[None]") -> AsyncIterator[Attended]:
        async with attended(job, task) as control:
            yield Leaving(control)

    cluster = Cluster()
    async with asyncio.timeout(PATIENCE):
        life = Life(cluster)
        await life.keeper.begin(cluster.ship(dataclasses.replace(submission(tmp_path), attend=attend)))
        assert await life.keeper.request("POST", "/v1/jobs/shop/savepoints", b"") is None
        await life.ask("POST", "/v1/jobs/shop/cancel")
        await life.running


class Leaving:
    """A control that gives up savepoints, as each does with what is under way when its job has ended."""

    def __init__(self, control: Attended) -> None:
        self._control = control

    async def status(self) -> bytes:
        return await self._control.status()

    async def ask(self, method: str, path: str, body: bytes) -> Answer:
        if path.endswith("savepoints"):
            raise asyncio.CancelledError
        return await self._control.ask(method, path, body)
