"""What the driver does where the coordinator dies while it is asked: one that is started again knows of nothing."""

import dataclasses
import datetime as dt
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.memory import ListSink
from streamactors.clock import SYSTEM
from streamactors.cluster.held import HeldJob
from streamactors.cluster.hosted import Follow, JobHost, NextValues, Request, StopJob, TakeSavepoint, Unfollow
from streamactors.deploy.driver import RemoteHost
from streamactors.errors import CheckpointFailed, ConnectionLost, JobFailed
from streamactors.runtime.job import JobSpec
from streamactors.submission import deployed_job, job_here
from tests.runtime.feeds import Feed


class Mortal:
    """Stands for a coordinator, which dies of the first request. What it is sent stays what it is. `out_of_reach`: it
    does not die, but can't be reached for as many calls after that."""

    def __init__(self, unstarted: Exception | None = None, out_of_reach: int | None = None) -> None:
        self.calls: list[Any] = []
        self.died = False
        self.gone = False
        self._lives = 1
        self._unstarted = unstarted
        self._out_of_reach = out_of_reach

    async def incarnation(self) -> str | None:
        if self._out_of_reach:
            self._out_of_reach -= 1
            raise ConnectionLost("it is out of reach")
        return None if self.gone else str(self._lives)

    async def begin(self, arguments: Any) -> Any:
        if self._unstarted is not None:
            raise self._unstarted
        return await self.call("begin", arguments)

    async def begin_again(self, arguments: Any) -> Any:
        return await self.call("begin", arguments)

    async def call(self, method: str, arguments: Any) -> Any:
        [first, *_] = arguments
        self.calls.append(first if method == "ask" else method)
        if method == "ask" and not self.died:
            self.died = True
            self._lives += self._out_of_reach is None
            raise ConnectionLost("it has died")
        return True, str(self._lives)


def flow_of(feed: Feed) -> sa.Dataflow:
    flow = sa.Dataflow("numbers")
    flow.source("numbers", feed).sink("out", ListSink[int]())
    return flow


def host(*, unstarted: Exception | None = None, **config: Any) -> tuple[RemoteHost, Mortal]:
    return host_of(spec_of(sa.Config(**config)), Mortal(unstarted))


def host_of(spec: JobSpec, actor: Mortal) -> tuple[RemoteHost, Mortal]:
    def same(thing: Any) -> Any:
        return thing

    return RemoteHost(spec, sa.Ray(workers=1), actor, same, same, SYSTEM), actor


def spec_of(config: sa.Config) -> JobSpec:
    return job_here(flow_of(Feed()).graph(), config, restore="latest", fresh=False, resources=None)._spec


STORED: Any = {"checkpoints": sa.Checkpoints("/nowhere", interval=dt.timedelta(seconds=1))}


async def test_a_coordinator_that_dies_as_it_begins_is_asked_again() -> None:
    asking, actor = host(unstarted=ConnectionLost("it has died"), **STORED)
    await asking.begin()
    assert actor.calls == ["begin"]


async def test_one_that_is_gone_for_good_is_not() -> None:
    asking, actor = host(unstarted=JobFailed("the coordinator has died on starting"), **STORED)
    with pytest.raises(JobFailed, match="the coordinator has died on starting"):
        await asking.begin()
    assert not actor.calls


async def test_a_job_that_is_not_to_restart_ends_with_its_coordinator() -> None:
    asking, actor = host()
    with pytest.raises(JobFailed, match="'numbers': the coordinator has died, and restarts are off"):
        await asking.ask(StopJob(drain=False, savepoint=None))
    assert "begin" not in actor.calls


@pytest.mark.parametrize("options", [{"fresh": True}, {"restore": "file:///savepoint"}, {"restore": None}])
async def test_where_nobody_knows_what_to_go_on_from_it_ends(options: dict[str, Any]) -> None:
    asking, actor = host_of(dataclasses.replace(spec_of(sa.Config(**STORED)), **options), Mortal())
    with pytest.raises(JobFailed, match="died before the job ran.*not known whether restore="):
        await asking.ask(StopJob(drain=False, savepoint=None))
    assert "begin" not in actor.calls


async def test_a_stop_is_asked_again_of_the_successor() -> None:
    """It would go on for ever, and whoever waits for its end with it."""
    asking, actor = host(**STORED)
    assert await asking.ask(StopJob(drain=False, savepoint=None))
    assert actor.calls == [StopJob(False, None), "begin", StopJob(False, None)]


@pytest.mark.parametrize(
    ("request_", "error"),
    [(StopJob(False, "/savepoint"), ConnectionLost), (TakeSavepoint("/savepoint"), CheckpointFailed)],
    ids=["stop", "savepoint"],
)
async def test_a_savepoint_is_not_taken_again_in_the_same_folder(request_: Request, error: type[Exception]) -> None:
    """`JobHandle.stop` waits for the job's end where CheckpointFailed is raised; but it goes on."""
    asking, actor = host(**STORED)
    with pytest.raises(error, match="the coordinator has died"):
        await asking.ask(request_)
    assert actor.calls == [request_]


