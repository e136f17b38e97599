"""A job inside a web service: one process, one event loop; orders in, totals out of the job's state, and a live feed.

    pip install fastapi
    python -m examples.service
    curl -d '{"customer": "alice", "cents": 500}' -H 'content-type: application/json' localhost:8000/orders
    curl localhost:8000/totals/alice
    curl -N localhost:8000/feed
    curl localhost:8000/health

An order that was answered with 202 is on the disk: kill the service at any moment and start it again, and each such
order counts once. FOLDER and PORT come from the environment (var/service, 8000).
"""

import datetime as dt
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from starlette.routing import Route

import streamactors as sa
from connectors.queue import QueueSource, WriteFailed
from streamactors.service import health


@dataclass
class Order:
    customer: str
    cents: int


@dataclass
class Total:
    customer: str
    cents: int


class CustomerTotal(sa.KeyedOperator[str, Order, Total]):
    """The state itself is what the service answers from; what is emitted goes to those who look on."""

    cents = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, Total]) -> None:
        self.cents.set(self.cents.get() + order.cents)
        ctx.emit(Total(ctx.key, self.cents.get()))


def build(orders: QueueSource[Order]) -> sa.Dataflow:
    flow = sa.Dataflow("order-totals")
    flow.source("orders", orders).key_by(lambda order: order.customer).process("totals", CustomerTotal)
    return flow


def default_config(folder: Path) -> sa.Config:
    return sa.Config(
        checkpoints=sa.Checkpoints(f"file://{folder.absolute()}/checkpoints", interval=dt.timedelta(seconds=10)),
        # After that the job is dead: /health says 503, and whoever watches the service replaces it.
        restart=sa.Restart.failure_rate(3, per=dt.timedelta(minutes=1), delay=dt.timedelta(seconds=1)),
    )


def create_app(folder: Path, config: sa.Config | None = None) -> FastAPI:
    orders = QueueSource(str(folder / "orders"), value=sa.Json(Order))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with orders, sa.start(build(orders), config or default_config(folder)) as job:
            app.state.job = job
            yield
        # Leaving the block took a last checkpoint; had the job failed meanwhile, leaving would raise its JobFailed.

    app = FastAPI(lifespan=lifespan, routes=[Route("/health", health(lambda: app.state.job))])

    @app.post("/orders", status_code=202)
    async def add_order(order: Order) -> None:
        try:
            await orders.put(order)  # returns once it is on the disk; the total follows
        except WriteFailed as error:
            raise HTTPException(507, "the order was not taken") from error

    @app.get("/totals/{customer}")
    async def read_total(customer: str) -> Total:
        job: sa.JobHandle = app.state.job
        try:
            return Total(customer, await job.query("totals", CustomerTotal.cents, customer))
        except sa.StreamactorsError as error:  # the job is dead; its log says why
            raise HTTPException(503, f"the job is {job.status}") from error

    @app.get("/feed")
    async def feed() -> StreamingResponse:
        return StreamingResponse(events(app.state.job), media_type="text/event-stream")

    return app


async def events(job: sa.JobHandle) -> AsyncIterator[bytes]:
    """Every new total from now on, as server-sent events. Ends with the job, or when the client goes."""
    async with job.subscribe("totals") as totals:
        yield b": connected\n\n"
        while True:
            try:
                async for total in totals:
                    yield b"data: " + msgspec.json.encode(total) + b"\n\n"
                return
            except sa.SubscriptionLagged as lagged:  # the client reads too slowly: tell it, and go on
                yield b"event: lagged\ndata: %d\n\n" % lagged.lost
            except sa.JobFailed:
                return  # /health tells; the browser connects again by itself


def main() -> None:
    import uvicorn

    app = create_app(Path(os.environ.get("FOLDER", "var/service")))
    # A feed never ends by itself: clients are cut off after this, so that the job can take its last checkpoint.
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
