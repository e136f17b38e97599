"""A list that is filled from other processes, which are one here: each value once, whichever attempt fails."""

import datetime as dt
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSource
from streamactors.deploy.collected import PIECE, CollectingSink, Pieces, RemoteShelf, gathered
from streamactors.errors import ConnectionLost, TransactionLost

MANY = 2 * PIECE + 10


class Held:
    """The shelf's process, which the job's reach by messages, and may lose `losses` times."""

    def __init__(self, losses: int = 0) -> None:
        self.pieces = Pieces()
        self.largest = 0
        self._losses = losses
        self._gone = False

    def die(self) -> None:
        self._gone = True

    async def call(self, method: str, *arguments: Any) -> Any:
        if self._gone:
            raise TransactionLost("it has died")
        answer = await self.pieces.call(method, *pickle.loads(pickle.dumps(arguments)))
        if method == "prepare" and self._losses:
            self._losses -= 1
            raise ConnectionLost("its answer was lost")
        return answer

    async def values(self) -> list[Any]:
        return await gathered(self.pieces.at, self.unship)

    def unship(self, piece: bytes) -> list[Any]:
        values: list[Any] = pickle.loads(piece)
        self.largest = max(self.largest, len(values))
        return values

    @property
    def sink(self) -> CollectingSink:
        return CollectingSink(RemoteShelf("collected", self.call, pickle.dumps))


def config(folder: Path) -> sa.Config:
    stored = sa.Checkpoints(folder.as_uri(), interval=dt.timedelta(milliseconds=20))
    return sa.Config(checkpoints=stored, restart=sa.Restart.fixed(dt.timedelta(0), 10))


def flow_into(sink: CollectingSink, step: Any) -> sa.Dataflow:
    flow = sa.Dataflow("collected")
    flow.source("in", ListSource(list(range(MANY)))).map(step, name="step").sink("out", sink)
    return flow


def fragile() -> Any:
    """Fails once, after some checkpoints."""
    failures = iter([ValueError("once")])

    async def step(value: int) -> int:
        if value == MANY // 2 and (failure := next(failures, None)) is not None:
            raise failure
        return value

    return step


async def test_what_failed_attempts_wrote_is_not_there_twice(tmp_path: Path) -> None:
    held = Held(losses=1)
    await sa.run(flow_into(held.sink, fragile()), config(tmp_path))
    assert sorted(await held.values()) == list(range(MANY))
    assert held.largest <= PIECE


async def test_without_checkpoints_all_is_visible_at_the_end() -> None:
    held = Held()
    await sa.run(flow_into(held.sink, abs))
    assert sorted(await held.values()) == list(range(MANY))


async def test_without_the_shelf_the_job_fails_at_once(tmp_path: Path) -> None:
    held = Held()
    held.die()
    with pytest.raises(sa.JobFailed, match="it has died"):
        await sa.run(flow_into(held.sink, abs), config(tmp_path))


async def test_what_can_not_be_sent_is_named(tmp_path: Path) -> None:
    held = Held()
    with pytest.raises(sa.JobFailed, match="values .lock. can't be sent .* map them to plain ones"):
        await sa.run(flow_into(held.sink, lambda _: threading.Lock()), config(tmp_path))
