"""Fairness: how fast a web endpoint answers beside a job at full speed on its loop, and what collecting garbage adds.

A service under uvicorn in a process of its own: alone, and beside a job of 13 subtasks that never waits and takes a
checkpoint each second. This process asks it over loopback at fixed times, and measures from the time at which a request
was due: a late answer delays no later question. Both read the machine's one monotonic clock, so that it is known which
requests met a garbage collection. On a busy machine a process waits for a processor, whatever it does: so each turn of
the service's loop is measured in CPU time too, which is what the job has to answer for. `python -m benchmarks.fairness`
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import gc
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import uvicorn
from rich.console import Console
from rich.table import Table

import streamactors as sa
from benchmarks import events, flows
from streamactors.sources import Position, SourceBatch, SourceContext, SplitReader, SplitSource

TARGET_MS = 20.0
SECONDS = 20.0
SUBTASKS = 13
OBJECTS = 1_000_000
CONNECTIONS = 8
EVERY = 0.02
"""Seconds between two requests on one connection."""
CHUNK = 512
Pause = tuple[float, float]


# ------------------------------------------------------------------------------------------------------------- the job
class Repeating(SplitSource[bytes]):
    """The same lines over and over, as fast as they are read."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.chunks = [lines[start : start + CHUNK] for start in range(0, len(lines), CHUNK)]

    @property
    def bounded(self) -> bool:
        return False

    def reader(self, ctx: SourceContext) -> SplitReader[bytes]:
        return _RepeatingReader(self.chunks)


class _RepeatingReader(SplitReader[bytes]):
    def __init__(self, chunks: Sequence[Sequence[bytes]]) -> None:
        self._chunks = chunks
        self._next = 0

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        self._next = (restored or {}).get("all", 0)
        return {"all": self._next}

    async def read(self) -> SourceBatch[bytes]:
        start = self._next
        chunk = self._chunks[start % len(self._chunks)]
        self._next += 1
        return SourceBatch("all", chunk, lambda taken: start + (taken == len(chunk)))

    async def close(self) -> None:
        return None


def full_speed(keys: int, sink: flows.Discard) -> sa.Dataflow:
    """One source and twelve totals, each chained to its sink."""
    flow = sa.Dataflow("fairness")
    (
        flow.source("lines", Repeating(events.orders(100_000, keys)), parallelism=1)
        .map(msgspec.json.Decoder(events.Order).decode, parallelism=1)
        .key_by(lambda order: order.customer)
        .process("totals", flows.RunningTotal, parallelism=SUBTASKS - 1)
        .sink("out", sink, parallelism=SUBTASKS - 1)
    )
    return flow


