"""Reads the partitions of one subtask, for one attempt, by an aiokafka consumer with partitions assigned by hand."""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAuthorizationFailedError
from aiokafka.structs import TopicPartition

from connectors.kafka.cluster import Cluster, TopicState, connected
from connectors.kafka.decoding import Values, WholeRecords, decoded
from connectors.kafka.errors import AccessDenied, BrokersUnreachable, ReadFailed
from connectors.kafka.groups import GroupCommits, committed_offsets
from connectors.kafka.options import ClientOptions
from connectors.kafka.splits import (
    Split,
    Start,
    expired,
    first_offsets,
    missing_partition,
    name_of,
    partition_of,
    refuse_unknown,
)
from streamactors.errors import StreamactorsError
from streamactors.sources import PENDING_RECORDS, InputProgress, Position, SourceBatch, SourceContext, SplitReader

T = TypeVar("T")

BATCH_RECORDS: Final = 512
FETCH_BYTES: Final = 16 * 1024 * 1024
IDLE_MS: Final = 1000
"""How long one poll waits: then it is seen what else there is to do."""
NEAR_END_MS: Final = 100
DISCOVERY_MS: Final = 30_000
CLOSE_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 5.0
"""Without an answer from a broker, although there are partitions to fetch: time for a WARNING."""
STUCK_SECONDS: Final = 120.0
"""The same, while the brokers answer other questions: the consumer itself must be stuck."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings of a KafkaSource that its readers need."""

    brokers: str
    topics: tuple[str, ...] | re.Pattern[str]
    start: Start
    bounded: bool
    group: str | None
    isolation: str
    client: ClientOptions
    decoder: Values[Any] | WholeRecords[Any]


