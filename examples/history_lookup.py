"""What happened to parcel 7 between three and four? Past events are kept in map state, and looked up by time.

    python -m examples.history_lookup            100,000 scans of 500 parcels, 2,000 questions about them, a crash
    python -m examples.history_lookup --backend rocksdb

Scans become the parcel's history; questions about a stretch of it come down the same stream. The history is a
`MapState` whose keys are times, so that `range` seeks to the first scan in question and stops at the last: with RocksDB
it reads those alone, however long the history is, and the history of all parcels may be larger than memory. Scans older
than a day are deleted as new ones come in.

Whoever embeds the job can also look from outside, without a stream of questions: `job.query`, shown at the end.
"""

import argparse
import asyncio
import datetime as dt
import logging
import random
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import streamactors as sa
from connectors.memory import CRASH, ListSink, ListSource

SCANS = 100_000
PARCELS = 500
EVERY = 50
"""Scans for each question."""
DAY = 86_400_000
"""Milliseconds, as all times here."""
BEGIN = 1_767_225_600_000
PLACES = ("dock", "belt 1", "belt 2", "sorter", "truck", "door")


@dataclass(frozen=True)
class Scan:
    parcel: int
    time: int
    place: str


@dataclass(frozen=True)
class Question:
    """Where was the parcel from `since` up to `until`, not included?"""

    number: int
    parcel: int
    since: int
    until: int


@dataclass(frozen=True)
class Answer:
    question: Question
    places: list[str]


class History(sa.KeyedOperator[int, Scan | Question, Answer]):
    places = sa.MapState(int, str)
    """By time."""

    def process(self, event: Scan | Question, ctx: sa.Context[int, Answer]) -> None:
        if isinstance(event, Question):
            found = self.places.range(event.since, event.until)
            ctx.emit(Answer(event, [place for _, place in found]))
        else:
            self.places[event.time] = event.place
            self._forget(event.time - DAY)

    def _forget(self, before: int) -> None:
        for time in [time for time, _ in self.places.range(0, before)]:
            del self.places[time]


def made_up(scans: int = SCANS) -> list[Scan | Question]:
    """Two days of scans, with a question after every fiftieth."""
    chance = random.Random(1)
    events: list[Scan | Question] = []
    for number in range(scans):
        now = BEGIN + number * 2 * DAY // scans
        events.append(Scan(chance.randrange(PARCELS), now, chance.choice(PLACES)))
        if number % EVERY == 0:
            since = now - chance.randrange(DAY)
            events.append(Question(number // EVERY, chance.randrange(PARCELS), since, since + DAY // 4))
    return events


def plain_answers(events: list[Scan | Question]) -> list[Answer]:
    """The same in a plain loop, which remembers everything."""
    history: dict[int, list[Scan]] = defaultdict(list)
    answers = []
    for event in events:
        past = history[event.parcel]
        if isinstance(event, Scan):
            past.append(event)
        else:
            oldest = past[-1].time - DAY if past else 0
            since = max(event.since, oldest)
            answers.append(Answer(event, [scan.place for scan in past if since <= scan.time < event.until]))
    return answers


class Brake:
    """Slows the stream down in the middle until there is a checkpoint to go back to when it crashes."""

    def __init__(self) -> None:
        self.half = asyncio.Event()
        self.released = asyncio.Event()

    async def look(self, event: Scan | Question) -> Scan | Question:
        if isinstance(event, Scan) and event.time >= BEGIN + DAY and not self.released.is_set():
            self.half.set()
            await asyncio.sleep(0.001)
        return event


def build(values: list[Any], sink: ListSink[Answer], brake: Brake) -> sa.Dataflow:
    flow = sa.Dataflow("history-lookup")
    (
        flow.source("events", ListSource(values), parallelism=1)
        .map(brake.look, name="brake", parallelism=1)
        .key_by(lambda event: event.parcel)
        .process("history", History)
        .sink("answers", sink)
    )
    return flow


async def look_up(events: list[Scan | Question], backend: Literal["heap", "rocksdb"]) -> list[Answer]:
    """Every answer, though the job crashes when three quarters are through."""
    values: list[Any] = [*events]
    values.insert(len(events) * 3 // 4, CRASH)
    sink, brake = ListSink[Answer](), Brake()
    with tempfile.TemporaryDirectory() as folder:
        config = sa.Config(
            parallelism=2,
            state_backend=backend,
            checkpoints=sa.Checkpoints(f"file://{folder}", interval=dt.timedelta(hours=1)),
            restart=sa.Restart.fixed(dt.timedelta(milliseconds=50), attempts=1),
        )
        async with sa.start(build(values, sink, brake), config) as job:
            await brake.half.wait()
            info = await job.checkpoint()
            print(f"-- checkpoint {info.id}: {info.state_bytes:,} bytes of history")
            places = await job.query("history", "places", 7)
            print(
                f"-- parcel 7 was scanned {len(places)} times on the first day, the last time at: {places[max(places)]}"
            )
            brake.released.set()
            await job.wait()
            print(f"-- the job has ended, after {job.metrics()['restarts']} restart")
    return sink.values


async def main(backend: Literal["heap", "rocksdb"]) -> None:
    events = made_up()
    answers = await look_up(events, backend)
    for answer in sorted(answers, key=lambda answer: answer.question.number)[-3:]:
        asked = answer.question
        hours = f"{(asked.since - BEGIN) / 3_600_000:.1f} h to {(asked.until - BEGIN) / 3_600_000:.1f} h"
        print(f"parcel {asked.parcel}, {hours}: {' → '.join(answer.places) or 'nowhere'}")
    in_order = sorted(answers, key=lambda answer: answer.question.number)
    same = "the same" if in_order == plain_answers(events) else "NOT the same"
    print(f"{len(answers):,} answers; a plain loop gives {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=("heap", "rocksdb"), default="heap")
    logging.disable(logging.CRITICAL)  # the crash is meant
    asyncio.run(main(parser.parse_args().backend))
