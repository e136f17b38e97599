"""Vectors for texts, by a model that is asked about many at once: search by meaning over a stream of paragraphs.

    python -m examples.embeddings                        embeds, crashes in the middle, goes on, and searches
    python -m examples.embeddings --find "an empty sequence is false"

The texts are those of Python's own language reference, some 1,500 paragraphs, which come with every Python. The model
is WordLlama (https://pypi.org/project/wordllama), a small one whose weights come in its package, so that nothing need
be fetched: `pip install wordllama`. Put your own in its place.

A model is best asked about many texts in one call. `BatchOf(64, 20 ms)` makes one of up to 64 paragraphs, or of those
that there are when the first has waited for 20 ms. The work itself goes into a thread, since it waits for nothing, and
the event loop goes on meanwhile. After the crash the paragraphs whose calls had not ended are embedded again, and each
comes out once.
"""

import argparse
import asyncio
import datetime as dt
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import wordllama
from wordllama import WordLlama

import streamactors as sa
from connectors.memory import CRASH, ListSink, ListSource

AT_ONCE = sa.BatchOf(64, dt.timedelta(milliseconds=20))
CRASH_AT = 1_200
CHECKPOINT_AT = 600

Vectors = np.ndarray


@dataclass(frozen=True)
class Paragraph:
    number: int
    topic: str
    text: str


@dataclass(frozen=True)
class Embedded:
    paragraph: Paragraph
    vector: np.ndarray


class Model:
    """The weights are read here, some 16 MB."""

    def __init__(self) -> None:
        self._model = WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A row of length 1 for each text."""
        found: Vectors = self._model.embed(list(texts), norm=True)
        return found


def paragraphs() -> Iterator[Paragraph]:
    """Of the language reference, those that are more than a line."""
    number = 0
    for topic, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            if len(paragraph.split()) >= 12:
                yield Paragraph(number, topic, " ".join(paragraph.split()))
                number += 1


class Embedding:
    """`await embedding(paragraphs)`: one call of the model for all of them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.sizes: list[int] = []
        """Of the calls, in paragraphs."""

    async def __call__(self, batch: list[Paragraph]) -> list[Embedded]:
        self.sizes.append(len(batch))
        vectors = await asyncio.to_thread(self._model.embed, [each.text for each in batch])
        return [Embedded(each, vector) for each, vector in zip(batch, vectors, strict=True)]


class Gate:
    """Slow until there is a checkpoint to go back to, so that the crash comes after it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def pass_on(self, paragraph: Paragraph) -> Paragraph:
        if paragraph.number >= CHECKPOINT_AT and not self.opened.is_set():
            self.reached.set()
            await asyncio.sleep(0.001)  # a barrier passes between two records, so it must not wait for good
        return paragraph


def build(values: list[Any], embedding: Embedding, sink: ListSink[Embedded], gate: Gate) -> sa.Dataflow:
    flow = sa.Dataflow("embeddings")
    (
        flow.source("paragraphs", ListSource(values))
        .map(gate.pass_on, name="gate")
        .map_async("embed", embedding, capacity=4, batch=AT_ONCE)
        .sink("vectors", sink)
    )
    return flow


async def embed(values: list[Paragraph], embedding: Embedding, *, crash: bool) -> list[Embedded]:
    given: list[Any] = [*values[:CRASH_AT], CRASH, *values[CRASH_AT:]] if crash else list(values)
    sink, gate = ListSink[Embedded](), Gate()
    with tempfile.TemporaryDirectory() as folder:
        config = sa.Config(
            checkpoints=sa.Checkpoints(f"file://{folder}", interval=dt.timedelta(hours=1)),
            restart=sa.Restart.fixed(dt.timedelta(milliseconds=50), attempts=1),
        )
        async with sa.start(build(given, embedding, sink, gate), config) as job:
            await gate.reached.wait()
            await job.checkpoint()
            gate.opened.set()
            await job.wait()
            print(f"-- the job has ended, after {job.metrics()['restarts']} restart(s)")
    return sink.values


def nearest(found: Sequence[Embedded], vector: np.ndarray, count: int = 3) -> list[Paragraph]:
    likeness = np.array([each.vector for each in found]) @ vector
    return [found[place].paragraph for place in np.argsort(-likeness)[:count]]


async def main(wanted: str) -> None:
    texts = list(paragraphs())
    model = await asyncio.to_thread(Model)
    embedding = Embedding(model)
    found = await embed(texts, embedding, crash=True)
    once = sorted(each.paragraph.number for each in found) == list(range(len(texts)))
    print(f"-- {len(found):,} vectors for {len(texts):,} paragraphs, {'each once' if once else 'NOT each once'}")
    print(f"-- {len(embedding.sizes)} calls of the model, of up to {max(embedding.sizes)} paragraphs")
    for paragraph in nearest(found, model.embed([wanted])[0]):
        print(f"{paragraph.topic}: {paragraph.text[:90]} …")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--find", default="which exception is raised when an attribute is missing")
    logging.disable(logging.CRITICAL)  # the crash is meant
    asyncio.run(main(parser.parse_args().find))
