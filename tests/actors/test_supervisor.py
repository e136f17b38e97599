"""Supervision: every end is told once, nothing survives a shut-down but what is named as stuck."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from streamactors.actors.supervisor import Supervisor, despite_cancellation


class Part:
    def __init__(
        self, run: Callable[[], Awaitable[object]], close: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
    ) -> None:
        self._run, self._close = run, close
        self.closed = 0

    async def run(self) -> None:
        await self._run()

    async def close(self) -> None:
        self.closed += 1
        await self._close()


class Ends:
    def __init__(self) -> None:
        self.seen: list[tuple[str, BaseException | None]] = []
        self.news = asyncio.Event()

    def __call__(self, name: str, error: BaseException | None) -> None:
        self.seen.append((name, error))
        self.news.set()


def forever() -> Awaitable[object]:
    return asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("broken")


async def test_an_end_in_peace_is_told_once_closed() -> None:
    ends = Ends()
    supervisor = Supervisor(ends)
    part = Part(lambda: asyncio.sleep(0))
    supervisor.spawn("peaceful", part)
    await ends.news.wait()
    assert ends.seen == [("peaceful", None)] and part.closed == 1
    assert await supervisor.shut_down(5) == []


async def test_a_failure_is_told_before_the_actor_has_closed() -> None:
    ends, may_close = Ends(), asyncio.Event()
    supervisor = Supervisor(ends)
    part = Part(fail, may_close.wait)
    supervisor.spawn("failing", part)
    await ends.news.wait()
    [(name, error)] = ends.seen
    assert name == "failing" and str(error) == "broken"
    shutting_down = asyncio.create_task(supervisor.shut_down(5))
    await asyncio.sleep(0)
    may_close.set()
    assert await shutting_down == []
    assert len(ends.seen) == 1 and part.closed == 1


async def test_what_fails_on_closing_is_a_note_on_the_first_error() -> None:
    ends = Ends()
    supervisor = Supervisor(ends)

    async def close() -> None:
        raise RuntimeError("the second")

    supervisor.spawn("failing", Part(fail, close))
    await ends.news.wait()
    await supervisor.shut_down(5)
    [(_, error)] = ends.seen
    assert isinstance(error, ValueError) and "the second" in error.__notes__[0]


async def test_a_failing_close_after_a_peaceful_run_is_a_failure() -> None:
    ends = Ends()
    supervisor = Supervisor(ends)
    supervisor.spawn("closing", Part(lambda: asyncio.sleep(0), fail))
    await ends.news.wait()
    assert [(name, type(error)) for name, error in ends.seen] == [("closing", ValueError)]


async def test_a_cancellation_from_within_is_a_failure() -> None:
    ends = Ends()
    supervisor = Supervisor(ends)

    async def await_what_was_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    part = Part(await_what_was_cancelled)
    supervisor.spawn("inner", part)
    await ends.news.wait()
    assert "inner was cancelled from within" in str(ends.seen[0][1])
    assert await supervisor.shut_down(5) == []
    assert len(ends.seen) == 1 and part.closed == 1


async def test_shut_down_cancels_closes_and_tells_nobody() -> None:
    ends = Ends()
    supervisor = Supervisor(ends)
    parts = [Part(forever) for _ in range(3)]
    for number, part in enumerate(parts):
        supervisor.spawn(str(number), part)
    await asyncio.sleep(0)
    assert await supervisor.shut_down(5) == []
    assert [part.closed for part in parts] == [1, 1, 1]
    assert ends.seen == []


async def test_an_actor_that_is_closing_is_not_cancelled() -> None:
    ends, closing, may_close, closed = Ends(), asyncio.Event(), asyncio.Event(), []
    supervisor = Supervisor(ends)

    async def close() -> None:
        closing.set()
        await may_close.wait()
        closed.append(True)

    supervisor.spawn("closing", Part(lambda: asyncio.sleep(0), close))
    await closing.wait()
    shutting_down = asyncio.create_task(supervisor.shut_down(5))
    await asyncio.sleep(0)
    may_close.set()
    assert await shutting_down == [] and closed == [True]


async def test_waiting_for_a_stubborn_actor_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    ends, release = Ends(), asyncio.Event()
    supervisor = Supervisor(ends)

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    supervisor.spawn("stubborn", Part(stubborn))
    await asyncio.sleep(0)
    assert await supervisor.shut_down(0.01) == ["stubborn"]
    assert "actor stubborn did not end" in caplog.text
    release.set()
    await ends.news.wait()
    assert ends.seen == [("stubborn", None)]


async def test_clean_up_goes_on_despite_cancellation_which_follows_it() -> None:
    begun, release, done = asyncio.Event(), asyncio.Event(), []

    async def clean_up() -> None:
        begun.set()
        await release.wait()
        done.append(True)

    task = asyncio.create_task(despite_cancellation(clean_up()))
    await begun.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]
    with pytest.raises(ValueError, match="broken"):
        await despite_cancellation(fail())
