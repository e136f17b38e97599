"""Messages between processes of one machine, on both event loops: here both ends are in this process."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from streamactors.clock import SYSTEM
from streamactors.cluster.sockets import Door, Way
from streamactors.errors import ConnectionLost

PATIENCE = 60.0
uvloop.new_event_loop().close()  # opens what libuv keeps open for the whole process
Scene = Callable[[Door, Way, list[tuple[int, bytes]]], Coroutine[Any, Any, None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    """A scene with a way of worker 3 to a door which keeps what it is given."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(scene: Scene, received: Callable[[int, bytes], None] | None = None) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_played(scene, received))

    return run


async def _played(scene: Scene, received: Callable[[int, bytes], None] | None) -> None:
    taken: list[tuple[int, bytes]] = []
    door = Door(received or (lambda sender, message: taken.append((sender, message))), SYSTEM)
    await door.open()
    way = Way(3)
    assert door.name is not None
    await way.connect(door.name)
    while not door._visitors:
        await asyncio.sleep(0)
    try:
        async with asyncio.timeout(PATIENCE):
            await scene(door, way, taken)
    finally:
        way.close()
        await door.close()
        for _ in range(20):  # turns in which transports that were told to end do
            await asyncio.sleep(0)


def test_messages_of_every_size_are_taken_in_order(play: Any) -> None:
    async def scene(door: Door, way: Way, taken: list[tuple[int, bytes]]) -> None:
        sizes = [0, 1, 7, 8, 9, 100_000, 0, 3_000_000, 5]
        await asyncio.gather(*(way.call(bytes([place]) * size) for place, size in enumerate(sizes)))
        assert taken == [(3, bytes([place]) * size) for place, size in enumerate(sizes)]

    play(scene)


def test_one_that_is_refused_is_said_and_the_next_ones_are_taken(play: Any) -> None:
    taken: list[bytes] = []

    def received(sender: int, message: bytes) -> None:
        if message == b"early":
            raise ConnectionLost("not there yet: größer")
        if message == b"bug":
            raise ValueError("a bug")
        if message == b"silent":
            raise ConnectionLost
        taken.append(message)

    async def scene(door: Door, way: Way, _: Any) -> None:
        told = await asyncio.gather(
            *map(way.call, (b"a", b"early", b"b", b"bug", b"silent", b"c")), return_exceptions=True
        )
        assert [type(error) for error in told] == [type(None), ConnectionLost, type(None)] + [ConnectionLost] * 2 + [
            type(None)
        ]
        assert str(told[1]) == "not there yet: größer" and str(told[3]) == "ValueError: a bug"
        assert taken == [b"a", b"b", b"c"]

    play(scene, received)


def test_what_is_under_way_as_the_other_end_goes_is_lost_and_so_is_what_comes_later(play: Any) -> None:
    async def scene(door: Door, way: Way, taken: list[tuple[int, bytes]]) -> None:
        await way.call(b"first")
        calls = [asyncio.ensure_future(way.call(bytes(10_000_000))) for _ in range(3)]
        await asyncio.sleep(0)
        await door.close()
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in told] == [ConnectionLost] * 3
        assert way.broken and taken == [(3, b"first")]
        with pytest.raises(ConnectionLost, match="has ended"):
            await way.call(b"later")

    play(scene)


def test_a_call_that_is_cancelled_leaves_the_answers_of_others_in_order(play: Any) -> None:
    def received(sender: int, message: bytes) -> None:
        if message == b"refused":
            raise ConnectionLost("refused")

    async def scene(door: Door, way: Way, _: Any) -> None:
        first, second = (asyncio.ensure_future(way.call(message)) for message in (b"taken", b"refused"))
        await asyncio.sleep(0)
        first.cancel()
        assert [type(error) for error in await asyncio.gather(first, second, return_exceptions=True)] == [
            asyncio.CancelledError,
            ConnectionLost,
        ]
        await way.call(b"taken")

    play(scene, received)


def test_a_name_that_nobody_has_leads_nowhere_at_once(play: Any) -> None:
    async def scene(door: Door, way: Way, _: Any) -> None:
        stray = Way(1)
        assert stray.broken
        with pytest.raises(ConnectionLost, match="no way to streamactors-gone"):
            await stray.connect("streamactors-gone")
        stray.close()

    play(scene)


def test_a_process_of_another_user_is_not_talked_to(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At neither end: who sits there is the system's word."""
    here = os.geteuid()

    async def scene(door: Door, way: Way, taken: list[tuple[int, bytes]]) -> None:
        assert door.name is not None
        await way.call(b"first")
        monkeypatch.setattr(os, "geteuid", lambda: here + 1)
        with pytest.raises(ConnectionLost, match=f"of user {here}"):
            await Way(1).connect(door.name)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stranger, f"\0{door.name}")
            await loop.sock_sendall(stranger, b"\0\0\0\3\0\0\0\1x")
            with contextlib.suppress(ConnectionError):
                assert await loop.sock_recv(stranger, 1) == b""
        monkeypatch.undo()
        await way.call(b"of our own")
        assert taken == [(3, b"first"), (3, b"of our own")]

    play(scene)


def test_each_door_has_a_name_of_its_own_and_no_file() -> None:
    names = {Door(lambda sender, message: None, SYSTEM).name for _ in range(10)}
    assert len(names) == 10 and not any(os.path.exists(str(name)) for name in names)
