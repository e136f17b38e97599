"""Exchanges on a made-up network."""

import asyncio
from typing import Any

from streamactors.actors.governor import Governor
from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.frames import FrameCodec
from streamactors.checkpoint.manifest import EdgeKey
from streamactors.clock import Clock
from streamactors.cluster.exchange import Exchange
from streamactors.cluster.wire import Epoch, Wire
from streamactors.elements import Element
from streamactors.graph.physical import ChannelId, SubtaskId
from streamactors.runtime.channel import Channel

EDGE = EdgeKey("up", "down")
EPOCH = Epoch(1, 1)


def channel_id(sender: int = 0, receiver: int = 0) -> ChannelId:
    return ChannelId(0, SubtaskId("up", sender), SubtaskId("down", receiver))


class Lost:
    """What an exchange has told of peers that are lost."""

    def __init__(self) -> None:
        self.errors: list[tuple[int, BaseException]] = []
        self._news = asyncio.Event()

    def __call__(self, peer: int, error: BaseException) -> None:
        self.errors.append((peer, error))
        self._news.set()

    async def first(self) -> tuple[int, BaseException]:
        await self._news.wait()
        return self.errors[0]


def exchange(me: int, wire: Wire, clock: Clock, lost: Any, *, epoch: Epoch = EPOCH, **options: Any) -> Exchange:
    governor = Governor.of_running_loop(clock.monotonic)
    codec = options.pop("codec", None) or FrameCodec()
    return Exchange(epoch, me, wire, codec, clock, governor, lost, [EDGE], **options)


def connected(
    sender: Exchange, receiver: Exchange, mailbox: Mailbox[Element], place: int = 0, *, id: ChannelId | None = None
) -> Channel:
    """A channel from worker 0 to worker 1."""
    id = id or channel_id()
    receiver.admit(id, mailbox, place, 0)
    return sender.channel(id, 1, mailbox.quota, mailbox.byte_quota)
