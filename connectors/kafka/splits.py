"""Partitions as splits, and where reading them begins. Pure but for the questions asked of a consumer."""

import datetime as dt
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiokafka.structs import TopicPartition

from connectors.kafka.errors import OffsetExpired, UnknownTopic
from streamactors.errors import InvalidConfig

Start = Literal["earliest", "latest", "group"] | dt.datetime | Mapping[tuple[str, int], int]
Topics = str | Sequence[str] | re.Pattern[str]
WORDS: Final = ("earliest", "latest", "group")


@dataclass(slots=True)
class Split:
    """One partition: `offset` is the next to read, `end` (exclusive) where a bounded read stops."""

    tp: TopicPartition
    offset: int
    end: int | None = None

    @property
    def name(self) -> str:
        return name_of(self.tp)

    @property
    def ended(self) -> bool:
        return self.end is not None and self.offset >= self.end

    def position(self, offset: int) -> dict[str, int]:
        """As it stands in checkpoints."""
        return {"offset": offset} if self.end is None else {"offset": offset, "end": self.end}


def name_of(tp: TopicPartition) -> str:
    return f"{tp.topic}[{tp.partition}]"


def partition_of(name: str) -> TopicPartition:
    """Of `orders[3]`; topics have no brackets in their names."""
    topic, _, number = name.rstrip("]").rpartition("[")
    return TopicPartition(topic, int(number))


def subtask_of(name: str, parallelism: int) -> int:
    """The partitions of a topic go to the subtasks in turn; which is first depends on the topic, for balance."""
    tp = partition_of(name)
    first = zlib.crc32(tp.topic.encode())
    return int(first + tp.partition) % parallelism


def checked_topics(topics: Topics) -> tuple[str, ...] | re.Pattern[str]:
    if isinstance(topics, re.Pattern):
        return topics
    names = (topics,) if isinstance(topics, str) else tuple(dict.fromkeys(topics))
    if not names or not all(names):
        raise InvalidConfig(f"KafkaSource: topics {topics!r} must be a name, several names, or a compiled pattern")
    return names


def checked_start(start: Start, group: str | None) -> Start:
    """Raises InvalidConfig."""
    if isinstance(start, dt.datetime):
        if start.tzinfo is None:
            raise InvalidConfig(
                f"KafkaSource: start {start} has no time zone; give it one: start.replace(tzinfo=datetime.UTC)"
            )
    elif isinstance(start, Mapping):
        for key, offset in start.items():
            if not _is_place(key) or not _is_offset(offset):
                raise InvalidConfig(f"KafkaSource: start {{{key!r}: {offset!r}}} is not {{(topic, partition): offset}}")
    elif start not in WORDS:
        raise InvalidConfig(
            f"KafkaSource: start {start!r} is none of {', '.join(WORDS)}, a datetime, {{(topic, partition): offset}}"
        )
    elif start == "group" and group is None:
        raise InvalidConfig("KafkaSource: start='group' begins at a group's committed offsets: give group= too")
    return start


def _is_place(key: object) -> bool:
    return isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str) and isinstance(key[1], int)


def _is_offset(offset: object) -> bool:
    return isinstance(offset, int) and offset >= 0


def refuse_unknown(start: Start, known: Collection[TopicPartition], brokers: str) -> None:
    """Raises UnknownTopic if `start` names a partition that is not read."""
    if isinstance(start, Mapping):
        for topic, number in start:
            if TopicPartition(topic, number) not in known:
                raise missing_partition(brokers, name_of(TopicPartition(topic, number)), "which start= names")


def missing_partition(brokers: str, name: str, why: str) -> UnknownTopic:
    return UnknownTopic(
        f"Kafka at {brokers} has no partition {name}, {why}; "
        "was the topic deleted, or made again with fewer partitions?"
    )


def expired(brokers: str, name: str, asked: int, first: int, end: int) -> OffsetExpired:
    where = "is already deleted (retention)" if asked < first else "was never written (was the topic made again?)"
    return OffsetExpired(
        f"{name} at {brokers}: offset {asked} {where}; there are offsets {first} to {end} (exclusive). Choose: restore "
        f"a later checkpoint; or go on from what is there, which skips records, by starting afresh with "
        f"start={{('{partition_of(name).topic}', {partition_of(name).partition}): {first}}} or start='earliest'; and "
        "raise the topic's retention.ms"
    )


async def first_offsets(
    consumer: Any, partitions: Collection[TopicPartition], start: Start, committed: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Where a run without checkpoint begins. A partition that `start` does not name, and one that the group has no
    offset for, begins at its earliest."""
    wanted = list(partitions)
    if isinstance(start, dt.datetime):
        # In this order: what is written in between is after the end, and so is read.
        ends: dict[TopicPartition, int] = await consumer.end_offsets(wanted)
        found = await consumer.offsets_for_times(dict.fromkeys(wanted, max(0, int(start.timestamp() * 1000))))
        return {tp: ends[tp] if found[tp] is None else found[tp].offset for tp in wanted}
    if start == "latest":
        return dict(await consumer.end_offsets(wanted))
    earliest: dict[TopicPartition, int] = await consumer.beginning_offsets(wanted)
    if isinstance(start, Mapping):
        return {tp: start.get((tp.topic, tp.partition), earliest[tp]) for tp in wanted}
    return {tp: committed.get(tp, earliest[tp]) for tp in wanted}
