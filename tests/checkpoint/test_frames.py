"""Frames come back as the batches they were, or not at all."""

import dataclasses
import datetime as dt
import enum
import zlib
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.checkpoint.frames import VERSION, FrameCodec
from streamactors.checkpoint.manifest import EdgeKey
from streamactors.elements import Batch
from streamactors.errors import CorruptCheckpoint, IncompatibleState, UnserialisableValue

EDGE = EdgeKey("orders", "totals")
WHERE = "run-1/attempt-1/chk-1/0001-x, records in flight on the edge 'orders' → 'totals'"


class Colour(enum.Enum):
    RED = 1


class Place(NamedTuple):
    x: int
    y: float


class Order(msgspec.Struct):
    customer: str
    amount: float
    tags: tuple[str, ...] = ()


class Loose(msgspec.Struct):
    what: Any


@dataclasses.dataclass
class Event:
    at: dt.datetime
    cost: Decimal | None = None


def returned(batch: Batch, codec: FrameCodec | None = None) -> Batch:
    """By the codec of another process."""
    return FrameCodec().decode((codec or FrameCodec()).encode(batch, EDGE).data, WHERE)


def columns(batch: Batch) -> list[Any]:
    listed = (batch.values, batch.timestamps, batch.keys, batch.groups, batch.origins)
    return [*(None if column is None else list(column) for column in listed), batch.split]


# ----------------------------------------------------------------------------------------------------------- round trip
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.decimals(allow_nan=False) | st.fractions() | st.uuids() | st.dates() | st.datetimes() | st.timedeltas()
    | st.just(Colour.RED)
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.builds(Loose, inner)
    ),
    max_leaves=5,
)


def typed(value: Any) -> Any:
    """With the types, which == does not tell: True and 1, (1,) and Place."""
    match value:
        case list() | tuple():
            return type(value), [typed(item) for item in value]
        case dict():
            return {key: typed(item) for key, item in value.items()}
        case Loose(what=what):
            return Loose, typed(what)
    return type(value), value


@given(st.data())
def test_any_batch_comes_back(data: st.DataObject) -> None:
    records = data.draw(st.lists(values, min_size=1, max_size=6))

    def column(items: st.SearchStrategy[Any]) -> Any:
        return data.draw(st.none() | st.lists(items, min_size=len(records), max_size=len(records)))

    stamps, groups = column(st.none() | st.integers(-(2**63), 2**63 - 1)), column(st.integers(0, 32767))
    batch = Batch(records, stamps, None, groups, column(st.integers(0, 2**63 - 1)), data.draw(st.text()))
    found = returned(batch)
    assert columns(found) == columns(batch)
    assert list(map(typed, found.values)) == list(map(typed, batch.values))


@given(st.lists(st.tuples(values, values), min_size=1, max_size=6), st.booleans())
def test_what_is_sent_comes_with_its_keys(pairs: list[tuple[Any, Any]], keyed: bool) -> None:
    records, keys = [value for value, _ in pairs], [key for _, key in pairs]
    sent = FrameCodec().encode_to_send(Batch(records, keys=keys if keyed else None, groups=[1] * len(pairs)), EDGE)
    found = FrameCodec().decode_sent(sent, EDGE)
    assert list(map(typed, found.values)) == list(map(typed, records))
    assert (found.keys is not None) == keyed and found.groups == [1] * len(pairs)
    assert not keyed or list(map(typed, found.keys or ())) == list(map(typed, keys))


def test_what_is_refused_of_a_record_to_be_sent() -> None:
    refused = "type builtins.function on the edge 'orders' → 'totals' can't be sent to another process: .*one process"
    for batch in (Batch([lambda: None]), Batch([1], keys=[lambda: None])):
        with pytest.raises(UnserialisableValue, match=refused):
            FrameCodec().encode_to_send(batch, EDGE)
    with pytest.raises(UnserialisableValue, match=refused):
        FrameCodec().check_sendable(lambda: None, EDGE)


@pytest.mark.parametrize(
    "records",
    [
        [Order("a", 1.5, ("x",)), Order("b", 2.0)],
        [Event(dt.datetime(2024, 1, 1, tzinfo=dt.UTC), Decimal("1.10")), Event(dt.datetime(2024, 1, 2))],
        [Order("a", 1.5), Event(dt.datetime(2024, 1, 1)), None, 3],
        [Place(1, 2.0), (1, 2.0), Fraction(1, 3), UUID(int=5), {1, 2}, frozenset({3}), 2**100],
        # Not what the class declares, but what the record is.
        [Order(7, "much"), Order("a", 1)],  # type: ignore[arg-type]
    ],
)
def test_records_keep_their_classes(records: list[Any]) -> None:
    found = returned(Batch(records))
    assert found.values == records
    assert list(map(type, found.values)) == list(map(type, records))
    for one, other in zip(found.values, records, strict=True):
        if isinstance(other, Order):
            assert list(map(type, msgspec.structs.astuple(one))) == list(map(type, msgspec.structs.astuple(other)))


