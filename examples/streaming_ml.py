"""A model that learns from a stream: its parameters are state, and its accuracy survives a crash to the last digit.

    python -m examples.streaming_ml            learns, crashes in the middle, and goes on
    python -m examples.streaming_ml --backend rocksdb

Outdoor photographs, cut into segments: is a segment brick, sky, foliage, cement, window, path or grass? 2,310 of them
come with the package `river` (`pip install river`). Three models, which differ in how fast they learn, are asked about
each segment first and told the answer after that, so their accuracy is that on data that they have not seen.

The parameters are numpy arrays in a `ValueState`. A checkpoint holds them together with the position in the stream, so
that no segment is learnt twice or left out. Whoever restores it has a model that is equal bit by bit.
"""

import argparse
import asyncio
import datetime as dt
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import streamactors as sa
from connectors.memory import CRASH, ListSink, ListSource

RATES = (0.01, 0.1, 1.0)
CLASSES = ("brickface", "sky", "foliage", "cement", "window", "path", "grass")
CRASH_AT = 1_500
CHECKPOINT_AT = 1_000


@dataclass(frozen=True)
class Segment:
    number: int
    features: list[float]
    label: str


@dataclass(frozen=True)
class Example:
    """A segment for one of the models."""

    rate: float
    segment: Segment


@dataclass(frozen=True)
class Score:
    rate: float
    seen: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.seen


@dataclass(frozen=True)
class Model:
    """Softmax regression. `weights`: a row of features and a bias for each class. Mean and variance of the features go
    along with the stream (Welford, 1962)."""

    weights: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    seen: int = 0
    right: int = 0

    @classmethod
    def new(cls, features: int) -> "Model":
        return cls(np.zeros((len(CLASSES), features + 1)), np.zeros(features), np.zeros(features))

    def learn(self, segment: Segment, rate: float) -> "Model":
        """A new model, which has been asked, has been told, and knows better. What state holds is never changed in
        place: it may be on its way into a checkpoint."""
        x = np.array(segment.features)
        answer = CLASSES.index(segment.label)
        seen = self.seen + 1
        mean = self.mean + (x - self.mean) / seen
        squares = self.squares + (x - self.mean) * (x - mean)
        scaled = np.append((x - mean) / np.sqrt(squares / seen + 1e-9), 1.0)
        chances = self._chances(scaled)
        guess = int(chances.argmax())
        chances[answer] -= 1.0
        weights = self.weights - rate * np.outer(chances, scaled)
        return Model(weights, mean, squares, seen, self.right + (guess == answer))

    def _chances(self, x: np.ndarray) -> np.ndarray:
        scores = self.weights @ x
        powers = np.exp(scores - scores.max())
        chances: np.ndarray = powers / powers.sum()
        return chances


class Learner(sa.KeyedOperator[float, Example, Score]):
    model = sa.ValueState(Model)

    def process(self, example: Example, ctx: sa.Context[float, Score]) -> None:
        before = self.model.get() or Model.new(len(example.segment.features))
        model = before.learn(example.segment, ctx.key)
        self.model.set(model)
        ctx.emit(Score(ctx.key, model.seen, model.right))


def segments() -> Iterator[Segment]:
    """In a fixed, shuffled order: the file has them by class."""
    from river.datasets import ImageSegments

    found = [(list(map(float, x.values())), str(y)) for x, y in ImageSegments()]  # type: ignore[no-untyped-call]
    for number, place in enumerate(np.random.default_rng(7).permutation(len(found))):
        features, label = found[place]
        yield Segment(number, features, label)


class Gate:
    """Lets segments through one by one until there is a checkpoint to go back to, so that the crash comes after it. (It
    must not hold one back for good: a barrier passes between two records.)"""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def pass_on(self, segment: Segment) -> Segment:
        if segment.number == CHECKPOINT_AT:
            self.reached.set()
        if segment.number > CHECKPOINT_AT and not self.opened.is_set():
            await asyncio.sleep(0.001)
        return segment


def build(values: list[Any], sink: ListSink[Score], gate: Gate) -> sa.Dataflow:
    flow = sa.Dataflow("streaming-ml")
    (
        flow.source("segments", ListSource(values), parallelism=1)
        .map(gate.pass_on, name="gate", parallelism=1)
        .flat_map(lambda segment: [Example(rate, segment) for rate in RATES], name="for each model", parallelism=1)
        .key_by(lambda example: example.rate)
        .process("learner", Learner)
        .sink("scores", sink)
    )
    return flow


async def learn(backend: Literal["heap", "rocksdb"], *, crash: bool) -> list[Score]:
    """Every score there was, in order of the stream for each model."""
    values: list[Any] = list(segments())
    if crash:
        values.insert(CRASH_AT, CRASH)
    sink, gate = ListSink[Score](), Gate()
    with tempfile.TemporaryDirectory() as folder:
        config = sa.Config(
            parallelism=2,
            state_backend=backend,
            checkpoints=sa.Checkpoints(f"file://{folder}", interval=dt.timedelta(hours=1)),
            restart=sa.Restart.fixed(dt.timedelta(milliseconds=50), attempts=1),
        )
        async with sa.start(build(values, sink, gate), config) as job:
            await gate.reached.wait()
            info = await job.checkpoint()
            print(f"-- checkpoint {info.id}: three models in {info.state_bytes:,} bytes")
            gate.opened.set()
            await job.wait()
            if crash:
                print(f"-- the job has ended, after {job.metrics()['restarts']} restart")
    return sink.values


def last(scores: list[Score]) -> dict[float, Score]:
    return {score.rate: score for score in scores}


async def main(backend: Literal["heap", "rocksdb"]) -> None:
    undisturbed = await learn(backend, crash=False)
    crashed = await learn(backend, crash=True)
    for rate, score in sorted(last(crashed).items()):
        same = "the same" if last(undisturbed)[rate] == score else "NOT the same"
        print(f"rate {rate:4}: {score.accuracy:.1%} of {score.seen:,} right; without the crash {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=("heap", "rocksdb"), default="heap")
    logging.disable(logging.CRITICAL)  # the crash is meant
    asyncio.run(main(parser.parse_args().backend))
