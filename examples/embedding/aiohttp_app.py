"""In aiohttp. `python -m examples.embedding.aiohttp_app`"""

from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

import streamactors as sa
from examples.embedding.visits import Count, build, config, events, queue_in

JOB = web.AppKey("job", sa.JobHandle)


def create_app(folder: Path = Path("var/visits")) -> web.Application:
    visits = queue_in(folder)

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with visits, sa.start(build(visits), config(folder)) as job:
            app[JOB] = job
            yield

    async def visit(request: web.Request) -> web.Response:
        await visits.put(request.match_info["page"])
        return web.Response(status=202)

    async def count(request: web.Request) -> web.Response:
        return web.json_response(await request.app[JOB].query("count", Count.visits, request.match_info["page"]))

    async def feed(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        async for event in events(request.app[JOB]):
            await response.write(event)
        return response

    async def health(request: web.Request) -> web.Response:
        status = request.app[JOB].status
        return web.json_response({"status": status}, status=503 if status in ("failed", "cancelled") else 200)

    app = web.Application()
    app.cleanup_ctx.append(running)
    app.add_routes([web.post("/pages/{page}", visit), web.get("/pages/{page}", count)])
    app.add_routes([web.get("/feed", feed), web.get("/health", health)])
    return app


if __name__ == "__main__":
    # A client that goes ends its feed at once, not with the next event; and no feed holds up the end of the service.
    web.run_app(create_app(), handler_cancellation=True, shutdown_timeout=5.0)
