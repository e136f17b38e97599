"""From values to records, and from records to partitions, for whole batches."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from connectors.kafka.partitioning import KeyPartitions, Partitioner, Runs
from connectors.kafka.producer import Partition, Producer, Records
from streamactors.errors import RecordFailed
from streamactors.formats import Encoder, encode_batch

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R = TypeVar("R")

NO_HEADERS: Final[list[tuple[str, bytes]]] = []
BYTES_OR_NONE: Final = frozenset({bytes, type(None)})
SHOWN: Final = 200
"""Characters of a value in an error."""


class Mapper(Protocol[T_contra]):
    """What a KafkaSink says about the values that it takes."""

    @property
    def topic(self) -> str | Callable[[T_contra], str]: ...
    @property
    def value(self) -> Encoder[T_contra]: ...
    @property
    def key(self) -> Callable[[T_contra], bytes | None] | None: ...
    @property
    def headers(self) -> Callable[[T_contra], Sequence[tuple[str, bytes]]] | None: ...
    @property
    def timestamp(self) -> Callable[[T_contra], int] | None: ...


class Columns(Generic[T]):
    """Makes records of values; RecordFailed names the value that can't become one."""

    def __init__(self, mapper: Mapper[T], uid: str) -> None:
        self._mapper = mapper
        self._uid = uid

    def of(self, values: Sequence[T], timestamps: Sequence[int | None] | None) -> Iterator[tuple[str, Records]]:
        """Per topic, in order. `timestamps` are event times in milliseconds, which records take by default."""
        mapper = self._mapper
        payloads = self._encode(values)
        keys = None if mapper.key is None else self._call(mapper.key, values, "give a key for")
        headers = None if mapper.headers is None else self._headers(mapper.headers, values)
        times = self._times(values, timestamps)
        self._check_bytes("the encoder", payloads, values)
        self._check_bytes("key", keys, values)
        if isinstance(mapper.topic, str):
            yield mapper.topic, _records(payloads, keys, times, headers)
            return
        by_topic: dict[str, list[int]] = {}
        for index, topic in enumerate(self._call(mapper.topic, values, "give a topic for")):
            by_topic.setdefault(topic, []).append(index)
        for topic, chosen in by_topic.items():
            picked = (_pick(column, chosen) for column in (payloads, keys, times, headers))
            yield topic, _records(*picked)

    def _encode(self, values: Sequence[T]) -> list[bytes]:
        try:
            return encode_batch(self._mapper.value, values)
        except Exception:  # comes again, with its value
            return self._call(self._mapper.value.encode, values, "encode")

    def _times(self, values: Sequence[T], given: Sequence[int | None] | None) -> list[int] | None:
        times: Sequence[int | None] | None = given
        if self._mapper.timestamp is not None:
            times = self._call(self._mapper.timestamp, values, "give a timestamp for")
        if times is None:
            return None
        if None in times:
            now = now_ms()
            times = [now if time is None else time for time in times]
        checked = cast(list[int], times)
        if min(checked) < 0:
            index = next(i for i, time in enumerate(checked) if time < 0)
            raise RecordFailed(
                self._uid,
                f"Kafka takes no timestamp before 1970, such as {checked[index]} for {_shown(values[index])}",
            )
        return checked

    def _call(self, fn: Callable[[T], R], values: Sequence[T], what: str) -> list[R]:
        results: list[R] = []
        try:
            results.extend(map(fn, values))
        except Exception as error:
            value = values[len(results)]
            raise RecordFailed(
                self._uid, f"KafkaSink can't {what} {_shown(value)}: {type(error).__name__}: {error}"
            ) from error
        return results

    def _headers(
        self, fn: Callable[[T], Sequence[tuple[str, bytes]]], values: Sequence[T]
    ) -> list[list[tuple[str, bytes]]]:
        return [list(each) for each in self._call(fn, values, "give headers for")]

    def _check_bytes(self, name: str, column: Sequence[object] | None, values: Sequence[T]) -> None:
        """By the set of types, which is cheap where all are well."""
        if column is None or set(map(type, column)) <= BYTES_OR_NONE:
            return
        index = next(i for i, each in enumerate(column) if type(each) not in BYTES_OR_NONE)
        raise RecordFailed(
            self._uid, f"{name} gave {type(column[index]).__name__}, not bytes, for {_shown(values[index])}"
        )


def _records(
    payloads: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    timestamps: Sequence[int] | None,
    headers: Sequence[Sequence[tuple[str, bytes]]] | None,
) -> Records:
    return Records(
        payloads,
        itertools.repeat(None) if keys is None else keys,
        itertools.repeat(now_ms()) if timestamps is None else timestamps,
        itertools.repeat(NO_HEADERS) if headers is None else headers,
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _pick(column: Any, chosen: Sequence[int]) -> Any:
    return None if column is None else [column[index] for index in chosen]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


class Router:
    """Chooses the partition of each record."""

    def __init__(self, producer: Producer, partitioner: Partitioner | None, *, turn: int) -> None:
        self._producer = producer
        self._partitioner = partitioner
        self._turn = turn
        self._routes: dict[str, Route] = {}

    def forget_partitions(self) -> None:
        """They belong to the producer's session before."""
        for route in self._routes.values():
            route.partitions = {}

    async def write(self, topic: str, records: Records) -> None:
        """Waits where the producer's buffers are full."""
        route = self._routes.get(topic)
        if route is None or route.as_of != self._producer.metadata_updates:
            route = await self.route(topic)
        if not route.partitions:
            route.partitions = {number: self._producer.partition(topic, number) for number in route.numbers}
        await self._producer.extend(route.targets(records, self._partitioner), records)

    async def route(self, topic: str) -> "Route":
        """As of the metadata now; raises UnknownTopic or AccessDenied."""
        numbers = await self._producer.partitions_of(topic)
        route = self._routes.get(topic)
        if route is None or route.numbers != numbers:
            route = self._routes[topic] = Route(numbers, self._turn)
        route.led = self._producer.led_partitions(topic) or numbers
        route.as_of = self._producer.metadata_updates
        return route


class Route:
    """One topic's partitions, and what is known of keys."""

    def __init__(self, numbers: tuple[int, ...], turn: int) -> None:
        self.numbers = numbers
        self.led = numbers
        self.as_of = -1
        self.partitions: dict[int, Partition] = {}
        self._keys = KeyPartitions(numbers)
        self._runs = Runs(turn)

    def targets(self, records: Records, partitioner: Partitioner | None) -> Iterable[Partition]:
        """One for each record; perhaps more."""
        partitions = self.partitions
        if partitioner is not None:
            chosen = [partitioner(key, self.numbers, self.led) for key in _finite(records)]
            return [partitions[number] for number in chosen]
        keys = records.keys
        if not isinstance(keys, Sequence):
            return itertools.repeat(partitions[self._run(records.values)])
        if None in keys:
            run = self._run([value for value, key in zip(records.values, keys, strict=True) if key is None])
            return [partitions[run if key is None else self._keys[key]] for key in keys]
        return map(partitions.__getitem__, map(self._keys.__getitem__, keys))

    def _run(self, values: Sequence[bytes | None]) -> int:
        return self._runs.choose(self.led, sum(len(value) for value in values if value is not None))


def _finite(records: Records) -> Iterable[bytes | None]:
    return itertools.islice(records.keys, len(records.values))
