"""(d) Parse, key by campaign, count and sum in tumbling windows of 10 s of event time: speed beside a loop, and memory.

The events are those of an advertising stream: 1000 a second, 100 campaigns, up to a second out of order.
`python -m benchmarks.windows`
"""

import argparse
import datetime as dt
import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from rich.console import Console
from rich.table import Table

import streamactors as sa
from benchmarks.flows import Discard, seconds
from connectors.memory import ListSource

EVENTS = 1_000_000
CAMPAIGNS = 100
SIZE = 10_000
"""Milliseconds of a window."""
DISORDER = 1000
TARGET = 0.35


class View(msgspec.Struct, gc=False):
    ad: str
    campaign: str
    price: int
    ts: int


@dataclass(frozen=True)
class Measured:
    """Seconds by round; `peaks`: the most memory in MB that the flow took on, by part of the events that it read."""

    events: int
    loop: Sequence[float]
    flow: Sequence[float]
    peaks: Sequence[tuple[float, float]]

    @property
    def ratio(self) -> float:
        return statistics.median(loop / flow for loop, flow in zip(self.loop, self.flow, strict=True))


def views(count: int, seed: int = 11) -> list[bytes]:
    pick = random.Random(seed)
    encode = msgspec.json.Encoder().encode
    return [
        encode(
            View(
                ad=f"ad-{pick.randrange(1000)}",
                campaign=f"campaign-{pick.randrange(CAMPAIGNS)}",
                price=pick.randrange(1, 500),
                ts=1_700_000_000_000 + number - pick.randrange(DISORDER),
            )
        )
        for number in range(count)
    ]


def plain(lines: Sequence[bytes]) -> tuple[float, int]:
    """Seconds, and how many results: windows are kept by their start, and emitted when event time has passed them."""
    decode = msgspec.json.Decoder(View).decode
    started = time.perf_counter()
    windows: dict[int, dict[str, tuple[int, int]]] = {}
    latest = 0
    results = 0
    for line in lines:
        view = decode(line)
        start = view.ts - view.ts % SIZE
        window = windows.get(start)
        if window is None:
            window = windows[start] = {}
        count, total = window.get(view.campaign, (0, 0))
        window[view.campaign] = count + 1, total + view.price
        if view.ts > latest:
            latest = view.ts
            while windows and (first := min(windows)) + SIZE + DISORDER <= latest:
                results += len(windows.pop(first))
    results += sum(map(len, windows.values()))
    return time.perf_counter() - started, results


def windowed(lines: Sequence[bytes], sink: Discard) -> sa.Dataflow:
    flow = sa.Dataflow("windows")
    watermarks: sa.Watermarks[View] = sa.Watermarks.bounded(lambda view: view.ts, dt.timedelta(milliseconds=DISORDER))
    (
        flow.source("lines", ListSource(lines))
        .map(msgspec.json.Decoder(View).decode)
        .with_timestamps(watermarks)
        .key_by(lambda view: view.campaign)
        .window("windows", sa.Tumbling(dt.timedelta(milliseconds=SIZE)))
        .aggregate(sa.Aggregates(count=sa.Count(), total=sa.Sum(lambda view: view.price)))
        .sink("out", sink)
    )
    return flow


def measure(count: int, rounds: int) -> Measured:
    lines = views(count)
    loop, flow = [], []
    for _ in range(rounds):
        gc.collect()
        taken, wanted = plain(lines)
        loop.append(taken)
        gc.collect()
        sink = Discard()
        flow.append(seconds(windowed(lines, sink), checkpoints=False))
        assert sink.count == wanted, f"{sink.count} results, {wanted} from the loop"
    return Measured(count, loop, flow, [(part, _peak(lines[: round(count * part)])) for part in (0.1, 0.2)])


def _peak(lines: Sequence[bytes]) -> float:
    flow = windowed(lines, Discard())  # first: the source copies the list of events
    gc.collect()
    tracemalloc.start()
    try:
        seconds(flow, checkpoints=False)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def table(found: Measured) -> Table:
    """As `make bench` prints it."""
    shown = Table(title=f"(d) {SIZE // 1000} s windows over {found.events:,} events, {CAMPAIGNS} campaigns")
    for column in ("plain loop", "streamactors", "ratio", "to reach", "peak memory"):
        shown.add_column(column, justify="right")
    loop, flow = (f"{found.events / statistics.median(each) / 1e6:.2f} M/s" for each in (found.loop, found.flow))
    peaks = ", ".join(f"{peak:.1f} MB for {part:.0%} of them" for part, peak in found.peaks)
    shown.add_row(loop, flow, f"{found.ratio:.2f}", f"≥ {TARGET}", peaks)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    Console(width=130).print(table(measure(options.events, options.rounds)))


if __name__ == "__main__":
    main()
