"""Manifests come back as they were written, or not at all; older and newer formats are told apart from damage."""

import struct
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.checkpoint import layout, manifest
from streamactors.checkpoint.layout import Place
from streamactors.checkpoint.manifest import (
    FORMAT,
    HEADER,
    MAGIC,
    BlockRef,
    EdgeKey,
    FileHandle,
    FrameRef,
    InFlightEdge,
    InFlightHandle,
    KeyedHandle,
    ListRef,
    ListsHandle,
    Manifest,
    NodeState,
    OperatorMeta,
    Receipt,
    SubtaskState,
    Widest,
    decode,
    decode_manifest,
    encode,
    encode_manifest,
    is_transactional,
    requirements,
)
from streamactors.errors import CorruptCheckpoint, IncompatibleState, InvalidConfig, UnserialisableValue

FILE = "file:///storage/orders/run-1/attempt-2/chk-3/manifest"
SHARED = FileHandle("run-1/attempt-2/chk-3/0001-a", 300, b"d" * 16)


def example(**changes: Any) -> Manifest:
    content = Manifest(
        flow="orders",
        run=1,
        attempt=2,
        checkpoint=3,
        time_ms=1_700_000_000_000,
        operators=(OperatorMeta("orders", "source", 1, 128), OperatorMeta("totals", "process", 2, 128)),
        subtasks=(
            SubtaskState(
                "source",
                0,
                (NodeState("orders", positions={"orders[0]": 17, "orders[1]": {"file": b"\xff", "at": [1, None]}}),),
                ended=True,
            ),
            SubtaskState("totals", 0, (keyed("totals", SHARED, 2), NodeState("out", pending=([1, 2], {"id": "x"})))),
            SubtaskState("totals", 1, (keyed("totals", FileHandle("run-1/attempt-2/chk-3/0002-b", 7, b"e" * 16), 5),)),
            SubtaskState("again", 0, (keyed("again", SHARED, 1),)),
        ),
        transactional=True,
    )
    return msgspec.structs.replace(content, **changes)


def keyed(uid: str, file: FileHandle, entries: int) -> NodeState:
    blocks = (BlockRef("total", 3, entries, 0, 4), BlockRef("total", 4, 0, 4, 3))
    return NodeState(uid, keyed=(KeyedHandle(file, blocks),), schemas={"total": {"type": "float"}}, watermark=-5)


def resealed(data: bytes, *, version: tuple[int, int] = FORMAT, payload: bytes | None = None) -> bytes:
    """A file that another version would write."""
    payload = data[HEADER.size :] if payload is None else payload
    header = HEADER.pack(MAGIC, b"mani", 0, *version, len(payload), manifest._digest(payload), 0)[:-4]
    return header + struct.pack(">I", zlib.crc32(header)) + payload


def test_round_trip() -> None:
    content = example()
    # msgpack knows no tuples: what is opaque comes back as lists.
    assert decode_manifest(encode_manifest(content), FILE) == content


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.text(), plain, max_size=3),
    st.lists(plain, max_size=3),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
)
def test_any_plain_data_comes_back(positions: dict[str, Any], pending: list[Any], mark: int | None, flag: bool) -> None:
    node = NodeState("a", positions=positions, pending=tuple(pending), watermark=mark)
    content = example(subtasks=(SubtaskState("v", 0, (node,)),), transactional=flag, final=flag, savepoint=flag)
    data = encode_manifest(content)
    assert decode_manifest(data, FILE) == content
    assert is_transactional(data) is flag


def test_questions() -> None:
    content = example()
    assert content.files == (SHARED, FileHandle("run-1/attempt-2/chk-3/0002-b", 7, b"e" * 16))
    assert content.state_bytes == 307
    assert content.entries == 8
    assert [(subtask.index, node.uid) for subtask, node in content.nodes("totals")] == [(0, "totals"), (1, "totals")]
    assert content.operator("totals") == OperatorMeta("totals", "process", 2, 128)
    assert content.operator("gone") is None


