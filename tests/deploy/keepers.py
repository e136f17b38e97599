"""A detached job in one process: its keepers, which may die, and the store in memory that outlives them."""

import asyncio
import datetime as dt
import functools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

import streamactors as sa
from streamactors.clock import SYSTEM
from streamactors.deploy.detached import Ending, ending_key
from streamactors.deploy.keeper import Keeper, Submission
from streamactors.deploy.local import deploy_locally
from streamactors.errors import ConnectionLost
from streamactors.observe.detached import attended
from streamactors.runtime.job import Job, JobSpec
from streamactors.submission import _spec
from tests.deploy.shop import build

TOKEN = "a"


class Cluster:
    """What outlives keepers: their store, and what was shipped."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.shipped: list[Submission] = []
        self.jobs: list[Job] = []

    def ship(self, submission: Submission) -> bytes:
        self.shipped.append(submission)
        return str(len(self.shipped) - 1).encode()

    def unship(self, number: bytes) -> Submission:
        return self.shipped[int(number)]

    @asynccontextmanager
    async def deployed(self, submission: Submission) -> AsyncIterator[Job]:
        self.jobs.append(Job(submission.spec, deploy=deploy_locally, clock=SYSTEM))
        yield self.jobs[-1]

    @property
    def ending(self) -> Ending | None:
        stored = self.values.get(ending_key("shop"))
        return None if stored is None else msgspec.msgpack.decode(stored, type=Ending)


class Store:
    """As one process reaches it: not any more, once that is dead."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self._values = values
        self.dies_before: Callable[[str, str], bool] = lambda method, key: False
        self.dead = False

    def _reached(self, method: str, key: str) -> dict[str, bytes]:
        self.dead = self.dead or self.dies_before(method, key)
        if self.dead:
            raise ConnectionLost("a dead process reaches nothing")
        return self._values

    async def put(self, key: str, value: bytes) -> None:
        self._reached("put", key)[key] = value

    async def get(self, key: str) -> bytes | None:
        return self._reached("get", key).get(key)

    async def delete(self, key: str) -> None:
        self._reached("delete", key).pop(key, None)

    async def keys(self, prefix: str) -> list[str]:
        return [key for key in self._reached("keys", prefix) if key.startswith(prefix)]


class Life:
    """A keeper in a process that may die."""

    def __init__(self, cluster: Cluster, token: str = TOKEN) -> None:
        self.store = Store(cluster.values)
        self.keeper = Keeper("shop", token, self.store, cluster.deployed, cluster.unship, cluster.ship, SYSTEM)
        self.running = asyncio.ensure_future(self.keeper.run())

    async def die(self) -> None:
        """As by SIGKILL: nothing that it still does is seen."""
        self.store.dead = True
        self.running.cancel()
        await asyncio.wait([self.running])

    async def ask(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        answer = await self.keeper.request(method, path, json.dumps(body).encode() if body else b"")
        assert answer is not None
        return answer[0], json.loads(answer[1])


def spec(folder: Path, **given: Any) -> JobSpec:
    config = sa.Config(
        checkpoints=sa.Checkpoints((folder / "checkpoints").as_uri(), interval=dt.timedelta(milliseconds=20)),
        restart=sa.Restart.fixed(dt.timedelta(0), 3),
    )
    asked: dict[str, Any] = {"restore": "latest", "fresh": False} | given
    return _spec(build(folder).graph(), config, resources=None, drop_state=(), claim=False, **asked)


def submission(folder: Path, **given: Any) -> Submission:
    settings = sa.Ray(workers=1, address="auto")
    return Submission(spec(folder, **given), settings, 30, functools.partial(attended, target="jobs:flow"))


def order(folder: Path, count: int) -> int:
    """In threes."""
    with (folder / "orders.jsonl").open("a") as file:
        file.writelines(json.dumps({"customer": f"c{number % 3}"}) + "\n" for number in range(count))
    return count


def totals(folder: Path) -> list[tuple[str, int]]:
    parts = [path for path in folder.glob("totals/*") if not path.name.startswith(".")]
    lines = [json.loads(line) for path in parts for line in path.read_text().splitlines()]
    return sorted((line["customer"], line["orders"]) for line in lines)


def expected(count: int) -> list[tuple[str, int]]:
    return sorted((f"c{customer}", total + 1) for customer in range(3) for total in range(count // 3))
