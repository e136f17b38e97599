"""Detached jobs that are looked for by name, while their coordinators die and come back."""

import msgspec
import pytest

from streamactors.clock import SYSTEM
from streamactors.deploy.detached import END_KEPT, Answer, Ending, ending_key, submission_key
from streamactors.deploy.lookup import DetachedJobs
from streamactors.errors import ConnectionLost, JobNotRunning
from tests.deploy.keepers import Store


class Coordinator:
    """Answers, after as many calls as it is being started again for; or is gone."""

    def __init__(self, unavailable: int = 0, *, gone: bool = False) -> None:
        self.unavailable = unavailable
        self._gone = gone

    async def request(self, method: str, path: str, body: bytes) -> Answer | None:
        if self.unavailable:
            self.unavailable -= 1
            raise ConnectionLost("it is being started again")
        return None if self._gone else (200, f"{method} {path}".encode())


def jobs(coordinators: dict[str, Coordinator], stored: dict[str, bytes]) -> DetachedJobs:
    async def find(flow: str) -> Coordinator | None:
        return coordinators.get(flow)

    return DetachedJobs(Store(stored), find, SYSTEM)


def ended(flow: str, ended_ms: int) -> bytes:
    return msgspec.msgpack.encode(Ending(flow=flow, token="a", ended_ms=ended_ms, status="finished"))


def test_those_that_run_are_listed() -> None:
    stored = {submission_key(flow, "a"): b"" for flow in ("shop", "a/b", "killed")}
    assert jobs({"shop": Coordinator(), "a/b": Coordinator()}, stored).flows() == ["a/b", "shop"]


def test_a_question_waits_for_a_coordinator_that_comes_back() -> None:
    assert jobs({"shop": Coordinator(1)}, {}).ask("shop", "GET", "/v1/jobs", b"", 60) == (200, b"GET /v1/jobs")


def test_an_order_is_not_given_twice() -> None:
    coordinator = Coordinator(1)
    with pytest.raises(ConnectionLost, match="whether it was done is not known: look, and ask again"):
        jobs({"shop": coordinator}, {}).ask("shop", "POST", "/v1/stop", b"", 60)
    assert not coordinator.unavailable


@pytest.mark.parametrize("coordinators", [{}, {"shop": Coordinator(gone=True)}], ids=["none", "gone"])
def test_what_does_not_run_is_told(coordinators: dict[str, Coordinator]) -> None:
    with pytest.raises(JobNotRunning, match="'shop' is not running any more"):
        jobs(coordinators, {}).ask("shop", "GET", "/v1/jobs", b"", 60)


def test_an_end_is_told_for_a_day() -> None:
    now = SYSTEM.time_ms()
    stored = {ending_key("new"): ended("new", now), ending_key("old"): ended("old", now - int(END_KEPT * 1000) - 1)}
    found = jobs({}, stored)
    new = found.ending("new")
    assert new is not None and new.status == "finished" and found.ending("old") is None
    assert list(stored) == [ending_key("new")]


def test_one_that_was_killed_for_good_is_told_so() -> None:
    stored = {submission_key("shop", "a"): b""}
    assert jobs({"shop": Coordinator()}, stored).ending("shop") is None
    killed = jobs({}, stored).ending("shop")
    assert killed is not None and killed.status == "failed" and "was killed" in str(killed.error)
    assert list(stored) == [ending_key("shop")]
