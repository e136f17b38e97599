"""Kafka as a source: settings. What reads is in `reader`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar

from connectors.kafka.decoding import Values, WholeRecords
from connectors.kafka.diagnosis import of_source
from connectors.kafka.options import READING, ClientOptions, checked_brokers
from connectors.kafka.reader import KafkaReader, Reading
from connectors.kafka.records import KafkaRecord
from connectors.kafka.splits import Start, checked_start, checked_topics, subtask_of
from streamactors.diagnosis import Finding, PlannedStep
from streamactors.elements import DeadLetter, ErrorRoute, OutputTag
from streamactors.errors import InvalidConfig
from streamactors.formats import Decoder
from streamactors.sources import SourceContext, SplitReader, SplitSource

T_co = TypeVar("T_co", covariant=True)
K = TypeVar("K")
T = TypeVar("T")


class KafkaSource(SplitSource[T_co], Generic[T_co]):
    """Reads topics: one, several, or all whose whole name matches a compiled pattern.

    `start` holds for a run without restored positions: a datetime begins at the first record of that time or later, a
    mapping {(topic, partition): offset} at these offsets; "group" at what `group` has committed. What these do not
    name begins at its earliest record, and so do partitions and topics that appear later. `bounded` ends where the
    partitions ended when the run first started. `group` is committed to when a checkpoint completes, for monitoring
    only. A tombstone can't be decoded, so it goes where `on_error` says; `KafkaSource.records` yields it. `client`
    goes to aiokafka (TLS, SASL, fetch sizes, …) and is never shown.

    When brokers go away it reconnects for as long as that takes, and logs a WARNING.
    """

    def __init__(
        self,
        brokers: str,
        topics: str | Sequence[str] | re.Pattern[str],
        *,
        value: Decoder[T_co],
        start: Start = "earliest",
        bounded: bool = False,
        group: str | None = None,
        isolation: Literal["read_committed", "read_uncommitted"] = "read_committed",
        on_error: ErrorRoute = "fail",
        client: Mapping[str, Any] | None = None,
    ) -> None:
        if isolation not in ("read_committed", "read_uncommitted"):
            raise InvalidConfig(f"KafkaSource: isolation {isolation!r} is neither read_committed nor read_uncommitted")
        if group == "":
            raise InvalidConfig("KafkaSource: group is empty; leave it out to commit to no group")
        if on_error != "fail" and not isinstance(on_error, OutputTag):
            raise InvalidConfig(f"KafkaSource: on_error {on_error!r} is neither 'fail' nor an OutputTag")
        self._on_error = on_error
        self._reading = Reading(
            brokers=checked_brokers("KafkaSource", brokers),
            topics=checked_topics(topics),
            start=checked_start(start, group),
            bounded=bounded,
            group=group,
            isolation=isolation,
            client=ClientOptions("KafkaSource", client, READING),
            decoder=Values(value),
        )

    @classmethod
    def records(
        cls,
        brokers: str,
        topics: str | Sequence[str] | re.Pattern[str],
        *,
        key: Decoder[K],
        value: Decoder[T],
        **options: Any,
    ) -> "KafkaSource[KafkaRecord[K, T]]":
        """Whole records: keys, headers, offsets, tombstones. `options` as of KafkaSource."""
        source: KafkaSource[Any] = KafkaSource(brokers, topics, value=value, **options)
        source._reading = replace(source._reading, decoder=WholeRecords(key, value))
        return source

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    @property
    def bounded(self) -> bool:
        return self._reading.bounded

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return None if self._on_error == "fail" else self._on_error

    def reader(self, ctx: SourceContext) -> SplitReader[T_co]:
        return KafkaReader(self._reading, ctx, self.assign)

    def assign(self, split: str, parallelism: int) -> int:
        return subtask_of(split, parallelism)

    async def diagnose(self, step: PlannedStep) -> Sequence[Finding]:
        return await of_source(self._reading.brokers, self._reading.client, self._reading.topics, step)

    def describe(self) -> str:
        reading = self._reading
        topics = f"/{reading.topics.pattern}/" if isinstance(reading.topics, re.Pattern) else ", ".join(reading.topics)
        return f"KafkaSource({topics} at {reading.brokers}{', bounded' if reading.bounded else ''})"
