"""Orders, each with what a web service knows about its customer: many look-ups at once, and every order out once.

    python -m examples.enrich                       2,000 made-up orders in a file, results to files
    python -m examples.enrich --folder var/enrich   where they lie
    python -m examples.enrich --kafka localhost:9092 --orders orders --enriched enriched --dead dead
                                                    the same flow on Kafka, until Ctrl-C
    python -m examples.enrich --serve 8090          nothing but the service
    python -m examples.enrich --url http://…        with a service that is there already, such as that one

The service is made up as well, and no better than others: now and then it fails, now and then it does not answer. A
look-up that fails is tried again; one that takes too long is given up and tried again; what fails for good goes to the
dead letters with its error. While look-ups run, others begin, and checkpoints do not wait for them: after a crash those
that had not ended are made again. Each carries the same Idempotency-Key then, so that the service can tell.
"""

import argparse
import asyncio
import datetime as dt
import json
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import streamactors as sa
from connectors.files import FileSink, FileSource

ORDERS = 2_000
CUSTOMERS = 300
AT_ONCE = 50
PATIENCE = dt.timedelta(milliseconds=500)
ROOT = Path(__file__).parents[1]


class Order(msgspec.Struct, frozen=True):
    id: int
    customer: str
    cents: int


class Enriched(msgspec.Struct, frozen=True):
    id: int
    customer: str
    cents: int
    country: str


class UnknownCustomer(Exception):
    pass


DEAD = sa.OutputTag("dead", sa.DeadLetter)
AGAIN = sa.Retry(
    5, initial=dt.timedelta(milliseconds=50), maximum=dt.timedelta(seconds=5), on=(aiohttp.ClientError, TimeoutError)
)