def test_arrays() -> None:
    [found] = returned(Batch([numpy.arange(6, dtype="int16").reshape(2, 3)])).values
    assert found.dtype == "int16" and found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_columns_may_be_tuples_and_ranges() -> None:
    batch = Batch((1, 2, 3), (5, None, 7), None, (3, 1, 2), range(10, 13), "orders[3]@").take([0, 2])
    assert columns(returned(batch)) == [[1, 3], [5, 7], None, [3, 2], [10, 12], "orders[3]@"]


def test_keys_are_not_stored() -> None:
    assert returned(Batch([1], keys=[object()], groups=[5])).keys is None


def test_what_the_manifest_lists_of_a_frame() -> None:
    codec = FrameCodec()
    frames = [codec.encode(Batch([1, 2, 3], groups=[7, 2, 5]), EDGE), codec.encode(Batch([4]), EDGE)]
    assert [(frame.records, frame.groups) for frame in frames] == [(3, (2, 7)), (1, None)]


# ------------------------------------------------------------------------------------------------------------- refusals
class Connection:
    """Nothing that could be stored."""


@pytest.mark.parametrize("record", [Connection(), [Connection()], Loose(Connection()), lambda: None])
def test_an_edge_refuses_its_first_record(record: Any) -> None:
    codec = FrameCodec()
    with pytest.raises(UnserialisableValue, match="on the edge 'orders' → 'totals' can't be stored.*dataclass") as e:
        codec.check(record, EDGE)
    assert type(record).__qualname__ in str(e.value) and "alignment='aligned'" in str(e.value)
    with pytest.raises(UnserialisableValue, match="'orders' → 'totals'"):
        codec.encode(Batch([1, record]), EDGE)
    codec.check(Order("a", 1.0), EDGE)


def test_a_time_stamp_that_is_no_number_names_the_edge() -> None:
    for stamp in (object(), 2**70):
        with pytest.raises(UnserialisableValue, match="time-stamp.*'orders' → 'totals'"):
            FrameCodec().encode(Batch([1], [stamp]), EDGE)  # type: ignore[list-item]


# --------------------------------------------------------------------------------------------------------------- damage
DATA = FrameCodec().encode(Batch([Order("a", 1.5), Order("b", 2.5)], [1, None], None, [3, 4]), EDGE).data


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_found(bit: int) -> None:
    for place in range(len(DATA)):
        data = bytearray(DATA)
        data[place] ^= 1 << bit
        with pytest.raises(CorruptCheckpoint, match="^run-1.*'orders' → 'totals' is altered"):
            FrameCodec().decode(bytes(data), WHERE)


def test_every_cut_is_found() -> None:
    for length in range(len(DATA)):
        with pytest.raises(CorruptCheckpoint, match="is truncated|is altered"):
            FrameCodec().decode(DATA[:length], WHERE)


def sealed(payload: bytes, version: int = VERSION) -> bytes:
    return bytes([version]) + zlib.crc32(payload, version).to_bytes(4, "big") + payload


def test_a_newer_format_is_told_from_damage() -> None:
    with pytest.raises(IncompatibleState, match="has format 2, and this version of streamactors reads 1"):
        FrameCodec().decode(sealed(b"whatever", 2), WHERE)


def test_a_right_checksum_over_nonsense() -> None:
    for payload in (b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode([b"", "x", None, None, ""])):
        with pytest.raises(CorruptCheckpoint, match="malformed, though its checksum is right"):
            FrameCodec().decode(sealed(payload), WHERE)
    good = msgspec.msgpack.decode(DATA[5:])
    with pytest.raises(CorruptCheckpoint, match="columns of 2 and of 1 records"):
        FrameCodec().decode(sealed(msgspec.msgpack.encode([good[0], [1], None, None, ""])), WHERE)
    with pytest.raises(IncompatibleState, match=r"can't be read.*has their class been changed\?"):
        FrameCodec().decode(sealed(msgspec.msgpack.encode([b"T\xc1", None, None, None, ""])), WHERE)


def test_a_class_that_is_gone_names_file_and_edge() -> None:
    payload = DATA[5:].replace(b"test_frames.Order", b"test_frames.Ordex")
    with pytest.raises(IncompatibleState, match="^run-1.*'orders' → 'totals': .*Ordex.*import the module"):
        FrameCodec().decode(sealed(payload), WHERE)