class KafkaReader(SplitReader[T], Generic[T]):
    """`assign(split, parallelism)` says whose a partition is."""

    def __init__(self, reading: Reading, ctx: SourceContext, assign: Callable[[str, int], int]) -> None:
        self._reading = reading
        self._ctx = ctx
        self._assign = assign
        self._cluster = Cluster(reading.brokers, reading.client, ctx.log)
        self._commits = GroupCommits(self._cluster, reading.group, ctx.log) if reading.group is not None else None
        self._consumer: Any = None
        self._splits: dict[TopicPartition, Split] = {}
        self._fetched: deque[tuple[Split, Sequence[Any], int]] = deque()
        """Records, and the offset behind them."""
        self._paused: frozenset[str] = frozenset()
        self._discovered: list[Split] = []
        self._discovery: asyncio.Task[None] | None = None
        self._announced: deque[Split] = deque()
        self._silence = Silence(ctx, reading.brokers)
        self._to_read = 0
        """Offsets, in a bounded read, when it began."""

    # ------------------------------------------------------------------------------------------------- contract

    async def open(self, restored: Mapping[str, Position] | None) -> Mapping[str, Position]:
        await self._cluster.connect()
        known = await self._known_partitions()
        await self._start_consumer()
        self._splits = {split.tp: split for split in await self._first_splits(known, restored)}
        self._to_read = self._left()
        self._seek_all()
        self._announced.extend(split for split in self._splits.values() if split.ended)
        if not self._reading.bounded:
            self._discovery = asyncio.get_running_loop().create_task(self._discover_for_ever())
        self._ctx.metrics.gauge("kafka.lag", self._lag)
        self._ctx.metrics.gauge(PENDING_RECORDS, self._lag)
        return {split.name: split.position(split.offset) for split in self._splits.values()}

    def progress(self) -> InputProgress | None:
        """By offsets, of which some may hold no record; from where this attempt has begun."""
        if not self._reading.bounded:
            return None
        return InputProgress(self._to_read - self._left(), self._to_read, "records")

    def _left(self) -> int:
        """Offsets, in a bounded read."""
        return sum(max(0, split.end - split.offset) for split in self._splits.values() if split.end is not None)

    async def read(self) -> SourceBatch[T] | None:
        while True:
            if (fetched := self._next_fetched()) is not None:
                return self._batch(*fetched)
            if self._announced:
                return self._moved(self._announced.popleft())
            if self._reading.bounded and all(split.ended for split in self._splits.values()):
                return None
            if self._discovered:
                self._adopt_discovered()
            elif self._splits:
                await self._poll()
            else:
                await asyncio.sleep(IDLE_MS / 1000)

    def pause(self, splits: Collection[str]) -> bool:
        self._paused = frozenset(splits)
        for split in self._splits.values():
            self._pause_or_resume(split)
        return True

    def _next_fetched(self) -> tuple[Split, Sequence[Any], int] | None:
        """The first of a partition that is not paused."""
        for place, fetched in enumerate(self._fetched):
            if fetched[0].name not in self._paused:
                del self._fetched[place]
                return fetched
        return None

    async def checkpoint_completed(self, checkpoint: int, positions: Mapping[str, Position]) -> None:
        if self._commits is not None:
            self._commits.commit({partition_of(name): position["offset"] for name, position in positions.items()})

    async def close(self) -> None:
        try:
            if self._discovery is not None:
                self._discovery.cancel()
                await asyncio.gather(self._discovery, return_exceptions=True)
            if self._commits is not None:
                await self._commits.close()
            await self._stop_consumer()
        finally:
            await self._cluster.close()

    # --------------------------------------------------------------------------------------------------- reading

    async def _poll(self) -> None:
        """Fetch into `_fetched`; what only moved (over aborted records and such) is announced."""
        waiting_ms = NEAR_END_MS if self._reading.bounded else IDLE_MS
        records = self._reading.client.get("max_poll_records", BATCH_RECORDS)
        try:
            fetched = await self._consumer.getmany(timeout_ms=waiting_ms, max_records=records)
        except OffsetOutOfRangeError as error:
            raise await self._out_of_range(error) from error
        except TopicAuthorizationFailedError as error:
            raise AccessDenied(
                f"Kafka at {self._reading.brokers} does not let us read topic {error.args[0]!r}; grant Read on it"
            ) from error
        except KafkaError as error:
            raise ReadFailed(
                f"reading {', '.join(map(name_of, self._splits))} at {self._reading.brokers} failed: {error}"
            ) from error
        for tp, records in fetched.items():
            self._fetched.append((self._splits[tp], records, await self._consumer.position(tp)))
        if not fetched:
            await self._announce_moved()
            reading = {tp: split for tp, split in self._splits.items() if split.name not in self._paused}
            await self._silence.check(self._consumer, reading, self._cluster)

    async def _announce_moved(self) -> None:
        held = {split.tp for split, _, _ in self._fetched}
        for split in self._splits.values():
            if split.ended or split.tp in held:
                continue
            if (position := await self._consumer.position(split.tp)) > split.offset:
                split.offset = position
                self._announced.append(split)
                self._pause_or_resume(split)

    def _batch(self, split: Split, records: Sequence[Any], after: int) -> SourceBatch[T]:
        """Of one fetch of one partition. A bounded read may have to cut off what was written after its end."""
        if split.end is not None and after > split.end:
            records = [record for record in records if record.offset < split.end]
            after = split.end
        split.offset = after
        self._pause_or_resume(split)
        prefix = f"{split.name}@"
        result = decoded(self._reading.decoder, records, prefix)
        offsets = [record.offset for record in result.records]
        count = len(offsets)

        def position_after(n: int) -> Position:
            return split.position(offsets[n] if n < count else after)

        return SourceBatch(
            split.name,
            result.values,
            position_after,
            timestamps=[record.timestamp for record in result.records],
            origins=offsets,
            origin_prefix=prefix,
            undecodable=result.undecodable,
            ends=split.ended,
        )

    def _moved(self, split: Split) -> SourceBatch[T]:
        position = split.position(split.offset)
        return SourceBatch(split.name, (), lambda n: position, timestamps=(), origins=(), ends=split.ended)

    def _pause_or_resume(self, split: Split) -> None:
        if split.ended or split.name in self._paused:
            self._consumer.pause(split.tp)
        else:
            self._consumer.resume(split.tp)

    async def _out_of_range(self, error: OffsetOutOfRangeError) -> StreamactorsError:
        ((tp, asked),) = error.args[0].items()
        first = (await self._consumer.beginning_offsets([tp]))[tp]
        end = (await self._consumer.end_offsets([tp]))[tp]
        return expired(self._reading.brokers, name_of(tp), asked, first, end)

    def _lag(self) -> float:
        """Records between here and the end, over all partitions whose end is known."""
        if self._consumer is None:
            return 0.0
        ends = ((split, self._consumer.highwater(split.tp)) for split in self._splits.values())
        return float(sum(max(0, end - split.offset) for split, end in ends if end is not None))

    # --------------------------------------------------------------------------------------------------- opening

    async def _known_partitions(self) -> list[TopicPartition]:
        topics = self._reading.topics
        if isinstance(topics, re.Pattern):
            found = _partitions_of(await self._cluster.topics(None), topics)
            if not found:
                self._ctx.log.warning("no topic at %s matches /%s/ yet", self._reading.brokers, topics.pattern)
            return found
        known = await self._cluster.partitions(topics)
        return [TopicPartition(topic, number) for topic, numbers in known.items() for number in numbers]

    def _owned(self, partitions: Collection[TopicPartition]) -> list[TopicPartition]:
        ctx = self._ctx
        return [tp for tp in partitions if self._assign(name_of(tp), ctx.parallelism) == ctx.subtask]

    async def _first_splits(
        self, known: Sequence[TopicPartition], restored: Mapping[str, Position] | None
    ) -> list[Split]:
        try:
            if restored is None:
                refuse_unknown(self._reading.start, known, self._reading.brokers)
                return await self._fresh_splits(self._owned(known))
            return await self._restored_splits(self._owned(known), restored)
        except KafkaError as error:
            brokers = self._reading.brokers
            raise BrokersUnreachable(f"Kafka at {brokers} did not say which offsets it has: {error}") from error

    async def _fresh_splits(self, mine: Sequence[TopicPartition]) -> list[Split]:
        if not mine:
            return []
        start, group = self._reading.start, self._reading.group
        committed = {}
        if start == "group" and group is not None:
            committed = await committed_offsets(self._cluster, group, mine)
        # Before the beginnings: with start="latest" a bounded read is empty, and so is one of what came meanwhile.
        ends = await self._consumer.end_offsets(mine) if self._reading.bounded else {}
        offsets = await first_offsets(self._consumer, mine, start, committed)
        if isinstance(start, Mapping) or start == "group":
            await self._refuse_out_of_range(offsets)
        return [Split(tp, offset, ends.get(tp)) for tp, offset in offsets.items()]

    async def _refuse_out_of_range(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Offsets that came from outside are checked now: a bounded read might never ask for them."""
        first = await self._consumer.beginning_offsets(list(offsets))
        end = await self._consumer.end_offsets(list(offsets))
        for tp, offset in offsets.items():
            if not first[tp] <= offset <= end[tp]:
                raise expired(self._reading.brokers, name_of(tp), offset, first[tp], end[tp])

    async def _restored_splits(self, mine: Sequence[TopicPartition], restored: Mapping[str, Position]) -> list[Split]:
        positions = {partition_of(name): position for name, position in restored.items()}
        topics = {tp.topic for tp in mine}
        for tp in [tp for tp in positions if tp not in mine]:
            if tp.topic in topics or not self._is_dropped(tp.topic):
                raise missing_partition(self._reading.brokers, name_of(tp), "which the restored checkpoint has read")
            self._ctx.log.warning("no longer reading %s, which the restored checkpoint has read", name_of(tp))
            del positions[tp]
        new = [tp for tp in mine if tp not in positions]
        splits = [Split(tp, position["offset"], position.get("end")) for tp, position in positions.items()]
        if not self._reading.bounded:
            for split in splits:
                split.end = None
            return splits + await self._earliest(new)
        if new:
            self._ctx.log.warning(
                "not reading %s: a bounded read keeps the partitions that it began with", ", ".join(map(name_of, new))
            )
        unended = [split for split in splits if split.end is None]
        ends = await self._consumer.end_offsets([split.tp for split in unended]) if unended else {}
        for split in unended:
            split.end = ends[split.tp]
        return splits

    def _is_dropped(self, topic: str) -> bool:
        """Whether the source no longer asks for it by name; of a pattern's topics some may come and go."""
        topics = self._reading.topics
        return isinstance(topics, re.Pattern) or topic not in topics

    async def _earliest(self, partitions: Sequence[TopicPartition]) -> list[Split]:
        if not partitions:
            return []
        offsets = await self._consumer.beginning_offsets(list(partitions))
        return [Split(tp, offsets[tp]) for tp in partitions]

    # ------------------------------------------------------------------------------------------------- discovery

    async def _discover_for_ever(self) -> None:
        pause = self._reading.client.get("metadata_max_age_ms", DISCOVERY_MS) / 1000
        while True:
            await asyncio.sleep(pause)
            try:
                await self._discover()
            except (StreamactorsError, KafkaError) as error:
                self._ctx.log.warning("could not look for new partitions; trying again in %.0f s (%s)", pause, error)

    async def _discover(self) -> None:
        topics = self._reading.topics
        if isinstance(topics, re.Pattern):
            found = _partitions_of(await self._cluster.topics(None), topics)
        else:
            found = _partitions_of(await self._cluster.topics(topics), None)
        known = {*self._splits, *(split.tp for split in self._discovered)}
        new = [tp for tp in self._owned(found) if tp not in known]
        if new:
            self._discovered += await self._earliest(new)

    def _adopt_discovered(self) -> None:
        new, self._discovered = self._discovered, []
        self._ctx.log.info("reading new partitions: %s", ", ".join(split.name for split in new))
        self._splits |= {split.tp: split for split in new}
        self._fetched.clear()  # of paused partitions: read again from where each split is
        self._seek_all()
        self._announced.extend(new)

    # -------------------------------------------------------------------------------------------------- consumer

    async def _start_consumer(self) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._reading.brokers.split(","),
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level=self._reading.isolation,
            **{"client_id": "streamactors", "fetch_max_bytes": FETCH_BYTES, **self._reading.client.all()},
        )
        try:
            await connected(self._consumer.start())
        except (KafkaError, TimeoutError) as error:
            raise BrokersUnreachable(f"can't connect to Kafka at {self._reading.brokers}: {error}") from error

    def _seek_all(self) -> None:
        """A new assignment drops what aiokafka has fetched ahead, and all positions with it."""
        if not self._splits:
            return
        self._consumer.assign(list(self._splits))
        for split in self._splits.values():
            self._consumer.seek(split.tp, split.offset)
            self._pause_or_resume(split)

    async def _stop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        stopping = asyncio.get_running_loop().create_task(_stop(consumer))
        try:
            await asyncio.wait([stopping], timeout=CLOSE_SECONDS)
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            # aiokafka 0.14 gives up halfway, and leaves its connections, when it is stopped during an outage.
            await consumer._client.close()