async def test_a_batch_job_is_not_run_again_by_itself() -> None:
    """The first run may have made its output visible, and died before it could say so."""
    asking, actor = host(execution="batch", restart=sa.Restart.fixed(dt.timedelta(0), 3))
    with pytest.raises(JobFailed, match="whether the output is visible is not known"):
        await asking.ask(StopJob(drain=False, savepoint=None))
    assert "begin" not in actor.calls


NOT_AGAIN: list[dict[str, Any]] = [{}, {"execution": "batch", "restart": sa.Restart.fixed(dt.timedelta(0), 3)}]


@pytest.mark.parametrize("config", [*NOT_AGAIN, STORED], ids=["no restarts", "batch", "stored"])
async def test_one_that_was_out_of_reach_for_a_while_has_the_job_still(config: dict[str, Any]) -> None:
    asking, actor = host_of(spec_of(sa.Config(**config)), Mortal(out_of_reach=2))
    await asking.begin()
    assert await asking.ask(StopJob(drain=False, savepoint=None))
    assert actor.calls == ["begin", StopJob(False, None), StopJob(False, None)]


@pytest.mark.parametrize("config", NOT_AGAIN, ids=["no restarts", "batch"])
@pytest.mark.parametrize("gone", [True, False], ids=["nobody", "another"])
async def test_who_is_there_in_its_place_has_not(config: dict[str, Any], gone: bool) -> None:
    asking, actor = host_of(spec_of(sa.Config(**config)), Mortal())
    await asking.begin()
    actor.gone = gone
    with pytest.raises(JobFailed, match="the coordinator has died"):
        await asking.ask(StopJob(drain=False, savepoint=None))
    assert actor.calls == ["begin", StopJob(False, None)]


async def test_one_that_stays_out_of_reach_is_taken_for_dead() -> None:
    asking, _ = host_of(spec_of(sa.Config()), Mortal(out_of_reach=1_000_000))
    asking._settings = sa.Ray(workers=1, patience=dt.timedelta(seconds=0.5))
    await asking.begin()
    with pytest.raises(JobFailed, match="the coordinator has died"):
        await asking.ask(StopJob(drain=False, savepoint=None))


async def test_paths_mean_what_they_mean_where_the_job_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes on the cluster were started elsewhere, and would find an empty storage there."""
    monkeypatch.chdir(tmp_path)
    flow = sa.Dataflow("numbers")
    flow.source("numbers", FileSource("in.jsonl", value=sa.Json())).sink("out", FileSink("out", value=sa.Json()))
    stored = sa.Checkpoints("stored", interval=dt.timedelta(seconds=1))
    config = sa.Config(checkpoints=stored, deployment=sa.Ray(workers=1))
    job = deployed_job(flow.graph(), config, restore="latest", fresh=False, resources=None)
    assert job.config.checkpoints is not None
    assert job.config.checkpoints.storage == (tmp_path / "stored").as_uri()


async def test_savepoints_lie_where_the_asker_means() -> None:
    asking, actor = host(**STORED)
    actor.died = True
    held = HeldJob("numbers", sa.Config(), lambda: nullcontext(asking))
    held._host = asking
    held._hosted.set()
    await held.savepoint("one")
    await held.stop(drain=False, savepoint="two")
    one, two = (Path(name).absolute().as_uri() for name in ("one", "two"))
    assert actor.calls == [TakeSavepoint(one), StopJob(False, two)]


class Succeeded:
    """A host that is lost once it has given a value, and its successor, which knows of no follower."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self._gives: list[Any] = [([1], 0), ConnectionLost("it has died"), ([2], 0), None]

    async def ask(self, request: Request) -> Any:
        self.asked.append(request)
        if isinstance(request, Follow):
            return len(self.asked)
        given = self._gives.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


async def test_a_subscription_outlives_the_coordinator() -> None:
    succeeded = Succeeded()
    held = HeldJob("numbers", sa.Config(), lambda: nullcontext(succeeded))  # type: ignore[arg-type]
    held._host = succeeded  # type: ignore[assignment]
    held._hosted.set()
    subscription = await held.subscribe("map", None, 10)
    assert [value async for value in subscription] == [1, 2]
    follow = Follow("map", None, 10)
    assert succeeded.asked == [follow, NextValues(1), NextValues(1), follow, NextValues(4), NextValues(4)]


async def test_who_followed_another_coordinator_is_told_so() -> None:
    job = job_here(flow_of(Feed()).graph(), sa.Config(), restore="latest", fresh=False, resources=None)
    successor = JobHost(job, SYSTEM)
    with pytest.raises(ConnectionLost, match="knows of no follower"):
        await successor.ask(NextValues(1))
    await successor.ask(Unfollow(1))