# ---------------------------------------------------------------------------------------------------------- the service
async def answer(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """The endpoint."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def pauses_of_gc() -> list[Pause]:
    """A list to which every collection of this process is added."""
    pauses: list[Pause] = []
    begun = 0.0

    def watch(phase: str, _: Any) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.monotonic()
        else:
            pauses.append((begun, time.monotonic()))

    gc.callbacks.append(watch)
    return pauses


def turns_of_loop() -> list[float]:
    """A list to which the CPU time of every turn of the running loop is added; which then never waits."""
    turns: list[float] = []
    loop, before = asyncio.get_running_loop(), time.thread_time()

    def turned() -> None:
        nonlocal before
        now = time.thread_time()
        turns.append(now - before)
        before = now
        loop.call_soon(turned)

    loop.call_soon(turned)
    return turns


async def serve(keys: int, *, beside: bool, objects: int, freeze: bool) -> None:
    """Prints the port, serves until its input ends, and prints what there is to tell. The host holds as many `objects`
    that the garbage collector has to walk."""
    pauses, sink, held = pauses_of_gc(), flows.Discard(), [[number] for number in range(objects)]
    server = uvicorn.Server(uvicorn.Config(answer, log_config=None, lifespan="off", access_log=False))
    with tempfile.TemporaryDirectory(prefix="streamactors-fairness-") as folder:
        checkpoints = sa.Checkpoints(folder, interval=dt.timedelta(seconds=1))
        async with contextlib.AsyncExitStack() as stack:
            job = None
            if beside:
                started = sa.start(full_speed(keys, sink), sa.Config(checkpoints=checkpoints), on_exit="cancel")
                job = await stack.enter_async_context(started)
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            serving = asyncio.ensure_future(server.serve(sockets=[listening]))
            if beside:
                await _all_keys(sink)
            if freeze:
                gc.collect()
                gc.freeze()
            print(listening.getsockname()[1], flush=True)
            before, begun, turns = sink.count, time.monotonic(), turns_of_loop() if beside else []
            await asyncio.to_thread(sys.stdin.read)
            rate = (sink.count - before) / (time.monotonic() - begun)
            taken = 0 if job is None else len(job.checkpoints)
            server.should_exit = True
            await serving
    del held
    turns.sort()
    told = {"pauses": pauses, "rate": rate, "checkpoints": taken, "turn": percentile(turns, 0.99) * 1e3}
    print(json.dumps(told), flush=True)


async def _all_keys(sink: flows.Discard) -> None:
    """Until the state has its size, and memory what it needs for that."""
    while sink.count < 300_000:  # noqa: ASYNC110 (a sink that sets events would be slower)
        await asyncio.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------- the load
async def ask(port: int, first: float, until: float, seen: list[Pause]) -> None:
    """One connection: a request every EVERY seconds from `first` on; adds when each was due and when answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number in itertools.count():
            due = first + number * EVERY
            if due >= until:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # The loop wakes up a little late: that is not the service's doing. Behind a late answer, it is.
            asked = max(due, time.monotonic()) if number == 0 or seen[-1][1] <= due else due
            writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await reader.readuntil(b"ok")
            seen.append((asked, time.monotonic()))
    finally:
        writer.close()
        await writer.wait_closed()


async def load(port: int, seconds: float) -> list[Pause]:
    begin = time.monotonic() + 0.1
    seen: list[list[Pause]] = [[] for _ in range(CONNECTIONS)]
    steps = [begin + number * EVERY / CONNECTIONS for number in range(CONNECTIONS)]
    await asyncio.gather(*(ask(port, first, begin + seconds, each) for first, each in zip(steps, seen, strict=True)))
    return [request for each in seen for request in each]


# --------------------------------------------------------------------------------------------------------- the figures
@dataclass(frozen=True)
class Measured:
    """Milliseconds, ascending; `undisturbed` are those of requests that met no collection of a millisecond or more;
    `turn` is the 99th percentile of the loop's turns in CPU time."""

    name: str
    latencies: Sequence[float]
    undisturbed: Sequence[float]
    pauses: Sequence[float]
    rate: float
    checkpoints: int
    turn: float


def measure(name: str, seconds: float, *arguments: str) -> Measured:
    command = [sys.executable, "-m", "benchmarks.fairness", "--serve", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            requests = asyncio.run(load(int(process.stdout.readline()), seconds))
            process.stdin.close()
            told = json.loads(process.stdout.readline())
        finally:
            process.kill()
    pauses = [(begun, ended) for begun, ended in told["pauses"] if ended - begun >= 0.001]
    return Measured(
        name,
        sorted(_milliseconds(requests)),
        sorted(_milliseconds([each for each in requests if not _met(each, pauses)])),
        sorted(_milliseconds([pause for pause in pauses if pause[1] > requests[0][0]])),
        told["rate"],
        told["checkpoints"],
        told["turn"],
    )


def _milliseconds(spans: Sequence[Pause]) -> Iterator[float]:
    return ((ended - begun) * 1e3 for begun, ended in spans)


def _met(request: Pause, pauses: Sequence[Pause]) -> bool:
    return any(begun < request[1] and ended > request[0] for begun, ended in pauses)


def percentile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else 0.0


def table(rows: Sequence[Measured]) -> Table:
    shown = Table(
        title=f"a trivial endpoint, milliseconds; a job of {SUBTASKS} subtasks at full speed on the same loop"
    )
    columns = ("", "p50", "p99", "max", "p99 but gc", "gc pauses", "longest", "turn, CPU", "records/s", "checkpoints")
    for column in columns:
        shown.add_column(column, justify="right" if column else "left")
    for row in rows:
        every = row.latencies
        figures = [percentile(every, 0.5), percentile(every, 0.99), every[-1], percentile(row.undisturbed, 0.99)]
        counted = [str(len(row.pauses)), f"{row.pauses[-1] if row.pauses else 0.0:.1f}"]
        job = [f"{row.turn:.1f}", f"{row.rate / 1e3:.0f} k", str(row.checkpoints)] if row.rate else ["", "", ""]
        shown.add_row(row.name, *(f"{figure:.1f}" for figure in figures), *counted, *job)
    return shown


def measure_all(seconds: float, keys: int, loop: str = "uvloop") -> list[Measured]:
    """The service alone, beside the job, beside it with many objects, and with those kept from the collector."""
    objects = ("--beside", "--objects", str(OBJECTS))
    settings = ("--keys", str(keys), "--loop", loop)
    return [
        measure("service alone", seconds, *settings),
        measure("beside the job", seconds, *settings, "--beside"),
        measure("1 M objects in the host", seconds, *settings, *objects),
        measure("… after gc.freeze()", seconds, *settings, *objects, "--freeze"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--objects", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    for flag in ("--serve", "--beside", "--freeze"):
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run_service(options)
        return
    console = Console(width=120)
    console.print(table(measure_all(options.seconds, options.keys, options.loop)))
    console.print(f"p99 beside the job, to stay below: {TARGET_MS:.0f} ms")


def run_service(options: argparse.Namespace) -> None:
    import uvloop

    factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        serving = serve(options.keys, beside=options.beside, objects=options.objects, freeze=options.freeze)
        runner.run(serving)


if __name__ == "__main__":
    main()
