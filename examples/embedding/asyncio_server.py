"""In a server of plain asyncio, on a line protocol: `visit <page>`, `count <page>`, `feed`.

python -m examples.embedding.asyncio_server
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import streamactors as sa
from connectors.queue import QueueSource
from examples.embedding.visits import Count, build, config, queue_in


class Conversation:
    """With one client, until it goes."""

    def __init__(
        self, visits: QueueSource[str], job: sa.JobHandle, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._visits, self._job = visits, job
        self._reader, self._writer = reader, writer

    async def run(self) -> None:
        try:
            async for line in self._reader:
                await self._obey(line.decode().split())
        except ConnectionError:
            return
        finally:
            self._writer.close()

    async def _obey(self, words: list[str]) -> None:
        match words:
            case ["visit", page]:
                await self._visits.put(page)
                await self._tell("ok")
            case ["count", page]:
                count = await self._job.query("count", Count.visits, page)
                await self._tell(str(count))
            case ["feed"]:
                await self._feed_until_it_goes()
            case _:
                await self._tell("visit <page>, count <page> or feed")

    async def _feed_until_it_goes(self) -> None:
        """Or until there is nothing more to come."""
        tasks = [asyncio.create_task(self._feed()), asyncio.create_task(self._gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._writer.close()

    async def _gone(self) -> None:
        while await self._reader.read(1024):
            pass  # whatever it says meanwhile

    async def _feed(self) -> None:
        async with self._job.subscribe("count") as counts:
            await self._tell("connected")
            try:
                async for line in counts:
                    await self._tell(line)
            except sa.StreamactorsError as error:  # it reads too slowly, or the job has failed
                await self._tell(f"no more: {error}")

    async def _tell(self, line: str) -> None:
        self._writer.write(f"{line}\n".encode())
        await self._writer.drain()


@contextlib.asynccontextmanager
async def serving(folder: Path, port: int = 0) -> AsyncIterator[int]:
    """Gives the port."""
    visits = queue_in(folder)
    conversations: set[asyncio.Task[None]] = set()
    async with visits, sa.start(build(visits), config(folder)) as job:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(Conversation(visits, job, reader, writer).run())
            conversations.add(task)
            task.add_done_callback(conversations.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", port)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in conversations:
                task.cancel()
            await asyncio.gather(*conversations, return_exceptions=True)


async def main() -> None:
    async with serving(Path("var/visits"), 8000):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
