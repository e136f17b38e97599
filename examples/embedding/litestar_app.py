"""In Litestar. `uvicorn --timeout-graceful-shutdown 5 --factory examples.embedding.litestar_app:create_app`"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from litestar import Litestar, asgi, get, post
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream
from litestar.types import Receive, Scope, Send

import streamactors as sa
from examples.embedding.visits import Count, build, config, events, queue_in
from streamactors.service import health


def create_app(folder: Path = Path("var/visits")) -> Litestar:
    visits = queue_in(folder)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with visits, sa.start(build(visits), config(folder)) as job:
            app.state.job = job
            yield

    @post("/pages/{page:str}", status_code=202)
    async def visit(page: FromPath[str]) -> None:
        await visits.put(page)

    @get("/pages/{page:str}")
    async def count(page: FromPath[str], state: State) -> int:
        job: sa.JobHandle = state.job
        return await job.query("count", Count.visits, page)

    @get("/feed")
    async def feed(state: State) -> Stream:
        return Stream(events(state.job), media_type="text/event-stream")

    @asgi("/health", copy_scope=True)
    async def healthy(scope: Scope, receive: Receive, send: Send) -> None:
        await health(app.state.job)(scope, receive, send)  # type: ignore[arg-type]

    # Without `logging_config=None` Litestar sets up logging for the whole process, the job's too.
    app = Litestar([visit, count, feed, healthy], lifespan=[lifespan], logging_config=None)
    return app
