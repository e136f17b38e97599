"""Detached jobs, as whoever looks for them by name finds them: through the cluster's store and their coordinators."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from streamactors.clock import Clock
from streamactors.deploy.detached import (
    END_KEPT,
    SUBMISSIONS,
    Answer,
    Ending,
    ending_key,
    flow_of,
    keeper_key,
    submission_key,
)
from streamactors.deploy.keeper import Store
from streamactors.errors import ConnectionLost, JobNotRunning

_AGAIN: Final = 0.2
"""Seconds until a coordinator that is being started again is asked again."""


class Found(Protocol):
    """A job's coordinator."""

    async def request(self, method: str, path: str, body: bytes) -> Answer | None:
        """Of the job's control; None where it is gone. Raises ConnectionLost while it is being started again."""


class DetachedJobs:
    """Of one cluster. See `detached.Cluster`. `find`: a coordinator by its flow; None where there is none."""

    def __init__(self, store: Store, find: Callable[[str], Awaitable[Found | None]], clock: Clock) -> None:
        self._store = store
        self._find = find
        self._clock = clock

    def flows(self) -> list[str]:
        return asyncio.run(self._flows())

    def ask(self, flow: str, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
        return asyncio.run(self._ask(flow, method, path, body, timeout))

    def ending(self, flow: str) -> Ending | None:
        return asyncio.run(self._ending(flow))

    async def _flows(self) -> list[str]:
        found = await self._store.keys(SUBMISSIONS)
        return sorted({flow_of(key) for key in found if await self._find(flow_of(key)) is not None})

    async def _ask(self, flow: str, method: str, path: str, body: bytes, timeout: float | None) -> Answer:
        try:
            async with asyncio.timeout(timeout):
                return await self._answer(flow, method, path, body)
        except ConnectionLost as error:
            raise ConnectionLost(
                f"the coordinator of {flow!r} has died meanwhile, and is started again: whether it was done is not "
                "known: look, and ask again"
            ) from error

    async def _answer(self, flow: str, method: str, path: str, body: bytes) -> Answer:
        while True:
            found = await self._find(flow)
            try:
                answer = None if found is None else await found.request(method, path, body)
            except ConnectionLost:
                if method != "GET":
                    raise
                await self._clock.sleep(_AGAIN)
                continue
            if answer is None:
                raise JobNotRunning(f"job {flow!r} is not running any more")
            return answer

    async def _ending(self, flow: str) -> Ending | None:
        stored = await self._store.get(ending_key(flow))
        if stored is not None:
            ending = msgspec.msgpack.decode(stored, type=Ending)
            if ending.ended_ms + END_KEPT * 1000 > self._clock.time_ms():
                return ending
            await self._store.delete(ending_key(flow))
            return None
        return await self._killed(flow)

    async def _killed(self, flow: str) -> Ending | None:
        """Where a coordinator is gone for good, and could not say so."""
        left = await self._store.keys(submission_key(flow, ""))
        if not left or await self._find(flow) is not None:
            return None
        for key in left + await self._store.keys(keeper_key(flow, "")):
            await self._store.delete(key)
        ending = Ending(
            flow=flow,
            token="",
            ended_ms=self._clock.time_ms(),
            status="failed",
            error="its coordinator was killed, or has died where restarts or checkpoints are off",
        )
        await self._store.put(ending_key(flow), msgspec.msgpack.encode(ending))
        return ending
