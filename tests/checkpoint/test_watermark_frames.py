"""Watermarks as in-flight elements: bytes and back, damage found, and manifests that an older reader refuses."""

import pytest

from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import (
    IN_FLIGHT,
    WATERMARKS_IN_FLIGHT,
    EdgeKey,
    FileHandle,
    FrameRef,
    InFlightEdge,
    InFlightHandle,
    SubtaskState,
    requirements,
)
from streamactors.elements import IDLE, MAX_TIME, MIN_TIME, Idle, TimeMark, Watermark
from streamactors.errors import CorruptCheckpoint

MARKS: list[TimeMark] = [
    Watermark(0), Watermark(MIN_TIME), Watermark(MAX_TIME - 1, merged=True), Watermark(7, True, (3, 9)), IDLE,
    Idle(merged=True),
]  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_comes_back(mark: TimeMark) -> None:
    frame = FrameCodec().encode_mark(mark)
    assert FrameCodec().decode_mark(frame.data, "file") == mark
    assert frame.records == 0 and frame.groups == (mark.groups if isinstance(mark, Watermark) else None)


@pytest.mark.parametrize("place", range(8))
def test_damage_is_found(place: int) -> None:
    data = bytearray(FrameCodec().encode_mark(Watermark(12345)).data)
    data[place] ^= 1
    with pytest.raises(CorruptCheckpoint, match="file, an edge"):
        FrameCodec().decode_mark(bytes(data), "file, an edge")
    with pytest.raises(CorruptCheckpoint, match="file, an edge"):
        FrameCodec().decode_mark(bytes(data[:place]), "file, an edge")


@pytest.mark.parametrize(("records", "required"), [(3, (IN_FLIGHT,)), (0, (IN_FLIGHT, WATERMARKS_IN_FLIGHT))])
def test_watermarks_in_flight_are_required(records: int, required: tuple[str, ...]) -> None:
    edge = InFlightEdge(EdgeKey("a", "b"), "forward")
    handle = InFlightHandle(FileHandle("f", 9, b""), (edge,), (FrameRef(0, 0, 0, False, None, records, 0, 9),))
    assert requirements([SubtaskState("a", 0, (), in_flight=handle)]) == required
