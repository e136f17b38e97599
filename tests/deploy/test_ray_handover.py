"""A driver whose predecessor has just died, so that the name is taken; or whose coordinator dies as it begins. And
which workers have ended, by what Ray says of them."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from streamactors.clock import SYSTEM
from streamactors.deploy import ray as deployed
from streamactors.deploy.peers import PeerWire
from streamactors.deploy.versions import about
from streamactors.errors import ClusterUnfit, ConnectionLost, InvalidConfig, JobFailed
from tests.programs import PATIENCE

MADE = object()


class Names:
    """Stands for the cluster, where the name is taken for a while."""

    def __init__(self, taken: int, held: bool) -> None:
        self.tries = 0
        self._taken = taken
        self._held = held

    async def created(self, *_: Any) -> object:
        self.tries += 1
        if self.tries <= self._taken:
            raise ConnectionLost("there is an actor of that name already")
        return MADE

    async def held(self, *_: Any) -> bool:
        return self._held


def cluster(monkeypatch: pytest.MonkeyPatch, taken: int, *, held: bool) -> Names:
    names = Names(taken, held)
    monkeypatch.setattr(deployed, "_created", names.created)
    monkeypatch.setattr(deployed, "_held", names.held)
    return names


async def start() -> object:
    return await deployed._coordinator(deployed.StreamactorsCoordinator, "orders", SYSTEM)


async def test_a_coordinator_whose_driver_has_died_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    names = cluster(monkeypatch, taken=3, held=False)
    assert await start() is MADE
    assert names.tries == 4


async def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed, "HANDOVER", 0.0)
    cluster(monkeypatch, taken=1, held=False)
    with pytest.raises(InvalidConfig, match="the job 'orders' runs on this cluster already"):
        await start()


async def test_one_that_is_held_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    names = cluster(monkeypatch, taken=1, held=True)
    with pytest.raises(InvalidConfig, match="the job 'orders' runs on this cluster already"):
        await start()
    assert names.tries == 1


async def test_it_is_held_as_long_as_its_driver_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = deployed.StreamactorsCoordinator()
    assert await coordinator.held()
    monkeypatch.setattr(deployed, "LET_GO", 0.0)
    assert not await coordinator.held()
    monkeypatch.undo()
    await coordinator.tell(deployed.dumps(()))
    assert await coordinator.held()


UNMADE = RayTaskError("__init__", "Traceback", ImportError("no module"))  # type: ignore[no-untyped-call]


class Detached(deployed.StreamactorsDetachedCoordinator):
    """Outside of Ray. `keeping`: its keeper."""

    def __init__(self, keeping: Any) -> None:
        self._made = keeping


async def test_a_detached_one_is_held_once_it_has_a_job() -> None:
    assert not await Detached(None).held()
    assert not await Detached(SimpleNamespace(has_job=False)).held()
    assert await Detached(SimpleNamespace(has_job=True)).held()


class Head:
    """Stands for the cluster's, which takes its time to make an actor."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.killed: list[object] = []
        self._failure = failure

    def make(self) -> object:
        self.asked.set()
        assert self.may_answer.wait(PATIENCE)
        if self._failure is not None:
            raise self._failure
        return MADE

    def kill(self, actor: object, *, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(actor)


async def test_the_loop_goes_on_while_the_head_makes_an_actor() -> None:
    head = Head()
    making = asyncio.ensure_future(deployed._made(head.make, SYSTEM))
    while not head.asked.is_set():
        await asyncio.sleep(0.001)
    head.may_answer.set()
    assert await making is MADE


@pytest.mark.parametrize(("failure", "killed"), [(None, [MADE]), (ConnectionLost("the head is gone"), [])])
async def test_who_is_cancelled_meanwhile_leaves_no_actor(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None, killed: list[object]
) -> None:
    head = Head(failure)
    monkeypatch.setattr("ray.kill", head.kill)
    making = asyncio.ensure_future(deployed._made(head.make, SYSTEM))
    await asyncio.to_thread(head.asked.wait, PATIENCE)
    for _ in range(2):  # impatiently
        making.cancel()
        await asyncio.sleep(0)
    head.may_answer.set()
    await asyncio.wait([making])
    assert making.cancelled() and head.killed == killed


class Beginning:
    """Stands for an actor that dies as it is asked to begin."""

    def __init__(self, death: RayActorError) -> None:
        self.asked = 0
        self._death = death

    @property
    def begin(self) -> "Beginning":
        return self

    @property
    def about(self) -> "Beginning":
        return self

    async def remote(self, arguments: bytes | None = None) -> Any:
        if arguments is None:
            return about()
        self.asked += 1
        if self.asked == 1:
            raise self._death
        return deployed.dumps((True, None))


@pytest.mark.parametrize(
    ("death", "error"),
    [
        (ActorUnavailableError("it has died", None), ConnectionLost),
        (ActorDiedError(), JobFailed),
        (ActorDiedError(UNMADE), ClusterUnfit),
    ],
    ids=["started again", "gone for good", "not to be started"],
)
async def test_what_a_coordinator_has_died_of_on_starting_is_told(death: RayActorError, error: type[Exception]) -> None:
    coordinator = deployed._RayCoordinator(Beginning(death))
    with pytest.raises(error):
        await coordinator.begin(b"")
    assert await coordinator.begin(b"") == deployed.dumps((True, None))


async def test_one_that_dies_later_may_be_started_again() -> None:
    with pytest.raises(ConnectionLost, match="ActorDiedError"):
        await deployed._RayCoordinator(Beginning(ActorDiedError())).call("begin", b"")


class Told:
    """Stands for a coordinator's actor that is asked for its incarnation."""

    def __init__(self, answer: str | RayActorError) -> None:
        self._answer = answer

    @property
    def incarnation(self) -> "Told":
        return self

    async def remote(self) -> str:
        if isinstance(self._answer, RayActorError):
            raise self._answer
        return self._answer


async def test_which_coordinator_it_is() -> None:
    assert await deployed._RayCoordinator(Told("one")).incarnation() == "one"
    assert await deployed._RayCoordinator(Told(ActorDiedError())).incarnation() is None
    with pytest.raises(ConnectionLost, match="it is cut off"):
        await deployed._RayCoordinator(Told(ActorUnavailableError("it is cut off", None))).incarnation()


class Living:
    """Stands for a worker's actor. `end`: of the call that tells of its end."""

    def __init__(self, end: RayActorError) -> None:
        self._end = end

    @property
    def live(self) -> "Living":
        return self

    async def remote(self) -> None:
        raise self._end


@pytest.mark.parametrize(
    ("end", "ended"),
    [(ActorDiedError(), True), (RayActorError(), False)],
    ids=["dead", "for no known reason"],
)
async def test_only_what_ray_calls_dead_has_ended(end: RayActorError, ended: bool) -> None:
    member = deployed._RayMember(0, Living(end), None, PeerWire(0))
    assert (await member.gone())[1] is ended


async def test_what_is_out_of_reach_may_come_back() -> None:
    member = deployed._RayMember(0, Living(ActorUnavailableError("it is cut off", None)), None, PeerWire(0))
    with pytest.raises(ConnectionLost, match="it is cut off"):
        await member.gone()
