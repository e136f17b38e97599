"""In FastAPI. `uvicorn --timeout-graceful-shutdown 5 --factory examples.embedding.fastapi_app:create_app`"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.routing import Route

import streamactors as sa
from examples.embedding.visits import Count, build, config, events, queue_in
from streamactors.service import health


def the_job(request: Request) -> sa.JobHandle:
    job: sa.JobHandle = request.app.state.job
    return job


Job = Annotated[sa.JobHandle, Depends(the_job)]


def create_app(folder: Path = Path("var/visits")) -> FastAPI:
    visits = queue_in(folder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with visits, sa.start(build(visits), config(folder)) as job:
            app.state.job = job
            yield

    app = FastAPI(lifespan=lifespan, routes=[Route("/health", health(lambda: app.state.job))])

    @app.post("/pages/{page}", status_code=202)
    async def visit(page: str) -> None:
        await visits.put(page)

    @app.get("/pages/{page}")
    async def count(page: str, job: Job) -> int:
        return await job.query("count", Count.visits, page)

    @app.get("/feed")
    async def feed(job: Job) -> StreamingResponse:
        return StreamingResponse(events(job), media_type="text/event-stream")

    return app
