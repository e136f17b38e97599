"""The link of an AsyncKeyedOperator alone, at turns of events that a whole job takes but now and then."""

import asyncio
from typing import Any

import streamactors as sa
from streamactors.elements import Batch, Watermark
from streamactors.operators.async_io.keyed import AsyncKeyedLink, KeyedProcessSpec
from streamactors.operators.async_io.link import Emitted
from streamactors.operators.base import LinkContext, OperatorContext
from streamactors.state.heap.backend import HeapBackend
from streamactors.state.key_groups import KeyGroupRange, key_group
from tests.operators.async_io.board import Board

GROUPS = 4


async def opened(operator: Any) -> AsyncKeyedLink:
    context = OperatorContext(uid="step", subtask=0, parallelism=1)
    backend = HeapBackend(KeyGroupRange(0, GROUPS), GROUPS, uid="step")
    link = KeyedProcessSpec(operator).link(LinkContext("step", "step", context, backend=backend))
    assert isinstance(link, AsyncKeyedLink)
    await link.open()
    return link


def of_keys(*records: tuple[str, Any]) -> Batch:
    keys = [key for key, _ in records]
    stamps: list[int | None] = [0] * len(records)
    return Batch([value for _, value in records], stamps, keys, [key_group(key, GROUPS) for key in keys])


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def harvested(link: AsyncKeyedLink) -> list[Any]:
    """As the subtask does, until there is nothing to do."""
    found: list[Any] = []
    await some_turns()
    while link.ready:
        for part in await link.harvest():
            found += part.batch.values if isinstance(part, Emitted) and part.batch is not None else []
        await some_turns()
    return found


def ringing(board: Board) -> type[sa.AsyncKeyedOperator[str, Any, Any]]:
    class Ringing(sa.AsyncKeyedOperator[str, Any, Any]):
        capacity = 2

        async def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
            await board(value)
            if isinstance(value, list):
                for change in value:
                    change(ctx)
            ctx.emit(value)

        async def on_timer(self, timer: sa.Timer, ctx: sa.Context[str, Any]) -> None:
            await board(timer.name)
            ctx.emit(timer.name)

    return Ringing


async def test_a_timer_that_comes_just_when_a_deleted_one_is_passed_over_takes_the_place_of_none() -> None:
    board = Board()

    class Changing(ringing(board)):  # type: ignore[misc]
        async def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
            await board(value)
            if value == "changes":
                ctx.timers.delete(20, "deleted", domain="processing")
                ctx.timers.processing(5, "earlier")
            else:
                ctx.timers.processing(20, "deleted")

    link = await opened(Changing)
    assert link.timers is not None
    await link.process(of_keys(("k", "sets"), ("k", "changes")))
    await some_turns()
    board.finish("sets")
    await harvested(link)
    await link.fire("processing", await link.timers.next_processing(100, 10))
    board.finish("changes")
    await some_turns()
    await link.harvest()  # passes the deleted one over
    await link.fire("processing", await link.timers.next_processing(100, 10))
    await harvested(link)
    assert board.running == ["earlier"]
    board.finish("earlier")
    assert await harvested(link) == ["earlier"] and not link.holding
    await link.close()


async def test_a_record_that_had_to_wait_for_timers_begins_though_what_is_behind_a_mark_took_the_room() -> None:
    board = Board()

    class Setting(ringing(board)):  # type: ignore[misc]
        async def process(self, value: Any, ctx: sa.Context[str, Any]) -> None:
            if value == "sets":
                ctx.timers.event(150, ctx.key)
            else:
                await board(value)
            ctx.emit(value)

    link = await opened(Setting)
    assert link.timers is not None
    await link.process(of_keys(("x", "sets"), ("y", "sets")))
    await harvested(link)
    await link.timers.reach(Watermark(200))
    await link.fire("event", await link.timers.next_events(10))
    await some_turns()
    assert sorted(board.running) == ["x", "y"]
    board.finish("x")
    await some_turns()
    await link.process(of_keys(("b", "b")))  # more timers may be due: it waits
    board.finish("y")
    assert link.hold(Watermark(300))
    await some_turns()
    await link.process(of_keys(("e", "e"), ("f", "f")))
    await some_turns()
    assert sorted(await harvested(link)) == ["x", "y"]
    board.finish("e", "f")
    assert await harvested(link) == []
    assert board.running == ["b"]
    board.finish("b")
    assert sorted(await harvested(link)) == ["b", "e", "f"] and not link.holding
    await link.close()


async def test_very_many_calls_that_end_together_take_effect_a_slice_at_a_time() -> None:
    """Else they would hold the event loop."""
    board = Board()

    class Wide(ringing(board)):  # type: ignore[misc]
        capacity = 1000

    link = await opened(Wide)
    await link.process(of_keys(*((f"k{number}", number) for number in range(500))))
    while len(board.running) < 500:
        await harvested(link)
    board.finish_all()
    await some_turns()
    sizes = []
    while link.ready:
        parts = await link.harvest()
        sizes.append(sum(len(part.batch) for part in parts if isinstance(part, Emitted) and part.batch is not None))
    assert sum(sizes) == 500 and max(sizes) <= 64 and not link.holding
    await link.close()
