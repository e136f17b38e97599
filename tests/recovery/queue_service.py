"""The service of `test_kill_queue`, in a process of its own: `python -m tests.recovery.queue_service '{"folder": …}'`.

POST /orders answers 202 once the order is durable; the job writes each to files, exactly once, with how many its
customer has had. POST /end: no more come; the process ends when all are written.
"""

import asyncio
import datetime as dt
import logging
import socket
import sys

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import streamactors as sa
from connectors.files import FileSink
from connectors.queue import QueueSource

LISTENING = "listening on "


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    folder: str
    partitions: int = 3
    source_parallelism: int = 1
    parallelism: int = 1


class Order(msgspec.Struct, frozen=True):
    customer: str
    number: int


class Counted(msgspec.Struct, frozen=True):
    customer: str
    number: int
    count: int


class Count(sa.KeyedOperator[str, Order, Counted]):
    count = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, Counted]) -> None:
        self.count.set(self.count.get() + 1)
        ctx.emit(Counted(order.customer, order.number, self.count.get()))


def queue_of(settings: Settings) -> QueueSource[Order]:
    return QueueSource(
        f"{settings.folder}/queue",
        value=sa.Json(Order),
        partitions=settings.partitions,
        key=lambda order: order.customer,
        segment_bytes=500,
    )


def flow_of(settings: Settings, queue: QueueSource[Order]) -> sa.Dataflow:
    flow = sa.Dataflow("orders")
    (
        flow.source("orders", queue, parallelism=settings.source_parallelism)
        .key_by(lambda order: order.customer)
        .process("count", Count, parallelism=settings.parallelism)
        .sink("out", FileSink(f"{settings.folder}/out", value=sa.Json(Counted)))
    )
    return flow


def config_of(settings: Settings) -> sa.Config:
    interval = dt.timedelta(milliseconds=40)
    return sa.Config(checkpoints=sa.Checkpoints(f"file://{settings.folder}/checkpoints", interval=interval, retain=1))


def app_of(queue: QueueSource[Order]) -> Starlette:
    decode = msgspec.json.Decoder(Order).decode

    async def add(request: Request) -> Response:
        await queue.put(decode(await request.body()))
        return Response(status_code=202)

    async def end(request: Request) -> Response:
        queue.end()
        return Response(status_code=202)

    return Starlette(routes=[Route("/orders", add, methods=["POST"]), Route("/end", end, methods=["POST"])])


async def serve(settings: Settings) -> None:
    queue = queue_of(settings)
    async with queue, sa.start(flow_of(settings, queue), config_of(settings)) as job:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app_of(queue), log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve([listening]))
        print(f"{LISTENING}{listening.getsockname()[1]}", flush=True)
        await job.wait()
        server.should_exit = True
        await serving


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Settings)))
