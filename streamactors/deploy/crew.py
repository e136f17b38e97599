"""The workers of one job: started, looked at, introduced to each other, watched, and replaced.

Invariants. Nobody gets a part of the job before it was looked at, however many attempts that takes. One that is gone
counts as dead only if its process is known to have ended: a node that is lost to the cluster may live on, and what is
on it as well.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from streamactors.clock import Clock
from streamactors.config import Ray
from streamactors.deploy.addresses import REACHED_WITHIN
from streamactors.deploy.room import Node, what_is_taken, what_lacks
from streamactors.deploy.versions import About, about, refuse_another
from streamactors.errors import ClusterUnfit, ConnectionLost, StreamactorsError

log = logging.getLogger("streamactors.ray")

SEEN_TO_END_WITHIN: Final = 3.0
"""Seconds: of a process that the cluster reaches, it says within tenths of one that it has ended."""
_TOLD_AFTER: Final = 5.0
"""Seconds, between two looks at what keeps workers from starting: on an idle cluster they have started by then."""


class Member(Protocol):
    """A worker's process, from the moment that the cluster was asked for it. Raises ConnectionLost, and ClusterUnfit
    where it would be the same another time."""

    async def about(self) -> About: ...

    async def node(self) -> str:
        """By the cluster's name for it."""

    async def meet(self, members: Mapping[int, "Member"]) -> None:
        """The others, and itself."""

    async def gone(self) -> tuple[str, bool]:
        """Returns once it is: why, and whether the cluster says so, which may not reach it."""

    async def end(self) -> None: ...


