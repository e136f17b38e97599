"""What the driver does where the coordinator dies while it is asked: one that is started again knows of nothing."""

import datetime as dt
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.memory import ListSink
from streamactors.clock import SYSTEM
from streamactors.cluster.held import HeldJob
from streamactors.cluster.hosted import Follow, JobHost, NextValues, Request, StopJob, TakeSavepoint, Unfollow
from streamactors.deploy.ray import _RayHost, dumps, loads
from streamactors.errors import CheckpointFailed, ConnectionLost, JobFailed
from streamactors.runtime.job import JobSpec
from streamactors.submission import deployed_job, job_here
from tests.runtime.feeds import Feed


class Mortal:
    """Stands for a coordinator's actor, which dies of the first request."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.died = False

    def __getattr__(self, method: str) -> Any:
        return Method(self, method)


class Method:
    def __init__(self, actor: Mortal, name: str) -> None:
        self._actor = actor
        self._name = name

    async def remote(self, arguments: bytes) -> bytes:
        actor, [first, *_] = self._actor, loads(arguments)
        actor.calls.append("begin" if isinstance(first, JobSpec) else first)
        if self._name == "ask" and not actor.died:
            actor.died = True
            raise ActorUnavailableError("it has died", None)
        return dumps((True, True))


def flow_of(feed: Feed) -> sa.Dataflow:
    flow = sa.Dataflow("numbers")
    flow.source("numbers", feed).sink("out", ListSink[int]())
    return flow


def host(**config: Any) -> tuple[_RayHost, Mortal]:
    job = job_here(flow_of(Feed()).graph(), sa.Config(**config), restore="latest", fresh=False, resources=None)
    asking, actor = _RayHost(dataless(job._spec), sa.Ray(workers=1), SYSTEM), Mortal()
    asking._actor = actor
    return asking, actor


def dataless(spec: JobSpec) -> JobSpec:
    """What can be sent: the flow is nobody's here."""
    return JobSpec(spec.name, max, spec.config)  # type: ignore[arg-type]


STORED: Any = {"checkpoints": sa.Checkpoints("/nowhere", interval=dt.timedelta(seconds=1))}


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
