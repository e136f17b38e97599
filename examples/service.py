"""A job inside a web service: one process, one event loop, totals answered from the job's own state.

    python -m examples.service
    curl -d '{"customer": "alice", "cents": 500}' localhost:8000/orders
    curl localhost:8000/totals/alice
    curl localhost:8000/health

Orders are appended to a log on disk; the job follows it. Stop the service and start it again: the totals go on from
the last checkpoint, and each order counts once. FOLDER and PORT come from the environment (var/service, 8000).
"""

import asyncio
import datetime as dt
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import streamactors as sa
from connectors.files import FileSource
from streamactors.service import health


class Order(msgspec.Struct):
    customer: str
    cents: int


class CustomerTotal(sa.KeyedOperator[str, Order, None]):
    """Keeps, and emits nothing: the state itself is what the service answers from."""

    cents = sa.ValueState(int, default=0)

    def process(self, order: Order, ctx: sa.Context[str, None]) -> None:
        self.cents.set(self.cents.get() + order.cents)


def build(folder: Path) -> sa.Dataflow:
    flow = sa.Dataflow("order-totals")
    (
        flow.source("orders", FileSource(str(folder / "orders"), value=sa.Json(Order), follow=True))
        .key_by(lambda order: order.customer)
        .process("totals", CustomerTotal)
    )
    return flow


def default_config(folder: Path) -> sa.Config:
    return sa.Config(
        checkpoints=sa.Checkpoints(f"file://{folder.absolute()}/checkpoints", interval=dt.timedelta(seconds=10)),
        # After that the job is dead: /health says 503, and whoever watches the service replaces it.
        restart=sa.Restart.failure_rate(3, per=dt.timedelta(minutes=1), delay=dt.timedelta(seconds=1)),
    )


def create_app(folder: Path, config: sa.Config | None = None) -> Starlette:
    log = folder / "orders" / "orders.jsonl"

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        log.parent.mkdir(parents=True, exist_ok=True)
        async with sa.start(build(folder), config or default_config(folder)) as job:
            app.state.job = job
            yield
        # Leaving the block took a last checkpoint; had the job failed meanwhile, leaving would raise its JobFailed.

    async def add_order(request: Request) -> Response:
        try:
            order = msgspec.json.decode(await request.body(), type=Order)
        except msgspec.DecodeError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        await asyncio.to_thread(append, log, msgspec.json.encode(order) + b"\n")
        return Response(status_code=202)  # it is in the log; the total follows

    async def read_total(request: Request) -> Response:
        customer = request.path_params["customer"]
        job: sa.JobHandle = app.state.job
        try:
            cents = await job.query("totals", CustomerTotal.cents, customer)
        except sa.StreamactorsError:  # the job is dead; its log says why
            return JSONResponse({"error": f"the job is {job.status}"}, status_code=503)
        return JSONResponse({"customer": customer, "cents": cents})

    app = Starlette(
        routes=[
            Route("/orders", add_order, methods=["POST"]),
            Route("/totals/{customer}", read_total),
            Route("/health", health(lambda: app.state.job)),
        ],
        lifespan=lifespan,
    )
    return app


def append(log: Path, line: bytes) -> None:
    """One write in append mode, so that lines of requests at the same time don't mix."""
    with log.open("ab", buffering=0) as file:
        file.write(line)


def main() -> None:
    import uvicorn

    uvicorn.run(create_app(Path(os.environ.get("FOLDER", "var/service"))), port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
