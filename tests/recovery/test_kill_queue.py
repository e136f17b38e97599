"""A service that is killed by SIGKILL at random moments while clients post orders: each that was acknowledged is
written once, none twice, each client's in order."""

import asyncio
import random
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.recovery.orders import hidden_in, visible_lines
from tests.recovery.processes import CHECKPOINTED, PATIENCE, RESTORING, ROOT, Child, new_seed
from tests.recovery.queue_service import LISTENING, Counted, Order, Settings

pytestmark = [pytest.mark.kill, pytest.mark.slow]

KILLS = 5
CLIENTS = 8


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[tuple[Child, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.recovery.queue_service",
        msgspec.json.encode(settings).decode(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    child = Child(process)
    try:
        assert await child.logged(LISTENING), child.log
        port = next(line for line in child.lines if line.startswith(LISTENING)).removeprefix(LISTENING)
        yield child, f"http://127.0.0.1:{port}"
    finally:
        await child.close()


class Client:
    """Posts one order after another; each with a number of its own, also where no answer came."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: list[int] = []
        self.sent = 0

    async def post_until_it_is_gone(self, http: httpx.AsyncClient, url: str) -> None:
        while await self._post(http, url):
            pass

    async def _post(self, http: httpx.AsyncClient, url: str) -> bool:
        self.sent += 1
        number = self.sent
        try:
            response = await http.post(f"{url}/orders", content=msgspec.json.encode(Order(self.name, number)))
        except httpx.TransportError:
            return False
        assert response.status_code == 202, response.text
        self.acknowledged.append(number)
        return True


async def acknowledged(clients: list[Client], more: int) -> None:
    """Until so many more are."""
    target = sum(len(client.acknowledged) for client in clients) + more
    async with asyncio.timeout(PATIENCE):
        while sum(len(client.acknowledged) for client in clients) < target:
            await asyncio.sleep(0.001)


def few_and_many(rng: random.Random) -> list[int]:
    """How many are to be acknowledged before each kill: in most lives enough for a checkpoint to be complete, too."""
    few = [1] * rng.randint(1, 2)
    return rng.sample(few + [rng.randint(20, 300) for _ in range(KILLS - len(few))], KILLS)


async def test_no_acknowledged_request_is_lost_and_none_is_doubled(tmp_path: Path) -> None:
    seed = new_seed()
    rng = random.Random(seed)
    clients = [Client(f"client-{number}") for number in range(CLIENTS)]
    restores = 0

    def settings() -> Settings:
        return Settings(folder=str(tmp_path), source_parallelism=rng.randint(1, 4), parallelism=rng.randint(1, 3))

    for more in few_and_many(rng):
        async with service(settings()) as (child, url):
            async with httpx.AsyncClient(timeout=PATIENCE) as http:
                posting = [asyncio.create_task(client.post_until_it_is_gone(http, url)) for client in clients]
                await acknowledged(clients, more)
                if more > 1:
                    assert await child.logged(CHECKPOINTED), child.log
                await asyncio.sleep(rng.uniform(0.0, 0.06))  # a random moment is what is wanted here
                child.send(signal.SIGKILL)
                assert await child.ended() == -signal.SIGKILL, child.log
                await asyncio.gather(*posting)
            restores += child.count(RESTORING) > 0
    async with service(settings()) as (child, url), httpx.AsyncClient(timeout=PATIENCE) as http:
        await http.post(f"{url}/end")
        assert await child.ended() == 0, child.log
        restores += child.count(RESTORING) > 0
    try:
        check(tmp_path / "out", clients)
        assert restores > 0, "none of its starts found a checkpoint"
        kept = list((tmp_path / "queue").glob("*/*.log"))
        assert len(kept) == settings().partitions, "what the last checkpoint does not need is deleted"
    except AssertionError as error:
        error.add_note(f"KILL_SEED={seed}")
        raise


def check(output: Path, clients: list[Client]) -> None:
    decode = msgspec.json.Decoder(Counted).decode
    found = defaultdict(list)
    for counted in map(decode, visible_lines(output)):
        found[counted.customer].append(counted)
    assert hidden_in(output) == []
    assert sum(len(client.acknowledged) for client in clients) > 5 * CLIENTS, "hardly anything was posted"
    for client in clients:
        numbers = [counted.number for counted in found[client.name]]
        assert set(client.acknowledged) <= set(numbers), "acknowledged and lost"
        assert set(numbers) <= set(range(1, client.sent + 1))
        assert numbers == sorted(set(numbers)), "doubled, or out of order"
        assert [counted.count for counted in found[client.name]] == list(range(1, len(numbers) + 1))
