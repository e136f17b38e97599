"""The working days of aircraft, against a plain computation over the same flights."""

import asyncio
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

import streamactors as sa
from examples.sessions import PAUSE, Flight, WorkingDay, flights, from_kafka, run, working_days
from streamactors.testing import KafkaBroker
from tests.programs import ROOT

pytestmark = pytest.mark.slow

COUNT = 6000
GAP = round(PAUSE.total_seconds() * 1000)


def plain(found: list[Flight]) -> list[WorkingDay]:
    by_aircraft: dict[str, list[Flight]] = defaultdict(list)
    for flight in sorted(found, key=lambda flight: flight.left):
        by_aircraft[flight.aircraft].append(flight)
    days = []
    for own in by_aircraft.values():
        day = [own[0]]
        for flight in own[1:]:
            if flight.left - day[-1].left > GAP:
                days.append(as_day(day))
                day = []
            day.append(flight)
        days.append(as_day(day))
    return sorted(days, key=lambda day: (day.aircraft, day.began))


def as_day(day: list[Flight]) -> WorkingDay:
    hours = (day[-1].left + GAP - day[0].left) / 3_600_000
    miles = sum(flight.miles for flight in day)
    return WorkingDay(day[0].aircraft, day[0].left, hours, len(day), miles, len({flight.destination for flight in day}))


def days_in(folder: Path) -> list[WorkingDay]:
    rows = [line for path in (folder / "days").glob("[!.]*") for line in path.read_bytes().splitlines()]
    days = [msgspec.json.decode(line, type=WorkingDay) for line in rows]
    return sorted(days, key=lambda day: (day.aircraft, day.began))


def test_from_files(tmp_path: Path) -> None:
    asyncio.run(run(tmp_path, COUNT, kafka=False))
    wanted = plain(list(flights(COUNT)))
    assert days_in(tmp_path) == wanted
    assert max(day.flights for day in wanted) > 3


async def test_through_kafka(tmp_path: Path, kafka: KafkaBroker) -> None:
    source = await from_kafka(kafka.bootstrap, COUNT)
    await sa.run(working_days(source, tmp_path / "days"))
    assert days_in(tmp_path) == plain(list(flights(COUNT)))


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.sessions", "--folder", str(tmp_path), "--flights", "500"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert "working days; the busiest: N" in ran.stdout
