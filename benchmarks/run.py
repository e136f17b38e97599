"""`make bench`: prints records/s beside a plain Python loop over the same events, in the same process.

Ratios are taken round by round, and their median is shown: machines are noisy, ratios less so.
"""

import argparse
import asyncio
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import (
    alignment,
    async_calls,
    batch,
    events,
    fairness,
    flows,
    kafka,
    load,
    plain,
    state,
    timers,
    windows,
)
from streamactors.testing.kafka_broker import KafkaBroker

EVENTS = 1_000_000
KEYS = 100_000
REPLAYS = 4
"""How often the events are replayed to see what checkpoints cost."""


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds by round, of the loop and of the flow."""

    name: str
    records: int
    loop: Sequence[float]
    flow: Sequence[float]
    target: float | None

    @property
    def ratio(self) -> float:
        return statistics.median(loop / flow for loop, flow in zip(self.loop, self.flow, strict=True))


def measure(lines: Sequence[bytes], rounds: int) -> list[Row]:
    """(a) and (b)."""
    cases: list[tuple[str, Callable[[], float], Callable[[], float], float | None]] = [
        ("(a) parse-filter-map", lambda: plain.stateless(lines), lambda: _stateless(lines, False), 0.5),
        ("(a) with checkpoints", lambda: plain.stateless(lines), lambda: _stateless(lines, True), None),
        ("(b) running sum, p=1", lambda: plain.running_sum(lines), lambda: _sum(lines, 1, False), 0.45),
        ("(b) p=1, checkpoints", lambda: plain.running_sum(lines), lambda: _sum(lines, 1, True), None),
        ("(b) running sum, p=4", lambda: plain.running_sum(lines), lambda: _sum(lines, 4, False), 0.3),
        ("(b) p=4, checkpoints", lambda: plain.running_sum(lines), lambda: _sum(lines, 4, True), None),
    ]
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, *_ in cases}
    for _ in range(rounds):
        for name, loop, flow, _ in cases:
            gc.collect()
            times[name][0].append(loop())
            gc.collect()
            times[name][1].append(flow())
    return [Row(name, len(lines), *times[name], target) for name, _, _, target in cases]


def _stateless(lines: Sequence[bytes], checkpoints: bool) -> float:
    return flows.seconds(flows.stateless(lines, flows.Discard()), checkpoints=checkpoints)


def _sum(lines: Sequence[bytes], parallelism: int, checkpoints: bool) -> float:
    return flows.seconds(flows.running_sum(lines, flows.Discard(), parallelism), checkpoints=checkpoints)


async def measure_kafka(lines: Sequence[bytes], rounds: int) -> list[Row]:
    """(c)."""
    async with KafkaBroker() as broker:
        results = await kafka.measure(broker, lines, rounds)
    loop, exactly_once, at_least_once = zip(*results, strict=True)
    return [
        Row("(c) Kafka → sum → Kafka, exactly-once", len(lines), loop, exactly_once, 0.6),
        Row("(c) without checkpoints, at-least-once", len(lines), loop, at_least_once, None),
    ]


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title=f"records/s; ratio to a plain loop in the same run (median of rounds); {KEYS:,} keys, skewed")
    for column in ("benchmark", "plain loop", "streamactors", "ratio", "to reach"):
        shown.add_column(column, justify="left" if column == "benchmark" else "right")
    for row in rows:
        target = "" if row.target is None else f"≥ {row.target}"
        shown.add_row(row.name, _rate(row, row.loop), _rate(row, row.flow), f"{row.ratio:.2f}", target)
    return shown


def _rate(row: Row, seconds: Sequence[float]) -> str:
    return f"{row.records / statistics.median(seconds) / 1e6:.2f} M"


def checkpoint_cost(lines: Sequence[bytes], rounds: int, parallelism: int) -> float:
    """The share of time that checkpoints each second cost (b), over a run long enough to take several."""
    longer = list(lines) * REPLAYS
    shares = []
    _sum(lines, parallelism, True)  # warm: the first checkpoint of a process imports and starts threads
    for _ in range(rounds):
        gc.collect()
        off = _sum(longer, parallelism, False)
        gc.collect()
        shares.append(_sum(longer, parallelism, True) / off - 1)
    return statistics.median(shares)


def alignment_table(rows: Sequence[alignment.Measured]) -> Table:
    shown = Table(title="checkpoints while all mailboxes are full, the sink 100 times slower than the source")
    for column in ("capacity", "mode", "records queued", "seconds", "bytes in flight", "bytes in all"):
        shown.add_column(column, justify="left" if column == "mode" else "right")
    for row in rows:
        counts = f"{row.queued:,}", f"{row.seconds:.3f}", f"{row.in_flight_bytes:,}", f"{row.total_bytes:,}"
        shown.add_row(f"{row.capacity:,}", row.mode, *counts)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-kafka", action="store_true", help="leave (c) out")
    parser.add_argument("--only-alignment", action="store_true", help="nothing but checkpoints under back-pressure")
    parser.add_argument("--state-keys", type=int, default=state.KEYS, help="keys of the large state; 0 leaves it out")
    parser.add_argument("--no-batch", action="store_true", help="leave out (b) in batch")
    parser.add_argument("--calls", type=int, default=async_calls.CALLS, help="async calls; 0 leaves them out")
    parser.add_argument("--timers", type=int, default=timers.TIMERS, help="pending timers; 0 leaves them out")
    parser.add_argument("--fairness", type=float, default=fairness.SECONDS, help="seconds a row; 0 leaves it out")
    options = parser.parse_args()
    console = Console(width=110)
    if not options.only_alignment:
        _throughput(options, console)
    console.print(alignment_table(alignment.measure(options.rounds)))
    if not options.only_alignment and options.fairness:
        console.print(fairness.table(fairness.measure_all(options.fairness, KEYS)))
    if not options.only_alignment:
        console.print(load.table(load.measure(events.orders(options.events, KEYS), options.rounds)))
        console.print(windows.table(windows.measure(options.events, options.rounds)))
    if not options.only_alignment and not options.no_batch:
        console.print(batch.table(batch.measure(events.orders(options.events, KEYS), options.rounds)))
    if not options.only_alignment and options.calls:
        console.print(async_calls.table(async_calls.measure(min(options.rounds, 3), options.calls, options.calls // 5)))
    if not options.only_alignment and options.timers:
        console.print(timers.table(timers.measure(options.timers), options.timers))
    if not options.only_alignment and options.state_keys:
        console.print(state.table(state.measure(options.state_keys, console), options.state_keys))


def _throughput(options: argparse.Namespace, console: Console) -> None:
    lines = events.orders(options.events, KEYS)
    rows = measure(lines, options.rounds)
    if not options.no_kafka:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rows += runner.run(measure_kafka(lines, min(options.rounds, 3)))
    console.print(table(rows))
    for parallelism in (1, 4):
        share = checkpoint_cost(lines, options.rounds, parallelism)
        console.print(
            f"checkpoints each second cost (b), p={parallelism}: {share:+.0%} of the time (to stay below: 10%)"
        )


if __name__ == "__main__":
    main()
