"""In Starlette. `uvicorn --timeout-graceful-shutdown 5 --factory examples.embedding.starlette_app:create_app`"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import streamactors as sa
from examples.embedding.visits import Count, build, config, events, queue_in
from streamactors.service import health


def create_app(folder: Path = Path("var/visits")) -> Starlette:
    visits = queue_in(folder)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with visits, sa.start(build(visits), config(folder)) as job:
            app.state.job = job
            yield

    async def visit(request: Request) -> Response:
        await visits.put(request.path_params["page"])
        return Response(status_code=202)

    async def count(request: Request) -> Response:
        return JSONResponse(await request.app.state.job.query("count", Count.visits, request.path_params["page"]))

    async def feed(request: Request) -> Response:
        return StreamingResponse(events(request.app.state.job), media_type="text/event-stream")

    routes = [
        Route("/pages/{page}", visit, methods=["POST"]),
        Route("/pages/{page}", count),
        Route("/feed", feed),
        Route("/health", health(lambda: app.state.job)),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    return app
