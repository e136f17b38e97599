"""Calls per second of `map_async`: of nothing but waiting, and of a server on loopback that answers after 50 ms.

`python -m benchmarks.async_calls` runs this alone; `--profile` shows where the time goes.
"""

import argparse
import asyncio
import cProfile
import gc
import pstats
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

import streamactors as sa
from benchmarks.flows import Discard
from connectors.memory import ListSource

ROOT = Path(__file__).parents[1]
CAPACITY = 1_000
LATENCY = 0.05
CALLS = 200_000
REQUESTS = 40_000

Call = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True)
class Measured:
    """Calls per second, by round: of the client alone, `CAPACITY` at once, and of the flow."""

    name: str
    alone: list[float]
    flow: list[float]
    target: str

    @property
    def limit(self) -> float:
        """Of what can be had at all: so many calls at once, each of so long, or what the client gives."""
        return min(CAPACITY / LATENCY, statistics.median(self.alone))

    @property
    def share(self) -> float:
        return statistics.median(
            flow / min(CAPACITY / LATENCY, alone) for alone, flow in zip(self.alone, self.flow, strict=True)
        )


async def wait(_: int) -> None:
    await asyncio.sleep(LATENCY)


async def through_the_flow(call: Call, calls: int, *, ordered: bool) -> float:
    """Calls per second, start and end included."""
    flow = sa.Dataflow("calls")
    stream = flow.source("numbers", ListSource(range(calls)))
    stream.map_async("call", call, capacity=CAPACITY, ordered=ordered).sink("out", Discard())
    started = time.perf_counter()
    await sa.run(flow)
    return calls / (time.perf_counter() - started)


async def alone(call: Call, calls: int) -> float:
    """The same calls in plain asyncio: so many tasks, each of which makes one after the other."""
    numbers = iter(range(calls))

    async def work() -> None:
        for number in numbers:
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in repeat(None, CAPACITY)))
    return calls / (time.perf_counter() - started)


async def _case(name: str, call: Call, calls: int, rounds: int, *, ordered: bool, target: str) -> Measured:
    found: list[tuple[float, float]] = []
    for _ in range(rounds):
        _settle()
        plain = await alone(call, calls)
        _settle()
        found.append((plain, await through_the_flow(call, calls, ordered=ordered)))
    gc.unfreeze()
    return Measured(name, [plain for plain, _ in found], [flow for _, flow in found], target)


def _settle() -> None:
    """What is there stays there: the garbage collector need not walk through it again and again, which costs more than
    all of streamactors does."""
    gc.collect()
    gc.freeze()


async def _measured(rounds: int, calls: int, requests: int) -> list[Measured]:
    goal = "≥ 15,000/s"
    rows = [
        await _case("asyncio.sleep(0.05), ordered", wait, calls, rounds, ordered=True, target=goal),
        await _case("asyncio.sleep(0.05), unordered", wait, calls, rounds, ordered=False, target=goal),
    ]
    async with client() as get:
        await alone(get, 2 * CAPACITY)  # all connections are there before anything is measured
        rows += [
            await _case("HTTP, 50 ms, ordered", get, requests, rounds, ordered=True, target="≥ 90%"),
            await _case("HTTP, 50 ms, unordered", get, requests, rounds, ordered=False, target="≥ 90%"),
        ]
    return rows


# ---------------------------------------------------------------------------------------------------------- the server
class Answering(asyncio.Protocol):
    """As little of HTTP as will do: each request gets the same answer, `LATENCY` later."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"\r\n\r\n")):
            asyncio.get_running_loop().call_later(LATENCY, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self.ANSWER)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=2 * CAPACITY)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def client() -> AsyncIterator[Call]:
    """Gets from a server in a process of its own, which does not outlive the block."""
    command = (sys.executable, "-m", "benchmarks.async_calls", "--serve")
    server = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(await server.stdout.readline())}/"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CAPACITY)) as session:

            async def get(_: int) -> bytes:
                async with session.get(url) as response:
                    return await response.read()

            yield get
    finally:
        server.kill()
        await server.wait()


# ------------------------------------------------------------------------------------------------------------- results
def measure(rounds: int, calls: int = CALLS, requests: int = REQUESTS) -> list[Measured]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measured(rounds, calls, requests))


def table(rows: list[Measured]) -> Table:
    ceiling = f"{CAPACITY / LATENCY:,.0f}"
    shown = Table(
        title=f"calls/s, capacity {CAPACITY:,}: at most {ceiling}, or what the client gives; share of the less"
    )
    for column in ("calls", "plain asyncio", "streamactors", "share", "to reach"):
        shown.add_column(column, justify="left" if column == "calls" else "right")
    for row in rows:
        rates = (f"{statistics.median(rates):,.0f}" for rates in (row.alone, row.flow))
        shown.add_row(row.name, *rates, f"{row.share:.0%}", row.target)
    return shown


def profile(calls: int) -> None:
    """Unordered waiting, on the standard loop, which a profile shows."""
    profiler = cProfile.Profile()
    profiler.enable()
    asyncio.run(through_the_flow(wait, calls, ordered=False))
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--profile", action="store_true", help="where the time goes, of nothing but waiting")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        uvloop.run(_serve())
    elif given.profile:
        profile(given.calls)
    else:
        Console(width=110).print(table(measure(given.rounds, given.calls, given.requests)))


if __name__ == "__main__":
    main()
