"""What a barrier overtakes in one subtask: captured as in-flight data of its checkpoint.

Invariants. A captured batch is encoded before user code gets its records, since that may change them (a batch that
several consumers share, at once). The frames of one logical edge are listed in the order in which they would have been
processed. A channel's capture ends at the checkpoint's own barrier (or at a later one: then its own never comes). What
is captured and not yet written is bounded: what still lies in the mailbox is only referred to, and while `LIMIT` bytes
of encoded frames wait to be written, the subtask takes nothing more.
"""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.actors.signal import Signal
from streamactors.checkpoint.frames import Frame, FrameCodec
from streamactors.checkpoint.manifest import FileHandle, FrameRef, InFlightEdge, InFlightHandle
from streamactors.elements import Barrier, Batch, Element, Idle, TimeMark, Watermark

LIMIT = 16 << 20
CHUNK_BYTES = 1 << 20
"""Written at a time."""


@dataclass(frozen=True, slots=True)
class Route:
    """One logical edge between two subtasks of it. `shared`: others are handed the same records."""

    edge: InFlightEdge
    sender: int
    receiver: int
    shared: bool = False

    @property
    def side(self) -> int:
        """The input of the step that it leads to."""
        return self.edge.key.side


class _Captured:
    """One captured batch (or watermark): `batch` until it is encoded, `frame` then."""

    __slots__ = ("batch", "frame", "route", "unsent")

    def __init__(self, route: Route, batch: Batch | None, *, unsent: bool) -> None:
        self.route = route
        self.unsent = unsent
        self.batch = batch
        self.frame: Frame | None = None


class Capture:
    """The frames of one checkpoint, on their way to storage."""

    def __init__(self, captures: "Captures", checkpoint: int) -> None:
        self.checkpoint = checkpoint
        self.bytes = 0
        self._captures = captures
        self._waiting: deque[_Captured] = deque()
        self._edges: dict[InFlightEdge, int] = {}
        self._refs: list[FrameRef] = []
        self._sealed = False
        self._news = Signal()

    def add(self, route: Route, element: Batch | TimeMark, *, unsent: bool) -> None:
        batch = element if isinstance(element, Batch) else None
        captured = _Captured(route, batch, unsent=unsent)
        self._waiting.append(captured)
        self._captures.remember(captured, element)
        self._news.set()

    def seal(self) -> None:
        """Nothing more is to come."""
        self._sealed = True
        self._news.set()

    def handle(self, file: FileHandle) -> InFlightHandle:
        return InFlightHandle(file, tuple(self._edges), tuple(self._refs))

    def drop(self) -> None:
        while self._waiting:
            self._captures.forget(self._waiting.popleft())

    async def chunks(self, governor: Governor) -> AsyncGenerator[bytes, None]:
        """The file's content, while it is still being captured; ends once sealed."""
        chunk, size = list[bytes](), 0
        while self._waiting or not self._sealed:
            if not self._waiting:
                await self._news.wait()
                continue
            data = self._written(self._waiting[0])
            self._waiting.popleft()
            chunk.append(data)
            size += len(data)
            if size >= CHUNK_BYTES:
                yield b"".join(chunk)
                chunk, size = [], 0
            await governor.give_way()
        if chunk:
            yield b"".join(chunk)

    def _written(self, captured: _Captured) -> bytes:
        frame, route = self._captures.encoded(captured), captured.route
        edge = self._edges.setdefault(route.edge, len(self._edges))
        length = len(frame.data)
        self._refs.append(
            FrameRef(
                edge,
                route.sender,
                route.receiver,
                captured.unsent,
                frame.groups,
                frame.records,
                self.bytes,
                length,
                frame.home,
            )
        )
        self.bytes += length
        return frame.data


class Captures:
    """All that one subtask captures. `routes`: of its input channels; `wake`: tells that there is room again."""

    def __init__(
        self, mailbox: Mailbox[Element], routes: Sequence[Route], codec: FrameCodec, wake: Callable[[], None]
    ) -> None:
        self._mailbox = mailbox
        self._routes = routes
        self._codec = codec
        self._wake = wake
        self._tapped: dict[int, dict[int, Capture]] = {}
        """By channel and checkpoint: what still comes on it is captured."""
        self._unseen: dict[int, list[_Captured]] = {}
        """Not yet encoded, by the identity of their batch (which they keep alive)."""
        self._bytes = 0

    @property
    def congested(self) -> bool:
        """Whether encoded frames wait for the storage, so that nothing more should be taken."""
        return self._bytes > LIMIT

    def capture_channel(self, capture: Capture, channel: int) -> None:
        """What is queued ahead of the barrier, and what still comes until it does."""
        for element in self._mailbox.items(channel):
            if isinstance(element, Batch | Watermark | Idle):
                capture.add(self._routes[channel], element, unsent=False)
            elif _ends(element, capture.checkpoint):
                return
        self._tapped.setdefault(channel, {})[capture.checkpoint] = capture
        self._mailbox.tap = self._arrived

    def _arrived(self, channel: int, element: Element) -> None:
        tapped = self._tapped.get(channel)
        if not tapped:
            return
        if isinstance(element, Batch | Watermark | Idle):
            for capture in tapped.values():
                capture.add(self._routes[channel], element, unsent=False)
            return
        for checkpoint in [number for number in tapped if _ends(element, number)]:
            self._untap(channel, checkpoint)

    def _untap(self, channel: int, checkpoint: int) -> None:
        tapped = self._tapped.get(channel, {})
        tapped.pop(checkpoint, None)
        if not tapped:
            self._tapped.pop(channel, None)
        if not self._tapped:
            self._mailbox.tap = None

    def finish(self, capture: Capture) -> None:
        """Whatever comes now is no longer captured."""
        for channel in list(self._tapped):
            self._untap(channel, capture.checkpoint)

    def route(self, channel: int) -> Route:
        return self._routes[channel]

    # ------------------------------------------------------------------------------------------- encoded before seen
    def before_seen(self, batch: Batch) -> None:
        """Called with every batch before its records are handed on."""
        if self._unseen and id(batch) in self._unseen:
            self._encode(batch)

    def remember(self, captured: _Captured, batch: Batch | TimeMark) -> None:
        if not isinstance(batch, Batch):
            captured.frame = self._codec.encode_mark(batch)
            self._bytes += len(captured.frame.data)
            return
        self._unseen.setdefault(id(batch), []).append(captured)
        if captured.route.shared:
            self._encode(batch)

    def encoded(self, captured: _Captured) -> Frame:
        """Its frame, which is then the caller's."""
        if captured.batch is not None:
            self._encode(captured.batch)
        frame = captured.frame
        assert frame is not None
        captured.frame = None
        self._freed(len(frame.data))
        return frame

    def forget(self, captured: _Captured) -> None:
        if captured.frame is not None:
            self._freed(len(captured.frame.data))
        elif captured.batch is not None:
            alike = self._unseen[id(captured.batch)]
            alike.remove(captured)
            if not alike:
                del self._unseen[id(captured.batch)]

    def _encode(self, batch: Batch) -> None:
        unseen = self._unseen[id(batch)]
        frame = self._codec.encode(batch, unseen[0].route.edge.key)
        del self._unseen[id(batch)]  # not before: what can't be encoded is still to be forgotten
        for captured in unseen:
            captured.frame, captured.batch = frame, None
            self._bytes += len(frame.data)

    def _freed(self, size: int) -> None:
        was = self.congested
        self._bytes -= size
        if was and not self.congested:
            self._wake()


def _ends(element: Element, checkpoint: int) -> bool:
    return isinstance(element, Barrier) and element.checkpoint >= checkpoint