# --------------------------------------------------------------------------------------------- list state without a key
LISTS = FileHandle("run-1/attempt-2/chk-3/0004-buffer-lists-0", 30, b"g" * 16)


def with_lists(*refs: ListRef) -> Manifest:
    node = NodeState("buffer", lists=ListsHandle(LISTS, refs), list_schemas={"held": {"kind": "operator list"}})
    subtasks = (SubtaskState("buffer", 0, (node,)),)
    return example(subtasks=subtasks, requires=requirements(subtasks))


def test_lists_come_back_and_an_older_reader_is_told_of_them() -> None:
    content = with_lists(ListRef("held", 3, 0, 20), ListRef("known", 2, 20, 10, True))
    assert decode_manifest(encode_manifest(content), FILE) == content
    assert content.requires == ("operator-lists",)
    assert content.files == (LISTS,) and content.state_bytes == 30
    with pytest.raises(AssertionError, match="an older reader would lose data"):
        encode_manifest(msgspec.structs.replace(content, requires=()))


def test_broadcast_state_is_no_list_to_an_older_reader() -> None:
    content = with_lists(ListRef("held", 3, 0, 20), ListRef("rules", 2, 20, 10, broadcast=True))
    assert decode_manifest(encode_manifest(content), FILE) == content
    assert content.requires == ("operator-lists", "broadcast-state")


@pytest.mark.parametrize(
    "ref", [ListRef("held", 1, 20, 11), ListRef("held", 1, -1, 5), ListRef("held", 1, 5, -1), ListRef("held", 0, 0, 9)]
)
def test_lists_that_can_not_be(ref: ListRef) -> None:
    with pytest.raises(CorruptCheckpoint, match=f"{FILE} is malformed: of operator 'buffer' it lists ListRef"):
        decode_manifest(encode_manifest(with_lists(ref)), FILE)


# ------------------------------------------------------------------------------------------------------------ in flight
CAPTURED = FileHandle("run-1/attempt-2/chk-3/0003-in-flight", 30, b"f" * 16)
KEYED = InFlightEdge(EdgeKey("orders", "totals"), "keyed")
SIDE = InFlightEdge(EdgeKey("orders", "totals", "late", 1), "rebalance")
FRAMES = (FrameRef(0, 0, 1, False, (3, 7), 5, 0, 20), FrameRef(1, 0, 0, True, None, 2, 20, 10))


def with_in_flight(*frames: FrameRef, edges: tuple[InFlightEdge, ...] = (KEYED, SIDE)) -> Manifest:
    last = SubtaskState("totals", 1, (), in_flight=InFlightHandle(CAPTURED, edges, frames))
    subtasks = (*example().subtasks, last)
    return example(subtasks=subtasks, requires=requirements(subtasks))


def test_what_is_in_flight_comes_back() -> None:
    content = with_in_flight(*FRAMES)
    assert decode_manifest(encode_manifest(content), FILE) == content
    assert content.files == (*example().files, CAPTURED)
    assert content.state_bytes == example().state_bytes + 30
    assert (content.in_flight_records, content.in_flight_bytes) == (7, 30)
    assert [(edge, frame) for _, edge, frame in content.in_flight()] == list(zip((KEYED, SIDE), FRAMES, strict=True))


def test_records_on_their_way_to_a_second_input() -> None:
    """To an older reader all would lie on one edge."""
    right = InFlightEdge(EdgeKey("orders", "totals", side=1), "broadcast")
    content = with_in_flight(*FRAMES, edges=(KEYED, right))
    assert decode_manifest(encode_manifest(content), FILE) == content
    assert content.requires == ("in-flight", "second-inputs-in-flight")
    stored = msgspec.msgpack.encode(("orders", "totals", None, 1))
    assert msgspec.msgpack.decode(stored, type=EdgeKey) == EdgeKey("orders", "totals", None, 1, side=0)