class LookUp:
    """`await look_up(order)`. One client, and so one pool of connections, for all calls."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self._client = client

    async def __call__(self, order: Order) -> Enriched:
        key = {"Idempotency-Key": sa.record_id()}
        async with self._client.get(f"/customers/{order.customer}", headers=key) as response:
            if response.status == 404:
                raise UnknownCustomer(order.customer)  # trying again would not help
            response.raise_for_status()
            return Enriched(order.id, order.customer, order.cents, (await response.json())["country"])


@asynccontextmanager
async def look_up(url: str) -> AsyncIterator[LookUp]:
    # As many connections as calls. The time-out of map_async is that of the whole call, and enough.
    connections, unlimited = aiohttp.TCPConnector(limit=AT_ONCE), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, connector=connections, timeout=unlimited) as client:
        yield LookUp(client)


def build(
    look_up: LookUp, orders: sa.Source[Order], enriched: sa.Sink[Enriched], dead: sa.Sink[sa.DeadLetter]
) -> sa.Dataflow:
    flow = sa.Dataflow("enrich")
    found = flow.source("orders", orders).map_async(
        "look-up", look_up, capacity=AT_ONCE, ordered=False, timeout=PATIENCE, retry=AGAIN, on_error=DEAD
    )
    found.sink("enriched", enriched)
    found.side_output(DEAD).sink("dead", dead)
    return flow


def config(folder: Path) -> sa.Config:
    interval = dt.timedelta(milliseconds=500)
    return sa.Config(checkpoints=sa.Checkpoints(str(folder / "checkpoints"), interval=interval))


def on_kafka(look_up: LookUp, bootstrap: str, topics: tuple[str, str, str], *, bounded: bool = False) -> sa.Dataflow:
    """`topics`: of the orders, of the results, of the dead letters."""
    from connectors.kafka import KafkaSink, KafkaSource

    orders, enriched, dead = topics
    return build(
        look_up,
        KafkaSource(bootstrap, orders, value=sa.Json(Order), bounded=bounded),
        KafkaSink(bootstrap, enriched, value=sa.Json(Enriched), key=lambda each: each.customer.encode()),
        KafkaSink(bootstrap, dead, value=sa.Json(sa.DeadLetter)),
    )


def on_files(look_up: LookUp, folder: Path) -> sa.Dataflow:
    return build(
        look_up,
        FileSource(str(folder / "orders.jsonl"), value=sa.Json(Order)),
        FileSink(str(folder / "enriched"), value=sa.Json(Enriched)),
        FileSink(str(folder / "dead"), value=sa.Json(sa.DeadLetter)),
    )


# ---------------------------------------------------------------------------------------------------------- the service
class Service:
    """Every 40th request fails, every 150th is not answered in time, and of some customers it knows nothing. `/seen`
    tells how often it was called, and by how many different keys."""

    LATENCY = 0.01
    FAILS, STALLS = 40, 150

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def customer(self, request: Request) -> JSONResponse:
        self.calls[request.headers.get("idempotency-key", "")] += 1
        number = self.calls.total()
        await asyncio.sleep(60 if number % self.STALLS == 0 else self.LATENCY)
        if number % self.FAILS == 0:
            return JSONResponse({"error": "overloaded"}, 503)
        country = country_of(request.path_params["name"])
        return JSONResponse({"country": country}, 200 if country else 404)

    async def seen(self, request: Request) -> JSONResponse:
        return JSONResponse({"calls": self.calls.total(), "keys": len(self.calls)})

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/customers/{name}", self.customer), Route("/seen", self.seen)])


def country_of(customer: str) -> str:
    """Empty for those that are not known."""
    number = int(customer[1:])
    return "" if number % 60 == 7 else ("CH", "DE", "FR", "IT")[number % 4]


def serve(port: int) -> None:
    """Prints its address once it can be reached. Port 0: one that is free."""
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        settings = uvicorn.Config(Service().app(), log_level="error", timeout_graceful_shutdown=0)
        uvicorn.Server(settings).run(sockets=[listening])


@asynccontextmanager
async def service(url: str | None = None) -> AsyncIterator[str]:
    """The address of the one that is there; or of one in a process of its own, which does not outlive the block."""
    if url is not None:
        yield url
        return
    command = (sys.executable, "-m", "examples.enrich", "--serve", "0")
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


# ---------------------------------------------------------------------------------------------------- what surrounds it
def made_up(count: int = ORDERS) -> Iterator[Order]:
    return (Order(id, f"c{(id * id + id // 7) % CUSTOMERS}", id % 1_000 + 1) for id in range(count))


def plain(orders: list[Order]) -> tuple[list[Enriched], list[int]]:
    """What must come out: results, and the ids of those that go to the dead letters."""
    known = [Enriched(each.id, each.customer, each.cents, country_of(each.customer)) for each in orders]
    return [each for each in known if each.country], [each.id for each in known if not each.country]


def write(folder: Path, count: int) -> None:
    path = folder / "orders.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(msgspec.json.encode(order) + b"\n" for order in made_up(count)))


def read(folder: Path) -> tuple[list[Enriched], list[Mapping[str, Any]]]:
    enriched = [msgspec.json.decode(line, type=Enriched) for line in _lines(folder / "enriched")]
    return enriched, [json.loads(line) for line in _lines(folder / "dead")]


def _lines(folder: Path) -> Iterator[bytes]:
    for part in sorted(folder.glob("[!.]*")):
        yield from part.read_bytes().splitlines()


async def in_files(folder: Path, count: int, url: str | None) -> bool:
    """Whether the results are right."""
    write(folder, count)
    async with service(url) as address, look_up(address) as calling:
        await sa.run(on_files(calling, folder), config(folder))
        async with aiohttp.ClientSession() as client, client.get(f"{address}/seen") as response:
            seen = await response.json()
    enriched, dead = read(folder)
    for letter in dead[:2]:
        print(f"{letter['origin']}: {letter['error']}")
    wanted, unknown = plain(list(made_up(count)))
    right = sorted(enriched, key=lambda each: each.id) == wanted and len(dead) == len(unknown)
    print(f"{seen['calls']:,} calls for {seen['keys']:,} orders")
    print(f"{len(enriched):,} enriched, {len(dead):,} dead letters: {'right' if right else 'WRONG'}")
    return right


async def in_kafka(options: argparse.Namespace) -> None:
    topics = (options.orders, options.enriched, options.dead)
    async with service(options.url) as address, look_up(address) as calling:
        await sa.run(on_kafka(calling, options.kafka, topics, bounded=options.bounded), config(options.folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("var/enrich"))
    parser.add_argument("--count", type=int, default=ORDERS)
    parser.add_argument("--url", help="of a service that is there already")
    parser.add_argument("--kafka", help="the bootstrap address of a broker")
    parser.add_argument("--bounded", action="store_true", help="end where the topic ends today")
    for topic in ("orders", "enriched", "dead"):
        parser.add_argument(f"--{topic}", default=topic)
    parser.add_argument("--serve", type=int, metavar="PORT", help="nothing but the service")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
    elif options.kafka:
        asyncio.run(in_kafka(options))
    else:
        sys.exit(not asyncio.run(in_files(options.folder, options.count, options.url)))


if __name__ == "__main__":
    main()