async def _stop(consumer: Any) -> None:
    await asyncio.sleep(0)  # aiokafka 0.14 can't stop a consumer whose tasks have not begun
    await consumer.stop()


class Silence:
    """Tells when brokers stop answering, and when they do again; raises if only this consumer hears nothing."""

    def __init__(self, ctx: SourceContext, brokers: str) -> None:
        self._ctx = ctx
        self._brokers = brokers
        self._began: float | None = None
        self._warned = False
        self._heard = 0

    async def check(self, consumer: Any, splits: Mapping[TopicPartition, Split], cluster: Cluster) -> None:
        """Called when a poll has brought nothing: each fetch should have been answered by then, if by nothing."""
        answers = [consumer.last_poll_timestamp(split.tp) or 0 for split in splits.values() if not split.ended]
        heard, now = max(answers, default=0), asyncio.get_running_loop().time()
        if heard > self._heard or self._began is None or not answers:
            if self._warned:
                self._ctx.log.warning("Kafka at %s answers again", self._brokers)
            self._heard, self._began, self._warned = heard, now, False
            return
        silent = now - self._began
        if silent > SILENT_SECONDS and not self._warned:
            self._warned = True
            self._ctx.log.warning("no answer from Kafka at %s for %.0f s; reconnecting", self._brokers, silent)
        if silent > STUCK_SECONDS and await self._others_hear(cluster, next(iter(splits)).topic):
            raise ReadFailed(
                f"nothing was fetched from {', '.join(map(name_of, splits))} at {self._brokers} for {silent:.0f} s, "
                "although the brokers answer: the consumer is stuck, or these partitions have no leader"
            )

    async def _others_hear(self, cluster: Cluster, topic: str) -> bool:
        try:
            await cluster.topics([topic], seconds=SILENT_SECONDS)
        except BrokersUnreachable:
            return False
        return True


def _partitions_of(topics: Mapping[str, TopicState], pattern: re.Pattern[str] | None) -> list[TopicPartition]:
    """Of topics that are there and, if there is a pattern, whose whole name matches."""
    return [
        TopicPartition(name, number)
        for name, state in sorted(topics.items())
        if not state.error and (pattern is None or pattern.fullmatch(name))
        for number in state.partitions
    ]
