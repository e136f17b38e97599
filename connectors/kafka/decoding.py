"""From fetched records to a batch of values: all at once, one by one only where that fails."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from connectors.kafka.records import KafkaRecord
from streamactors.formats import Decoder, decode_batch
from streamactors.sources import UndecodableRecord

T = TypeVar("T")


TOMBSTONE: Final = "the record is a tombstone (its value is null); KafkaSource.records(…) reads those too"


class Values(Generic[T]):
    """What a plain KafkaSource yields."""

    def __init__(self, value: Decoder[T]) -> None:
        self._value = value

    def all(self, records: Sequence[Any]) -> list[T]:
        """Raises whatever the decoder raises."""
        payloads = [record.value for record in records]
        if None in payloads:
            raise ValueError(TOMBSTONE)
        return decode_batch(self._value, payloads)

    def one(self, record: Any) -> T:
        if record.value is None:
            raise ValueError(TOMBSTONE)
        return self._value.decode(record.value)


class WholeRecords(Generic[T]):
    """What `KafkaSource.records` yields; null keys and values stay None, undecoded."""

    def __init__(self, key: Decoder[Any], value: Decoder[T]) -> None:
        self._decode_key = key.decode
        self._decode = value.decode

    def all(self, records: Sequence[Any]) -> list[KafkaRecord[Any, T]]:
        return list(map(self.one, records))

    def one(self, record: Any) -> KafkaRecord[Any, T]:
        return KafkaRecord(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp,
            None if record.key is None else self._decode_key(record.key),
            None if record.value is None else self._decode(record.value),
            record.headers,
        )


class Decoded:
    """Good values with their records, and the others."""

    __slots__ = ("records", "undecodable", "values")

    def __init__(self, values: list[Any], records: Sequence[Any], undecodable: Sequence[UndecodableRecord]) -> None:
        self.values = values
        self.records = records
        self.undecodable = undecodable


def decoded(decoder: Values[Any] | WholeRecords[Any], records: Sequence[Any], prefix: str) -> Decoded:
    """`prefix` + offset is a record's origin."""
    try:
        return Decoded(decoder.all(records), records, ())
    except Exception:  # whatever it was, it comes again below, with its record
        return _one_by_one(decoder.one, records, prefix)


def _one_by_one(decode: Callable[[Any], Any], records: Sequence[Any], prefix: str) -> Decoded:
    values: list[Any] = []
    good: list[Any] = []
    undecodable: list[UndecodableRecord] = []
    for record in records:
        try:
            values.append(decode(record))
            good.append(record)
        except Exception as error:  # any decoder, any error: the user chose what becomes of it
            undecodable.append(UndecodableRecord(len(values), f"{prefix}{record.offset}", record.value, error))
    return Decoded(values, good, undecodable)
