"""`streamactors run --detach`, and finding detached jobs by name: over a cluster that is a thread of this process."""

import asyncio
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from streamactors.cli.commands import app
from streamactors.deploy import elsewhere
from streamactors.deploy.detached import Answer, Ending, ending_key
from streamactors.errors import ClusterUnfit, ConnectionLost, JobNotRunning
from tests.deploy.keepers import Cluster, Life, submission
from tests.runtime.feeds import PATIENCE

ADDRESS = "10.0.0.1:6379"
FLOW = """
import streamactors as sa
from connectors.memory import ListSink, ListSource

flow = sa.Dataflow("orders")
flow.source("in", ListSource([1])).sink("out", ListSink())
"""


class Elsewhere:
    """A cluster with one detached job, in a loop of its own. `silent`: asks that come to nothing. `speechless`: what
    is asked for is done, and the answer lost."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster()
        self.silent = 0
        self.speechless = False
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._life: Life | None = None

    def __enter__(self) -> "Elsewhere":
        self._thread.start()
        try:
            self._await(self._begin())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._await(self._end())
        finally:
            self._close()

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    async def _begin(self) -> None:
        self._life = Life(self.cluster)
        await self._life.keeper.begin(self.cluster.ship(submission(self._folder)))

    async def _end(self) -> None:
        assert self._life is not None
        await self._life.keeper.request("POST", "/v1/jobs/shop/cancel", b"")  # it may have ended already
        await self._life.running

    # As it is seen: see `deploy.detached.Cluster`.
    def flows(self) -> list[str]:
        return [] if ending_key("shop") in self.cluster.values else ["shop"]

    def ask(self, flow: str, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
        if self.silent:
            self.silent -= 1
            raise ConnectionLost("the coordinator of 'shop' has died meanwhile")
        assert self._life is not None and flow == "shop"
        answer: Answer | None = self._await(self._life.keeper.request(method, path, body))
        if answer is None or (self.speechless and method == "POST"):
            raise JobNotRunning("job 'shop' is not running any more")
        return answer

    def ending(self, flow: str) -> Ending | None:
        stored = self.cluster.values.get(ending_key(flow))
        return None if stored is None else msgspec.msgpack.decode(stored, type=Ending)


@pytest.fixture
def away(tmp_path: Path, registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with Elsewhere(tmp_path) as away:

        @contextmanager
        def joined(address: str) -> Iterator[Elsewhere]:
            if address != ADDRESS:
                raise ClusterUnfit(f"ray.address = {address!r}: no Ray cluster answers there")
            yield away

        monkeypatch.setattr(elsewhere, "cluster_at", joined)
        yield away


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Elsewhere) -> Elsewhere:
    """Whoever looks has another registry than the job."""
    looks = tmp_path / "looks"
    looks.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(looks))
    monkeypatch.setattr(tempfile, "tempdir", str(looks))
    return away


def told(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def told_json(*args: str) -> Any:
    result = told(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("other_machine")
def test_a_detached_job_is_found_by_its_name(tmp_path: Path) -> None:
    assert told("list").stdout == "No job runs.\n"
    assert told("status", "shop").exit_code == 2
    (listed,) = told_json("list", "--ray", ADDRESS)
    assert (listed["name"], listed["status"], listed["target"]) == ("shop", "running", "jobs:flow")
    status = told_json("status", "shop", "--ray", ADDRESS)
    assert status["pid"] == listed["pid"] and status["operators"][0]["uid"] == "orders"
    savepoint = (tmp_path / "savepoint").as_uri()
    assert told_json("savepoint", "shop", savepoint, "--ray", ADDRESS)["uri"] == savepoint
    assert told_json("checkpoint", "--ray", ADDRESS)["kind"] == "checkpoint"
    ended = told("stop", "shop", "--ray", ADDRESS)
    assert "shop: finished; last checkpoint" in ended.stdout and "streamactors run jobs:flow" in ended.stdout


@pytest.mark.usefixtures("other_machine")
def test_how_it_ended_is_told_afterwards() -> None:
    cancelled = told_json("cancel", "shop", "--yes", "--ray", ADDRESS)
    assert cancelled["status"] == "cancelled"
    last = told("status", "shop", "--ray", ADDRESS)
    assert last.exit_code == 0 and "shop has ended" in last.stdout and "ago: cancelled" in last.stdout
    assert told_json("status", "shop", "--ray", ADDRESS)["status"] == "cancelled"
    stopped = told("stop", "shop", "--ray", ADDRESS)
    assert stopped.exit_code == 2 and "job 'shop' does not run any more: cancelled" in stopped.stderr
    assert told("list", "--ray", ADDRESS).stdout == "No job runs.\n"


def test_an_end_that_was_stored_answers_for_one_who_could_not(other_machine: Elsewhere) -> None:
    other_machine.speechless = True
    assert told_json("stop", "shop", "--ray", ADDRESS)["status"] == "finished"


def test_on_its_own_node_it_is_there_once(away: Elsewhere) -> None:
    assert len(told_json("list", "--ray", ADDRESS)) == 1
    away.silent = 10
    assert told_json("status", "shop")["status"] == "running"  # without the cluster


def test_a_coordinator_that_does_not_answer_is_named(other_machine: Elsewhere) -> None:
    other_machine.silent = 1
    listed = told("list", "--ray", ADDRESS)
    assert listed.exit_code == 0 and "shop: its coordinator does not answer" in listed.stderr


@pytest.mark.usefixtures("other_machine")
def test_the_environment_names_the_cluster_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ADDRESS)
    assert told_json("status")["name"] == "shop"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    listed = told("list")
    assert listed.exit_code == 0 and "warning: RAY_ADDRESS: ray.address = '10.0.0.2:6379'" in listed.stderr
    assert told("list", "--ray", "10.0.0.2:6379").exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "runs in this very process, and ends with it"),
        (("deployment=ray", "ray.workers=2"), "say which cluster to join"),
        (("deployment=ray", "ray.workers=2", "ray.address=local"), "say which cluster to join"),
    ],
)
def test_what_would_end_with_this_process_is_not_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refused = detach(tmp_path, monkeypatch, *[option for each in options for option in ("--set", each)])
    assert refused.exit_code == 2 and message in " ".join(refused.stderr.split())


@pytest.mark.parametrize("option", ["--dashboard", "--no-control", "--listen=127.0.0.1:0", "--report-every=1s"])
def test_what_only_a_program_that_stays_can_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    ray = ("--set", "deployment=ray", "--set", "ray.workers=2", "--set", f"ray.address={ADDRESS}")
    refused = detach(tmp_path, monkeypatch, *ray, option)
    assert refused.exit_code == 2 and f"{option.partition('=')[0]} does not go with --detach" in refused.stderr


def detach(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    (folder / "one_order.py").write_text(FLOW)
    monkeypatch.chdir(folder)
    return told("run", "--detach", "--quiet", "one_order:flow", *options)