def test_only_what_is_in_flight_is_a_requirement() -> None:
    """So that an older version goes on reading what it can restore."""
    assert with_in_flight(*FRAMES).requires == ("in-flight",)
    for content in (example(), with_in_flight()):
        assert requirements(content.subtasks) == content.requires == ()
        assert (content.in_flight_records, content.in_flight_bytes) == (0, 0)
    with pytest.raises(AssertionError, match="an older reader would lose data"):
        encode_manifest(msgspec.structs.replace(with_in_flight(*FRAMES), requires=()))


def test_manifests_from_before_there_was_anything_in_flight() -> None:
    fields = msgspec.msgpack.decode(DATA[HEADER.size :])
    for operator in fields["operators"]:
        del operator["named"]
    assert not any("in_flight" in subtask for subtask in fields["subtasks"])
    found = decode_manifest(resealed(DATA, payload=msgspec.msgpack.encode(fields)), FILE)
    assert found == example()
    assert not list(found.in_flight())


@pytest.mark.parametrize(
    "changes",
    [
        {"edge": 2},
        {"edge": -1},
        {"sender": 1, "unsent": True},
        {"sender": -1},
        {"receiver": 2},
        {"receiver": -1},
        {"records": -1},
        {"offset": -1},
        {"offset": 11},
        {"length": -1},
        {"length": 31},
        {"groups": None},
    ],
)
def test_a_frame_that_can_not_be_is_found(changes: dict[str, Any]) -> None:
    bad = msgspec.structs.replace(FRAMES[0], **changes)
    with pytest.raises(CorruptCheckpoint, match=f"{FILE} is malformed"):
        decode_manifest(encode_manifest(with_in_flight(FRAMES[1], bad)), FILE)


def test_who_sent_what_lies_with_its_receiver_may_be_gone() -> None:
    """Restored from a job with more senders, and captured again."""
    content = with_in_flight(msgspec.structs.replace(FRAMES[0], sender=5))
    assert decode_manifest(encode_manifest(content), FILE) == content


@pytest.mark.parametrize("key", [EdgeKey("gone", "totals"), EdgeKey("orders", "gone")])
def test_an_edge_of_unlisted_operators_is_found(key: EdgeKey) -> None:
    edges = (InFlightEdge(key, "forward"),)
    with pytest.raises(CorruptCheckpoint, match=f"{FILE} is malformed.*'gone'"):
        decode_manifest(encode_manifest(with_in_flight(FRAMES[0], edges=edges)), FILE)


# --------------------------------------------------------------------------------------------------------------- damage
DATA = encode_manifest(example())


@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_manifest_is_found(length: int) -> None:
    with pytest.raises(CorruptCheckpoint, match=f"{FILE} is truncated: expected .* bytes, found {length}"):
        decode_manifest(DATA[:length], FILE)


@pytest.mark.parametrize("bit", [0, 7])
def test_every_flipped_bit_is_found(bit: int) -> None:
    for position in range(len(DATA)):
        data = bytearray(DATA)
        data[position] ^= 1 << bit
        with pytest.raises(CorruptCheckpoint, match=f"^{FILE} is .*expected .*found"):
            decode_manifest(bytes(data), FILE)


def test_appended_bytes_are_found() -> None:
    with pytest.raises(CorruptCheckpoint, match=f"altered: expected {len(DATA)} bytes, found {len(DATA) + 1}"):
        decode_manifest(DATA + b"x", FILE)


def test_another_file_is_no_manifest() -> None:
    for other in (b"x" * 100, encode(Widest({"a": 1}))):
        with pytest.raises(CorruptCheckpoint, match="is not the kind of file that it should be"):
            decode_manifest(other, FILE)


def test_a_right_checksum_over_nonsense() -> None:
    with pytest.raises(CorruptCheckpoint, match=f"{FILE} is malformed, though its checksum is right"):
        decode_manifest(resealed(DATA, payload=b"\x80"), FILE)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", ""])
