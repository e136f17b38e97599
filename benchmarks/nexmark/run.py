"""`make nexmark`: prints records/s for each query, and whether its rows equal the oracle's.

The events are made before the clock starts, so that the queries are measured and not the generator.
"""

import argparse
import asyncio
import datetime as dt
import gc
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import streamactors as sa
from benchmarks.nexmark.generator import Generator
from benchmarks.nexmark.model import Event
from benchmarks.nexmark.oracle import Oracle
from benchmarks.nexmark.queries.catalogue import QUERIES, Query
from benchmarks.nexmark.streams import Row, Streams, side_rows
from connectors.memory import ListSink, ListSource

EVENTS = 100_000


@dataclass(frozen=True)
class Measured:
    name: str
    seconds: float
    rows: int
    """That it gave, updates counted."""
    correct: bool


def measure(
    names: Iterable[str], events: Sequence[Event], disorder: dt.timedelta, config: sa.Config, storage: str | None = None
) -> Iterable[Measured]:
    """One after the other, each in a flow of its own. `storage`: where checkpoints go each second."""
    with Oracle(events, side_rows()) as oracle:
        source = ListSource(events)
        for name in names:
            query, sink = QUERIES[name], ListSink[Row]()
            flow = sa.Dataflow(f"nexmark-{name}")
            query.build(Streams(flow, source, disorder)).sink("out", sink)
            seconds = asyncio.run(_timed(flow, config, storage))
            yield Measured(name, seconds, len(sink.values), is_correct(query, sink.values, oracle.rows(name)))


def is_correct(query: Query, rows: Sequence[Row], expected: Sequence[Row]) -> bool:
    return Counter(query.settle(rows)) == Counter(expected)


async def _timed(flow: sa.Dataflow, config: sa.Config, storage: str | None) -> float:
    if storage is not None:
        every_second = sa.Checkpoints(storage, interval=dt.timedelta(seconds=1))
        config = sa.Config(parallelism=config.parallelism, state_backend=config.state_backend, checkpoints=every_second)
    gc.collect()
    started = time.perf_counter()
    await sa.run(flow, config)
    return time.perf_counter() - started


def table(measured: Sequence[Measured], events: int, title: str) -> Table:
    shown = Table(title=f"Nexmark, {events:,} events, {title}")
    for column in ("query", "what", "records/s", "rows", "oracle"):
        shown.add_column(column, justify="right" if column in ("records/s", "rows") else "left")
    for each in measured:
        verdict = "equal" if each.correct else "[red]differs"
        rate = f"{events / each.seconds:,.0f}"
        shown.add_row(each.name, QUERIES[each.name].title, rate, f"{each.rows:,}", verdict)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a query differs from the oracle."""
    options = _parser().parse_args(arguments)
    generator = Generator(seed=options.seed)
    events = generator.events(options.events)
    disorder = dt.timedelta(milliseconds=generator.disorder)
    with tempfile.TemporaryDirectory(prefix="streamactors-nexmark-") as folder:
        backend = sa.RocksDB(folder=folder) if options.backend == "rocksdb" else sa.Heap()
        config = sa.Config(
            parallelism=options.parallelism, state_backend=backend, execution="batch" if options.batch else "streaming"
        )
        storage = str(Path(folder) / "checkpoints") if options.checkpoints else None
        measured = list(measure(options.query or QUERIES, events, disorder, config, storage))
    mode = ", batch" if options.batch else ", checkpoints" if options.checkpoints else ""
    title = f"p={options.parallelism}, {options.backend}{mode}"
    Console().print(table(measured, options.events, title))
    return 0 if all(each.correct for each in measured) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nexmark", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--seed", type=int, default=Generator.seed)
    parser.add_argument("--parallelism", type=int, default=1)
    parser.add_argument("--backend", choices=("heap", "rocksdb"), default="heap")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--checkpoints", action="store_true", help="one each second")
    mode.add_argument("--batch", action="store_true", help="key by key, over sorted input")
    parser.add_argument("--query", action="append", choices=list(QUERIES), help="only this one; may be given again")
    return parser
