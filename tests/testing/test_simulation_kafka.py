"""What the Kafka sink decides about transactions, over the simulated broker: only the requests are replaced."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

import streamactors as sa
from connectors.kafka.transactions import Session, TransactionCoordinator, Transactions, slots_for
from streamactors.errors import StreamactorsError
from streamactors.sinks import Pending, SinkContext, SinkWriter, WriterSink
from streamactors.testing import World, simulate
from streamactors.testing.simulation import MODES, scenario
from streamactors.testing.simulation import broker as model
from streamactors.testing.simulation.broker import BrokerClient
from streamactors.testing.simulation.events import events, key_of
from streamactors.testing.simulation.topologies import Count

pytestmark = pytest.mark.slow

SEEDS = 40


class ModelCoordinator(TransactionCoordinator):
    """The requests of a transaction, to the model."""

    def __init__(self, client: BrokerClient) -> None:
        self._client = client

    async def begin(self, transactional_id: str) -> Session:
        return Session(*await self._client.init_producer(transactional_id, 24 * 3600.0))

    async def end(self, session: Session, *, commit: bool, seconds: float = 0.0) -> int:
        return await self._client.end(on_model(session), commit=commit)


def on_model(session: Session) -> model.Session:
    assert session.transactional_id is not None
    return model.Session(session.transactional_id, session.producer_id, session.epoch)


class ModelSink(WriterSink[Any]):
    def __init__(self, world: World) -> None:
        self.client = world.client()

    @property
    def transactional(self) -> bool:
        return True

    def writer(self, ctx: SinkContext) -> "ModelWriter":
        return ModelWriter(self.client, ctx)


class ModelWriter(SinkWriter[Any]):
    """As `KafkaWriter` does, with the model for a producer."""

    def __init__(self, client: BrokerClient, ctx: SinkContext) -> None:
        self._client = client
        self._ctx = ctx
        self._session: Session | None = None
        self._written = 0
        self._transactions = Transactions(
            ModelCoordinator(client),
            ctx.log,
            prefix=f"{ctx.flow}-{ctx.uid}",
            subtask=ctx.subtask,
            parallelism=ctx.parallelism,
            slots=slots_for(ctx.max_concurrent, ctx.tolerable_failures),
        )

    async def open(self, restored: Sequence[Pending], *, committed: bool) -> None:
        await self._transactions.recover(restored, committed=committed, widest=self._ctx.widest_parallelism)

    async def write(self, values: Sequence[Any], timestamps: Sequence[int | None] | None) -> None:
        if values and self._session is None:
            self._session = await self._transactions.begin()
        if self._session is not None:
            code = await self._client.append("out", values, on_model(self._session))
            if code:
                raise StreamactorsError(f"records of {self._session} are refused: error {code}")
            self._written += len(values)

    async def prepare(self, checkpoint: int) -> Sequence[Pending]:
        written = [("out", 0, 0, self._written)] if self._written else []
        if self._session is not None:
            self._client.prepared(on_model(self._session), checkpoint)
        self._session, self._written = None, 0
        return self._transactions.prepare(checkpoint, written)

    async def commit(self, checkpoint: int) -> None:
        await self._transactions.commit(checkpoint)

    async def finish(self) -> None:
        raise AssertionError("only under checkpoints")

    async def close(self) -> None:
        if self._session is not None:
            await self._transactions.abandon(5.0)


def flow(world: World) -> sa.Dataflow:
    made = sa.Dataflow("pipeline")
    source = made.source("events", world.source(events(world, "e", 3)))
    return source.key_by(key_of).process("count", Count).key_by(key_of).sink("out", ModelSink(world))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "at-least-once"])
def test_its_transactions_are_exactly_once(mode: str) -> None:
    made = replace(scenario("pipeline", mode), flow=flow, arguments=None)
    restores = sum(simulate(made, seed=seed).restores for seed in range(SEEDS))
    assert restores > SEEDS / 2
