"""A batch job whose process is killed leaves nothing that is visible, and no file behind; run again, it gives the same
as one that was not disturbed."""

import asyncio
import datetime as dt
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamactors as sa
from connectors.kafka import KafkaSink
from connectors.memory import CRASH, ListSource
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import NUMBERS, committed_values, see_nothing_open
from tests.kafka_topics import Topics
from tests.programs import PATIENCE, ROOT
from tests.recovery.batch_job import Event, Sum, config, job

pytestmark = [pytest.mark.slow, pytest.mark.kill]

EVENTS = 40_000


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    made = (Event(f"key-{number % 499}", number % 13, number // 5 + number % 7) for number in range(EVENTS))
    path.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in made))
    return path


def visible(folder: Path) -> list[Sum]:
    parts = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    return [msgspec.json.decode(line, type=Sum) for part in parts for line in part.read_bytes().splitlines()]


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name.startswith(".")]


def check(folder: Path, events: Path) -> None:
    found = visible(folder)
    assert len(found) == EVENTS
    expected: Counter[str] = Counter()
    for line in events.read_bytes().splitlines():
        event = msgspec.json.decode(line, type=Event)
        expected[event.key] += event.amount
    last = {result.key: max(each.total for each in found if each.key == result.key) for result in found[:20]}
    assert {key: expected[key] for key in last} == last


async def started(*arguments: str) -> asyncio.subprocess.Process:
    module = [sys.executable, "-m", "tests.recovery.batch_job", *arguments]
    return await asyncio.create_subprocess_exec(*module, cwd=ROOT, stdout=asyncio.subprocess.PIPE)


async def test_a_process_that_is_killed(events: Path, tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    async with asyncio.timeout(PATIENCE):
        process = await started(str(events), str(out), str(scratch), str(EVENTS // 2))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"giving out\n"  # all is sorted, and spilled; some has come out
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert visible(out) == []
    assert list(scratch.iterdir()) == []
    async with asyncio.timeout(PATIENCE):
        again = await started(str(events), str(out), str(scratch))
        await again.communicate()
    assert again.returncode == 0
    check(out, events)
    assert hidden(out) == []


async def test_a_failure_in_the_middle(events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    failures = iter([None] * 5000 + [RuntimeError("in the middle")])

    def failing(value: Sum) -> Sum:
        if (error := next(failures, None)) is not None:
            raise error
        return value

    monkeypatch.setattr("tests.recovery.batch_job.told", failing)
    with pytest.raises(sa.JobFailed, match="in the middle"):
        await sa.run(job(str(events), str(out)), config(str(scratch)))
    assert visible(out) == [] and hidden(out) == [] and list(scratch.iterdir()) == []
    await sa.run(job(str(events), str(out)), config(str(scratch)))
    check(out, events)


async def test_kafka_sees_the_output_once(kafka: KafkaBroker, topics: Topics) -> None:
    """The first attempt fails when most of its records are written, in a transaction that nobody commits."""
    topic = await topics.new("batch")
    values: list[Any] = list(range(3000))
    values.insert(2900, CRASH)
    flow = sa.Dataflow(topics.name("flow"))
    keyed = flow.source("numbers", ListSource(values)).key_by(lambda value: value % 3)
    keyed.process("passed", Passed).sink("out", KafkaSink(kafka.bootstrap, topic, value=NUMBERS))
    restart = sa.Restart.fixed(dt.timedelta(0), 3)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(execution="batch", restart=restart))
    await see_nothing_open(kafka.bootstrap, topic)
    assert sorted(int(value or b"") for value in await committed_values(kafka.bootstrap, topic)) == list(range(3000))


class Passed(sa.KeyedOperator[int, int, int]):
    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        ctx.emit(value)
