"""Small charges that try a stolen card, then a large one within minutes: a pattern over transactions.

    python -m examples.fraud_pattern                       100,000 made-up transactions in a file, alerts to files
    python -m examples.fraud_pattern --folder var/fraud    where both lie
    python -m examples.fraud_pattern --kafka localhost:9092 --topic transactions --alerts alerts
                                                           the same flow on Kafka, until Ctrl-C

Transactions come a few seconds out of order, as they do from payment terminals; the pattern sees them in the order of
event time. Every alert comes out once, however often the job is restarted.
"""

import argparse
import asyncio
import datetime as dt
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import streamactors as sa
from connectors.files import FileSink, FileSource

TRANSACTIONS = 100_000
CARDS = 500
BEGIN = 1_767_225_600_000
"""Milliseconds, as all times here."""
DISORDER = dt.timedelta(seconds=5)
WITHIN = dt.timedelta(minutes=10)
SMALL, LARGE = 200, 50_000
"""Cents."""


class Transaction(msgspec.Struct, frozen=True):
    id: int
    card: str
    cents: int
    time: int


class Alert(msgspec.Struct, frozen=True):
    card: str
    tried: list[int]
    """The small charges."""
    charged: int
    time: int


def is_small(event: Transaction) -> bool:
    return event.cents <= SMALL


def is_large(event: Transaction, match: sa.Match[Transaction]) -> bool:
    return _is_far_more(event, match["try"])


def _is_far_more(event: Transaction, tried: list[Transaction]) -> bool:
    return event.cents >= LARGE and event.cents > 100 * sum(each.cents for each in tried)


PATTERN = (
    sa.Pattern.begin("try", is_small)
    .times(2, 4)
    .consecutive()
    .greedy()
    .followed_by("charge", is_large)
    .within(WITHIN)
    .skip("past-last")
)


def alert(match: sa.Match[Transaction]) -> Alert:
    [charge] = match["charge"]
    return Alert(match.key, [each.id for each in match["try"]], charge.id, match.end)


def build(source: sa.Source[Transaction], sink: sa.Sink[Alert]) -> sa.Dataflow:
    flow = sa.Dataflow("fraud")
    time: sa.Watermarks[Transaction] = sa.Watermarks.bounded(lambda event: event.time, DISORDER)
    (
        flow.source("transactions", source, watermarks=time)
        .key_by(lambda event: event.card)
        .pattern("fraud", PATTERN)
        .map(alert)
        .sink("alerts", sink)
    )
    return flow


# ---------------------------------------------------------------------------------------------------- what surrounds it
def made_up(count: int = TRANSACTIONS) -> Iterator[Transaction]:
    """About a tenth of a second apart, and up to five seconds out of order; a few cards are tried now and then."""
    draw = random.Random(1)
    delay = int(DISORDER.total_seconds() * 1000)
    for id in range(count):
        card = draw.randrange(CARDS)
        cents = draw.choice((100, 150, 3_000, 60_000) if card < 20 else (500, 3_000, 20_000))
        yield Transaction(id, f"card {card}", cents, BEGIN + 100 * id + delay - draw.randrange(delay))


def plain_alerts(transactions: list[Transaction]) -> list[Alert]:
    """The same in a plain loop over all of them, sorted."""
    by_card: dict[str, list[Transaction]] = defaultdict(list)
    for each in sorted(transactions, key=lambda each: (each.time, each.id)):
        by_card[each.card].append(each)
    return [found for own in by_card.values() for found in _plain_alerts(own)]


def _plain_alerts(own: list[Transaction]) -> Iterator[Alert]:
    free = 0  # events before this one are in an alert already
    for place, charge in enumerate(own):
        for start in range(free, place):
            tried = _tried(own, start, place)
            in_time = charge.time - own[start].time < WITHIN // dt.timedelta(milliseconds=1)
            if tried and in_time and _is_far_more(charge, tried):
                yield Alert(charge.card, [each.id for each in tried], charge.id, charge.time)
                free = place + 1
                break


def _tried(own: list[Transaction], start: int, charge: int) -> list[Transaction]:
    """The small charges from `start` on, if there are enough, and no charge before this one ends them."""
    tried = []
    for each in own[start : min(start + 4, charge)]:
        if not is_small(each):
            break
        tried.append(each)
    first = not any(_is_far_more(each, tried) for each in own[start + len(tried) : charge])
    return tried if len(tried) >= 2 and first else []


def write(folder: Path, count: int) -> None:
    """The log of transactions, unless it is there."""
    log = folder / "transactions.jsonl"
    if not log.exists():
        folder.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in made_up(count)))


def read(folder: Path) -> list[Alert]:
    parts = sorted((folder / "alerts").glob("[!.]*"))
    return [msgspec.json.decode(line, type=Alert) for part in parts for line in part.read_bytes().splitlines()]


def config(folder: Path, **options: Any) -> sa.Config:
    checkpoints = sa.Checkpoints(str(folder / "checkpoints"), interval=dt.timedelta(seconds=1))
    return sa.Config(checkpoints=checkpoints, parallelism=2, **options)


async def on_files(folder: Path, count: int = TRANSACTIONS) -> list[Alert]:
    write(folder, count)
    source = FileSource(str(folder / "transactions.jsonl"), value=sa.Json(Transaction))
    await sa.run(build(source, FileSink(str(folder / "alerts"), value=sa.Json(Alert))), config(folder))
    return read(folder)


def on_kafka(bootstrap: str, topic: str, alerts: str, *, bounded: bool = False) -> sa.Dataflow:
    from connectors.kafka import KafkaSink, KafkaSource

    source = KafkaSource(bootstrap, topic, value=sa.Json(Transaction), bounded=bounded)
    return build(source, KafkaSink(bootstrap, alerts, value=sa.Json(Alert), key=lambda each: each.card.encode()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("var/fraud"))
    parser.add_argument("--count", type=int, default=TRANSACTIONS)
    parser.add_argument("--kafka", help="the bootstrap address of a broker")
    parser.add_argument("--topic", default="transactions")
    parser.add_argument("--alerts", default="alerts")
    options = parser.parse_args()
    if options.kafka:
        asyncio.run(sa.run(on_kafka(options.kafka, options.topic, options.alerts), config(options.folder)))
        return
    found = asyncio.run(on_files(options.folder, options.count))
    for each in found[:3]:
        print(f"{each.card}: {len(each.tried)} small charges, then {each.charged}")
    key = msgspec.json.encode
    same = sorted(map(key, found)) == sorted(map(key, plain_alerts(list(made_up(options.count)))))
    print(f"{len(found):,} alerts; a plain loop gives {'the same' if same else 'OTHERS'}")


if __name__ == "__main__":
    main()
