"""The workers of one job: started, looked at, introduced to each other, watched, and replaced.

Invariants. Nobody gets a part of the job before it was looked at, however many attempts that takes. One counts as dead
only if its process is known to have ended, or it has said itself that it does nothing more: a node that is lost to the
cluster may live on, and what is on it as well. That it was ended from here is no sign: the cluster says so at once,
whether that reaches it or not.
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

MADE_SURE: Final = 3.0
"""Seconds in which the cluster finds out that a process on a living node has died, and one that lives answers."""
_AGAIN: Final = 0.2
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
        """Returns once it is: why, and whether the cluster says so, which may not reach it. Raises ConnectionLost where
        it is out of reach, maybe for a while."""

    async def placed(self) -> bool:
        """Whether there was room for it. Raises ConnectionLost."""

    async def leave(self) -> None:
        """Returns once it has said that it does nothing more, or the cluster that it is dead. Raises ConnectionLost."""

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
        self._leaving: set[int] = set()
        """They are gone, and it is being found out whether they are dead."""
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
        self._living |= await self._end({*replace, *gone})
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
            waiting = [await self._members[number].placed() for number in self._late()].count(False)
        except ConnectionLost:
            return None
        return what_lacks(self._settings, nodes) or what_is_taken(self._settings, waiting, nodes)

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
        why, ended = await self._gone(member)
        self._leaving.add(number)
        try:
            dead = ended and await self._may_be_believed(number)
        finally:
            self._leaving.discard(number)
        if number not in self._replaced:
            log.warning("%s: worker %d is gone%s: %s", self._flow, number, "" if dead else ", or may live on", why)
            self.lost(number, why, dead)
        return dead

    async def _gone(self, member: Member) -> tuple[str, bool]:
        given_up: float | None = None
        """When it is, if it stays out of reach."""
        while True:
            asked = self._clock.monotonic()
            try:
                return await member.gone()
            except ConnectionLost as error:
                now = self._clock.monotonic()
                if given_up is None or now - asked > MADE_SURE:  # in between it was within reach
                    given_up = now + MADE_SURE
                if now >= given_up:
                    return str(error), False
                await self._clock.sleep(_AGAIN)

    async def _may_be_believed(self, number: int) -> bool:
        """The cluster, that it has ended. A node knows of its processes; of one that is lost, nobody does. Who was not
        looked at yet has had no part of the job."""
        if number not in self._node_of:
            return True
        try:
            return self._node_of[number] in {node.id for node in await self._nodes()}
        except ConnectionLost as error:
            log.warning("%s: whether the node of worker %d lives is not known: %s", self._flow, number, error)
            return False

    async def _end(self, numbers: Collection[int]) -> set[int]:
        """Those of which this was not seen."""
        self._replaced.update(numbers)
        try:
            ended = await asyncio.gather(*map(self._seen_to_end, numbers))
        finally:
            self._replaced.difference_update(numbers)
        return {number for number, seen in zip(numbers, ended, strict=True) if not seen}

    async def _seen_to_end(self, number: int) -> bool:
        member, watching = self._members.get(number), self._watching.get(number)
        if member is None:
            return True
        if watching is None or (number not in self._leaving and not watching.done()):
            seen = number not in self._node_of or (await self._has_left(member) and await self._may_be_believed(number))
        else:
            await asyncio.wait([watching])
            seen = watching.exception() is None and watching.result()
        await self._let_go(number)
        return seen

    async def _has_left(self, member: Member) -> bool:
        try:
            async with asyncio.timeout(MADE_SURE):
                while not await self._says_so(member):
                    await self._clock.sleep(_AGAIN)
        except TimeoutError:
            return False
        return True

    async def _says_so(self, member: Member) -> bool:
        """Of one that has just died, the cluster may only say that it is out of reach."""
        try:
            await member.leave()
        except ConnectionLost:
            return False
        return True

    async def _let_go(self, number: int) -> None:
        self._node_of.pop(number, None)
        if (watching := self._watching.pop(number, None)) is not None:
            watching.cancel()
            await asyncio.wait([watching])
        if (member := self._members.pop(number, None)) is not None:
            await member.end()

    async def close(self) -> None:
        for number in range(self.count):
            await self._let_go(number)


def _named(numbers: Iterable[int]) -> str:
    return ", ".join(f"worker {number}" for number in numbers)