def test_a_handle_never_leads_out_of_the_folder(path: str) -> None:
    node = NodeState("a", keyed=(KeyedHandle(FileHandle(path, 1, b"d" * 16), ()),))
    with pytest.raises(CorruptCheckpoint, match="it refers to"):
        decode_manifest(encode_manifest(example(subtasks=(SubtaskState("v", 0, (node,)),))), FILE)


def test_the_header_tells_of_transactions_though_the_payload_is_damaged() -> None:
    for transactional in (True, False):
        data = encode_manifest(example(transactional=transactional))
        assert is_transactional(data[:-3]) is transactional
        assert is_transactional(data[:20]) is None
        assert is_transactional(b"y" + data[1:]) is None


# ------------------------------------------------------------------------------------------------------------- versions
def test_a_newer_format_is_refused_by_name() -> None:
    with pytest.raises(IncompatibleState, match=rf"{FILE} has format 2.0, and this version of streamactors reads 1\.x"):
        decode_manifest(resealed(DATA, version=(2, 0), payload=b"not even msgpack"), FILE)


def test_what_a_newer_minor_adds_is_ignored() -> None:
    fields = msgspec.msgpack.decode(DATA[HEADER.size :])
    fields["novelty"] = {"of": "1.9"}
    fields["subtasks"][0]["novelty"] = 1
    fields["subtasks"][1]["nodes"][0]["keyed"][0]["blocks"][0].append("novelty")
    payload = msgspec.msgpack.encode(fields)
    assert decode_manifest(resealed(DATA, version=(1, 9), payload=payload), FILE) == example()


def test_what_must_not_be_ignored_is_refused_by_name() -> None:
    with pytest.raises(IncompatibleState, match=f"{FILE} needs increments, novelty, which this version"):
        decode_manifest(encode_manifest(example(requires=("novelty", "in-flight", "increments"))), FILE)


@pytest.mark.parametrize("value", [object(), 2**64, {1j: 2}])
def test_what_is_not_plain_data_names_its_operator(value: object) -> None:
    good, bad = NodeState("good"), NodeState("bad", positions={"split": value})
    with pytest.raises(UnserialisableValue, match="checkpoint 3 can't be written: operator 'bad' has a position"):
        encode_manifest(example(subtasks=(SubtaskState("v", 0, (good, bad)),)))


def test_small_records() -> None:
    receipt = Receipt(3, 17)
    assert decode(encode(receipt), Receipt, "committed") == receipt
    with pytest.raises(CorruptCheckpoint, match="committed is altered"):
        decode(encode(receipt)[:-1] + b"\x00", Receipt, "committed")


# --------------------------------------------------------------------------------------------------------------- layout
@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 10**9))
def test_places_are_found_in_uris(run: int, attempt: int, checkpoint: int) -> None:
    place = Place(run, attempt, checkpoint)
    assert layout.split_checkpoint(f"file:///a/run-1/b/{place.folder}") == ("file:///a/run-1/b", place)
    assert layout.split_checkpoint(f"file:///a/{place.folder}/more") is None


@given(st.text(min_size=1, max_size=15), st.text(min_size=1, max_size=15))
def test_flows_never_share_a_folder(one: str, other: str) -> None:
    folders = layout.flow_folder(one), layout.flow_folder(other)
    assert (folders[0] == folders[1]) == (one == other)
    for folder in folders:
        assert "/" not in folder
        assert not folder.startswith(".")


def test_names() -> None:
    assert layout.flow_folder("orders-2_a.b") == "orders-2_a.b"
    assert layout.flow_folder("a/b ü") == "a%2Fb%20%C3%BC"
    assert layout.flow_folder("..") == "%2E."
    assert layout.state_file(7, "totals/0") == "0007-totals%2F0"
    assert len(layout.state_file(7, "ü" * 500)) < 255
    assert layout.number("chk", "chk-17") == 17
    for name in ("chk-0", "chk-", "chk-1x", "run-1", "chk-01", "xchk-1"):
        assert layout.number("chk", name) is None
    for flow in ("", "x" * 201):
        with pytest.raises(InvalidConfig, match="can't name a folder of checkpoints"):
            layout.flow_folder(flow)
