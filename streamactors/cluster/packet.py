"""What workers send each other on the data plane: elements of many channels, and what they have taken from others.

Everything in a packet names its place by itself, so that packets may come in any order: an element has its number
within its channel, what was taken is counted from the start.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from streamactors.elements import Barrier, Element, EndOfData, EndOfKeys, Idle, Watermark
from streamactors.graph.physical import ChannelId

ChannelName = tuple[int, int, int]
"""Number of the edge, index of the sender, index of the receiver."""

_KINDS: Final[tuple[type[Watermark] | type[Idle] | type[Barrier] | type[EndOfData] | type[EndOfKeys], ...]] = (
    Watermark,
    Idle,
    Barrier,
    EndOfData,
    EndOfKeys,
)


class Records(msgspec.Struct, array_like=True, tag=0, gc=False):
    """A batch: `frame` is its place among the packet's frames; `size`, in bytes, is what the sender takes it for."""

    number: int
    frame: int
    records: int
    size: int


class Sign(msgspec.Struct, array_like=True, tag=1, gc=False):
    """Any other element. `ordinal`: of a barrier, its number among those of its channel."""

    number: int
    kind: int
    content: bytes
    ordinal: int = 0


class Taken(msgspec.Struct, array_like=True, gc=False):
    """From one channel, since it was opened."""

    channel: ChannelName
    records: int
    bytes: int


class Packet(msgspec.Struct, array_like=True):
    """`frames`: encoded batches, each once, however many channels it goes into."""

    frames: list[bytes]
    parts: list[tuple[ChannelName, list[Records | Sign]]]
    taken: list[Taken]


_PACKETS: Final = msgspec.msgpack.Decoder(Packet)
_DECODERS: Final = tuple(msgspec.msgpack.Decoder(kind) for kind in _KINDS)


def name_of(id: ChannelId) -> ChannelName:
    return id.edge, id.sender.index, id.receiver.index


def sign(number: int, element: Element, ordinal: int = 0) -> Sign:
    kind = next(place for place, kind in enumerate(_KINDS) if isinstance(element, kind))
    return Sign(number, kind, msgspec.msgpack.encode(element), ordinal)


def element_of(sign: Sign) -> Watermark | Idle | Barrier | EndOfData | EndOfKeys:
    element: Watermark | Idle | Barrier | EndOfData | EndOfKeys = _DECODERS[sign.kind].decode(sign.content)
    return element


def packed(frames: list[bytes], parts: Iterable[tuple[ChannelName, list[Records | Sign]]], taken: list[Taken]) -> bytes:
    return msgspec.msgpack.encode(Packet(frames, list(parts), taken))


def unpacked(body: memoryview) -> Packet:
    """Raises msgspec.MsgspecError."""
    return _PACKETS.decode(body)