class Crew:
    """See `cluster.Workers`. `begin` asks the cluster for the worker of a number, `nodes` for those that live; `again`:
    whether the job has run on this cluster already, so that what lacks now may come back. `lost` is told the number of
    one that is gone, why, and whether it is dead for certain."""

    def __init__(
        self,
        flow: str,
        settings: Ray,
        begin: Callable[[int], Awaitable[Member]],
        nodes: Callable[[], Awaitable[Sequence[Node]]],
        again: Callable[[], Awaitable[bool]],
        clock: Clock,
    ) -> None:
        self.lost: Callable[[int, str, bool], None] = lambda number, why, dead: None
        self._flow = flow
        self._settings = settings
        self._begin = begin
        self._living_nodes = nodes
        self._again = again
        self._clock = clock
        self._ran = False
        self._members: dict[int, Member] = {}
        self._watching: dict[int, asyncio.Task[bool]] = {}
        self._node_of: dict[int, str] = {}
        """Of those that were looked at: only they are told of the others."""
        self._replaced: set[int] = set()
        """They are being ended: their loss is news to nobody."""
        self._living: set[int] = set()
        """Those who were replaced since the last attempt began, and may live on."""

    @property
    def count(self) -> int:
        return self._settings.workers

    async def ready(self, replace: Collection[int]) -> Collection[int]:
        """Raises ClusterUnfit; ConnectionLost where this attempt can't run, but a later one may."""
        gone = [number for number, watching in self._watching.items() if watching.done()]
        self._living |= await self._end({*replace, *gone}, SEEN_TO_END_WITHIN)
        begun = self._clock.monotonic()
        missing = [number for number in range(self.count) if number not in self._watching]
        for number in missing:
            await self._start(number)
        try:
            async with asyncio.timeout(self._settings.patience.total_seconds()):
                await self._introduced()
        except TimeoutError as error:
            raise await self._too_late() from error
        self._ran = True
        log.info("%s: %d workers started in %.1f s", self._flow, len(missing), self._clock.monotonic() - begun)
        living, self._living = self._living, set()
        return living

    async def _start(self, number: int) -> None:
        member = self._members[number] = await self._begin(number)
        watching = self._watch(number, member)
        name = f"watching worker {number} of {self._flow}"
        self._watching[number] = asyncio.get_running_loop().create_task(watching, name=name)

    async def _introduced(self) -> None:
        telling = asyncio.get_running_loop().create_task(self._tell_what_is_missing(), name=f"{self._flow}: waiting")
        try:
            await asyncio.gather(*map(self._look_at, self._late()))
            await asyncio.gather(*(member.meet(self._members) for member in self._members.values()))
        finally:
            telling.cancel()
            await asyncio.wait([telling])

    async def _look_at(self, number: int) -> None:
        member = self._members[number]
        its, node = await asyncio.gather(member.about(), member.node())
        refuse_another(f"worker {number}", its, about(), "the coordinator")
        self._node_of[number] = node

    def _late(self) -> list[int]:
        return [number for number in range(self.count) if number not in self._node_of]

    # ----------------------------------------------------------------------------------------------------------- room
    async def _tell_what_is_missing(self) -> None:
        while True:
            await self._clock.sleep(_TOLD_AFTER)
            if (lacking := await self._what_is_missing()) is not None:
                log.info("%s: %s; waiting", self._flow, lacking)

    async def _what_is_missing(self) -> str | None:
        """None where there is room, or nobody knows."""
        try:
            nodes = await self._nodes()
        except ConnectionLost:
            return None
        return what_lacks(self._settings, nodes) or what_is_taken(self._settings, len(self._late()), nodes)

    async def _too_late(self) -> StreamactorsError:
        """At the first start it fails as it was told to; later on, what is missing may come back."""
        lacking = await self._what_is_missing()
        if lacking is not None and not self._ran and not await self._again():
            return ClusterUnfit(lacking)
        late = _named(self._late() or range(self.count))
        return ConnectionLost(lacking or f"{late} has not started within {self._settings.patience}")

    async def _nodes(self) -> Sequence[Node]:
        """Raises ConnectionLost."""
        try:
            async with asyncio.timeout(REACHED_WITHIN):
                return await self._living_nodes()
        except TimeoutError as error:
            raise ConnectionLost("the cluster does not say which nodes live") from error

    # ------------------------------------------------------------------------------------------------------- watching
    async def _watch(self, number: int, member: Member) -> bool:
        """Whether it is dead for certain, once it is gone."""
        why, ended = await member.gone()
        dead = ended and await self._may_be_believed(number)
        if number not in self._replaced:
            log.warning("%s: worker %d is gone%s: %s", self._flow, number, "" if dead else ", or may live on", why)
            self.lost(number, why, dead)
        return dead

    async def _may_be_believed(self, number: int) -> bool:
        """That it has ended. A node knows of its processes; of one that is lost, nobody does. Who was not looked at yet
        has had no part of the job."""
        if number not in self._node_of:
            return True
        try:
            return self._node_of[number] in {node.id for node in await self._nodes()}
        except ConnectionLost as error:
            log.warning("%s: whether the node of worker %d lives is not known: %s", self._flow, number, error)
            return False

    async def _end(self, numbers: Collection[int], seconds: float) -> set[int]:
        """Those of which this was not seen within so many seconds."""
        self._replaced.update(numbers)
        try:
            for number in numbers:
                if number in self._members:
                    await self._members[number].end()
            watching = [self._watching[number] for number in numbers if number in self._watching]
            if watching:
                await asyncio.wait(watching, timeout=seconds)
            return {number for number in numbers if not await self._forgotten(number)}
        finally:
            self._replaced.difference_update(numbers)

    async def _forgotten(self, number: int) -> bool:
        """Whether it is known to have ended."""
        self._members.pop(number, None)
        self._node_of.pop(number, None)
        watching = self._watching.pop(number, None)
        if watching is None:
            return True
        watching.cancel()
        await asyncio.wait([watching])
        return not watching.cancelled() and watching.exception() is None and watching.result()

    async def close(self) -> None:
        await self._end(range(self.count), 0.0)


def _named(numbers: Iterable[int]) -> str:
    return ", ".join(f"worker {number}" for number in numbers)
