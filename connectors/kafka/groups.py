"""A consumer group's committed offsets: where others see how far a job is. Nothing is ever read back but by
`start="group"`."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Final

from aiokafka.client import CoordinationType
from aiokafka.errors import for_code
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.structs import TopicPartition

from connectors.kafka.cluster import DENIED, Cluster, Log, by_topic
from connectors.kafka.errors import AccessDenied, ReadFailed
from streamactors.errors import StreamactorsError

COMMIT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
NOBODY: Final = ""
NO_GENERATION: Final = -1
KEEP_AS_BROKERS_DO: Final = -1


async def committed_offsets(
    cluster: Cluster, group: str, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, int]:
    """Of those that the group has committed; raises AccessDenied or ReadFailed."""
    response = await cluster.ask_coordinator(
        CoordinationType.GROUP,
        group,
        OffsetFetchRequest(group, by_topic(partitions)),
        f"asking for the offsets of group {group!r}",
        codes=lambda response: (*_codes_of(response, 3), getattr(response, "error_code", 0)),
    )
    found = {}
    for topic, results in response.topics:
        for number, offset, _, code in results:
            _refuse(cluster, group, code)
            if offset >= 0:
                found[TopicPartition(topic, number)] = offset
    _refuse(cluster, group, getattr(response, "error_code", 0))
    return found


def _refuse(cluster: Cluster, group: str, code: int) -> None:
    if code in DENIED:
        raise AccessDenied(f"Kafka at {cluster.brokers} does not let us read group {group!r}; grant Read on it")
    if code:
        raise ReadFailed(f"asking for the offsets of group {group!r} failed: {for_code(code).__name__}")


def _codes_of(response: Any, index: int) -> list[int]:
    return [result[index] for _, results in response.topics for result in results]


class GroupCommits:
    """Commits in the background, the newest only; a failure is logged and nothing more."""

    def __init__(self, cluster: Cluster, group: str, log: Log) -> None:
        self._cluster = cluster
        self._group = group
        self._log = log
        self._newest: Mapping[TopicPartition, int] = {}
        self._task: asyncio.Task[None] | None = None

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._newest = offsets
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._commit_newest())

    async def close(self) -> None:
        """Gives the last commit a moment."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _commit_newest(self) -> None:
        while offsets := self._newest:
            self._newest = {}
            try:
                await self._commit(offsets)
            except StreamactorsError as error:
                self._log.warning("group %r, for monitoring, lacks the newest offsets: %s", self._group, error)

    async def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        topics: dict[str, list[tuple[int, int, str]]] = {}
        for tp, offset in offsets.items():
            topics.setdefault(tp.topic, []).append((tp.partition, offset, ""))
        response = await self._cluster.ask_coordinator(
            CoordinationType.GROUP,
            self._group,
            OffsetCommitRequest(self._group, NO_GENERATION, NOBODY, KEEP_AS_BROKERS_DO, list(topics.items())),
            f"committing offsets of group {self._group!r}",
            codes=lambda response: _codes_of(response, 1),
            seconds=COMMIT_SECONDS,
        )
        for code in _codes_of(response, 1):
            if code:
                raise ReadFailed(f"{for_code(code).__name__}; is it in use by others?")
