"""User functions that raise, keys and values that can't be stored, records that can't be decoded, topics and brokers
that are not there: a clear error that names the thing, and nothing lost once it is put right."""

import datetime as dt
import logging
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

import streamactors as sa
from connectors.files import FileSink
from connectors.kafka import KafkaSink, KafkaSource
from connectors.memory import ListSink, ListSource
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import produce, see
from tests.kafka_topics import Topics
from tests.ports import free_port
from tests.recovery.flows import (
    Event,
    EventLog,
    Sum,
    Sums,
    config,
    dropped,
    frames,
    part_files,
    read,
    sums,
    sums_in,
    until,
)

SOON = dt.timedelta(milliseconds=20)
LETTERS = sa.OutputTag("letters", sa.DeadLetter)


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "events.jsonl")
    log.add(*((f"key-{number % 7}", number) for number in range(500)))
    return log


def deep_in_the_users_code(event: Event) -> None:
    if event.amount == 321:
        raise ZeroDivisionError("no good: 321")


class Picky(Sums):
    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        deep_in_the_users_code(event)
        super().process(event, ctx)


class AsyncPicky(sa.KeyedOperator[str, Event, Sum]):
    total = sa.ValueState(int, default=0)

    async def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        deep_in_the_users_code(event)
        self.total.set(self.total.get() + event.amount)
        ctx.emit(Sum(event.key, self.total.get()))


# ----------------------------------------------------------------------------------------------------- user functions
@pytest.mark.parametrize("operator", [Picky, AsyncPicky])
async def test_an_operator_that_raises(tmp_path: Path, log: EventLog, operator: Any) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    settings = config(storage, interval=SOON, restart=sa.Restart.fixed(dt.timedelta(milliseconds=5), 2))
    with pytest.raises(sa.JobFailed) as raised:
        await sa.run(sums(log.source(), part_files(out), operator=operator), settings)
    failed = raised.value.__cause__
    assert isinstance(failed, sa.RecordFailed)
    assert (failed.uid, failed.key, failed.origin) == ("sums", "key-6", f"{log.path}:322")
    for text in ("'sums'", "'key-6'", f"{log.path}:322", "ZeroDivisionError: no good: 321"):
        assert text in str(raised.value)
    assert isinstance(failed.__cause__, ZeroDivisionError)
    assert frames(failed.__cause__)[-2:] == ["process", "deep_in_the_users_code"]
    # The user mends the operator and starts again.
    await sa.run(sums(log.source(), part_files(out)), config(storage))
    assert sums_in(out) == log.expected


async def test_a_map_that_raises(tmp_path: Path, log: EventLog) -> None:
    def checked(event: Event) -> Event:
        deep_in_the_users_code(event)
        return event

    flow = sa.Dataflow("sums")
    flow.source("events", log.source()).map(checked, name="check").sink("out", ListSink[Event]())
    with pytest.raises(sa.JobFailed, match=rf"\(check\) failed.*{log.path}:322.*ZeroDivisionError: no good") as raised:
        await sa.run(flow)
    assert raised.value.__cause__ is not None and isinstance(raised.value.__cause__.__cause__, ZeroDivisionError)


async def test_a_key_function_that_raises(tmp_path: Path, log: EventLog) -> None:
    def key(event: Event) -> str:
        deep_in_the_users_code(event)
        return event.key

    with pytest.raises(sa.JobFailed, match=r"key_by.*ZeroDivisionError: no good") as raised:
        await sa.run(sums(log.source(), part_files(tmp_path / "out"), key=key), config(tmp_path / "storage"))
    assert f"{log.path}:322" in str(raised.value)
    await sa.run(sums(log.source(), part_files(tmp_path / "out")), config(tmp_path / "storage"))
    assert sums_in(tmp_path / "out") == log.expected


async def test_records_that_fail_go_to_the_dead_letters(tmp_path: Path, log: EventLog) -> None:
    letters = ListSink[sa.DeadLetter]()
    flow = sa.Dataflow("sums")
    totals = (
        flow.source("events", log.source()).key_by(lambda event: event.key).process("sums", Picky, on_error=LETTERS)
    )
    totals.sink("out", part_files(tmp_path / "out"))
    totals.side_output(LETTERS).sink("letters", letters)
    await sa.run(flow, config(tmp_path / "storage", interval=SOON))
    (letter,) = letters.values
    assert (letter.uid, letter.origin, letter.value) == ("sums", f"{log.path}:322", Event("key-6", 321))
    assert "no good: 321" in letter.error and "deep_in_the_users_code" in letter.traceback
    assert sum(map(len, sums_in(tmp_path / "out").values())) == 499


# ------------------------------------------------------------------------------------------------------ keys and values
class Opaque:
    """No stable serialisation."""


@pytest.mark.parametrize("bad", [Opaque(), ["a", "list"], float("nan")], ids=lambda key: type(key).__name__)
async def test_a_key_that_can_not_be_stored(tmp_path: Path, log: EventLog, bad: Any) -> None:
    starts = 0

    class Counting(Sums):
        def open(self, ctx: sa.OperatorContext, /) -> None:
            nonlocal starts
            starts += 1

    def key(event: Event) -> Any:
        return bad if event.amount == 321 else event.key

    settings = config(
        tmp_path / "storage", interval=SOON, restart=sa.Restart.fixed(dt.timedelta(milliseconds=5), 5), parallelism=1
    )
    with pytest.raises(sa.JobFailed) as raised:
        await sa.run(
            sums(log.source(), part_files(tmp_path / "out"), key=key, operator=Counting, parallelism=1), settings
        )
    assert starts == 1, "the next attempt would meet the same key"
    cause = raised.value.__cause__
    assert isinstance(cause, sa.UnserialisableKey)
    assert "key" in str(raised.value)
    assert "'events'" in "\n".join([str(raised.value), *getattr(cause, "__notes__", [])])
    await sa.run(sums(log.source(), part_files(tmp_path / "out"), parallelism=1), config(tmp_path / "storage"))
    assert sums_in(tmp_path / "out") == log.expected


class WrongType(Sums):
    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        super().process(event, ctx)
        if event.amount == 321:
            self.total.set("many")  # type: ignore[arg-type]


class Untyped(sa.KeyedOperator[str, Event, Sum]):
    anything = sa.ValueState[Any](Any, default=None)
    total = sa.ValueState(int, default=0)

    def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
        self.total.set(self.total.get() + event.amount)
        if event.amount == 321:
            self.anything.set(Opaque())
        ctx.emit(Sum(event.key, self.total.get()))


@pytest.mark.parametrize(("operator", "state"), [(WrongType, "total"), (Untyped, "anything")])
async def test_a_state_value_that_can_not_be_stored(tmp_path: Path, log: EventLog, operator: Any, state: str) -> None:
    class Mended(operator):  # type: ignore[misc]
        def process(self, event: Event, ctx: sa.Context[str, Sum], /) -> None:
            self.total.set(self.total.get() + event.amount)
            ctx.emit(Sum(event.key, self.total.get()))

    settings = config(tmp_path / "storage", restart=sa.Restart.exponential())  # without end, for what may pass
    with pytest.raises(sa.JobFailed) as raised:
        await sa.run(sums(log.source(), part_files(tmp_path / "out"), operator=operator), settings)
    told = "\n".join([str(raised.value), *getattr(raised.value.__cause__, "__notes__", [])])
    assert "'sums'" in told and state in told and "key-6" in told
    assert _caused_by(raised.value, sa.UnserialisableValue), repr(raised.value.__cause__)
    assert not list((tmp_path / "storage").rglob("manifest"))
    await sa.run(sums(log.source(), part_files(tmp_path / "out"), operator=Mended), config(tmp_path / "storage"))
    assert sums_in(tmp_path / "out") == log.expected


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False


# ---------------------------------------------------------------------------------------------- records of a file
async def test_an_undecodable_line_stops_the_job(tmp_path: Path, log: EventLog) -> None:
    storage, out = tmp_path / "storage", tmp_path / "out"
    good = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join([*good[:400], b'{"key": "a", "amount": "x"}\n', *good[400:]]))
    settings = config(storage, interval=SOON, restart=sa.Restart.exponential())  # without end, for what may pass
    with pytest.raises(sa.JobFailed, match=rf"'events'.*{log.path}:401.*ValidationError") as raised:
        await sa.run(sums(log.source(), part_files(out)), settings)
    assert _caused_by(raised.value, msgspec.ValidationError)
    # The user sends such lines elsewhere, and goes on.
    flow = sa.Dataflow("sums")
    events = flow.source("events", log.source(on_error=LETTERS))
    events.key_by(lambda event: event.key).process("sums", Sums).sink("out", part_files(out))
    events.side_output(LETTERS).sink("letters", FileSink(str(tmp_path / "letters"), value=sa.Json()))
    await sa.run(flow, config(storage))
    assert sums_in(out) == log.expected
    (part,) = (tmp_path / "letters").iterdir()
    letter = msgspec.json.decode(part.read_bytes(), type=sa.DeadLetter)
    assert (letter.uid, letter.origin) == ("events", f"{log.path}:401")


async def test_an_undecodable_line_on_a_quiet_stream_is_told_at_once(tmp_path: Path) -> None:
    """Not only when another record or a barrier comes along."""
    log = EventLog(tmp_path / "events.jsonl")
    letters = ListSink[sa.DeadLetter]()
    flow = sa.Dataflow("sums")
    events = flow.source("events", log.source(follow=True, on_error=LETTERS))
    events.key_by(lambda event: event.key).process("sums", Sums).sink("out", ListSink[Sum]())
    events.side_output(LETTERS).sink("letters", letters)
    async with sa.start(flow):
        for line in (1, 2, 3):
            with log.path.open("ab") as file:
                file.write(b"poison\n")
            await until(lambda wanted=line: len(letters.values) == wanted)  # type: ignore[misc]
    assert [letter.origin for letter in letters.values] == [f"{log.path}:{line}" for line in (1, 2, 3)]


async def test_a_source_whose_files_are_not_there(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.path.unlink()
    with pytest.raises(sa.JobFailed, match=rf"'events'.*{log.path}.*matches no file.*correct the path"):
        await sa.run(sums(log.source(), part_files(tmp_path / "out")), config(tmp_path / "storage"))


async def test_an_output_folder_that_can_not_be_made(tmp_path: Path, log: EventLog) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(sa.JobFailed, match=str(tmp_path / "out")):
        await sa.run(sums(log.source(), part_files(tmp_path / "out")), config(tmp_path / "storage"))
    (tmp_path / "out").unlink()
    await sa.run(sums(log.source(), part_files(tmp_path / "out")), config(tmp_path / "storage"))
    assert sums_in(tmp_path / "out") == log.expected


# --------------------------------------------------------------------------------------------------------------- Kafka
def closed_port() -> str:
    return f"127.0.0.1:{free_port()}"


async def test_an_unreachable_broker_to_read_from(tmp_path: Path) -> None:
    brokers = closed_port()
    source = KafkaSource(brokers, "events", value=sa.Json(Event))
    with pytest.raises(sa.JobFailed, match=rf"{brokers}.*check") as raised:
        await sa.run(sums(source, part_files(tmp_path / "out")), config(tmp_path / "storage"))
    assert "BrokersUnreachable" in repr(raised.value.__cause__)


async def test_an_unreachable_broker_to_write_to(tmp_path: Path, log: EventLog) -> None:
    """Nothing of what was read is lost: the next start, with a broker, begins where this one did."""
    brokers = closed_port()
    sink = KafkaSink(brokers, "totals", value=sa.Json(Sum))
    with pytest.raises(sa.JobFailed, match=rf"{brokers}.*check"):
        await sa.run(sums(log.source(), sink), config(tmp_path / "storage"))
    await sa.run(sums(log.source(), part_files(tmp_path / "out")), config(tmp_path / "storage"))
    assert sums_in(tmp_path / "out") == log.expected


async def test_an_unknown_topic_to_read_from(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    topic = topics.name()
    source = KafkaSource(kafka.bootstrap, topic, value=sa.Json(Event), bounded=True)
    restart = sa.Restart.fixed(dt.timedelta(milliseconds=5), 5)
    with pytest.raises(sa.JobFailed, match=rf"{topic}.*create") as raised:
        await sa.run(sums(source, part_files(tmp_path / "out")), config(tmp_path / "storage", restart=restart))
    assert "UnknownTopic" in repr(raised.value.__cause__)
    await kafka.create_topic(topic)
    await produce(kafka.bootstrap, topic, b'{"key": "a", "amount": 3}')
    await sa.run(sums(source, part_files(tmp_path / "out")), config(tmp_path / "storage"))
    assert sums_in(tmp_path / "out") == {"a": [3]}


async def test_an_unknown_topic_to_write_to(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    topic = topics.name()
    events = ListSource([Event("a", 1), Event("a", 2)])
    sink = KafkaSink(kafka.bootstrap, topic, value=sa.Json(Sum), transactional_id_prefix=topic)
    with pytest.raises(sa.JobFailed, match=rf"{topic}.*create"):
        await sa.run(sums(events, sink, parallelism=1), config(tmp_path / "storage"))
    await kafka.create_topic(topic)
    await sa.run(sums(events, sink, parallelism=1), config(tmp_path / "storage"))
    await see(kafka.bootstrap, topic, b'{"key":"a","total":1}', b'{"key":"a","total":3}')


async def test_an_undecodable_record_of_a_topic(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    topic = await topics.new(partitions=2)
    records = (b'{"key":"a","amount":1}', b"{poison", b'{"key":"a","amount":2}')
    await produce(kafka.bootstrap, topic, *records, partition=1)
    storage, out = tmp_path / "storage", tmp_path / "out"
    source = KafkaSource(kafka.bootstrap, topic, value=sa.Json(Event), bounded=True)
    with pytest.raises(sa.JobFailed, match=rf"'events'.*{topic}\[1\]@1"):
        await sa.run(sums(source, part_files(out)), config(storage))
    letters = ListSink[sa.DeadLetter]()
    flow = sa.Dataflow("sums")
    lenient = KafkaSource(kafka.bootstrap, topic, value=sa.Json(Event), bounded=True, on_error=LETTERS)
    events = flow.source("events", lenient)
    events.key_by(lambda event: event.key).process("sums", Sums).sink("out", part_files(out))
    events.side_output(LETTERS).sink("letters", letters)
    await sa.run(flow, config(storage))
    assert sums_in(out) == {"a": [1, 3]}
    (letter,) = letters.values
    assert (letter.uid, letter.origin, letter.value) == ("events", f"{topic}[1]@1", b"{poison")


async def test_a_transaction_that_was_lost(
    kafka: KafkaBroker, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed by the checkpoint, no receipt, and its transactional id has gone on: it may have been committed or not.
    The job stops, and names what to look at and the way to go on."""
    topic, storage = await topics.new(), tmp_path / "storage"
    log = EventLog(tmp_path / "log.jsonl")
    log.add(("a", 1), ("a", 2))
    sink = KafkaSink(kafka.bootstrap, topic, value=sa.Json(Sum), transactional_id_prefix=topic)
    async with dropped(sums(log.source(follow=True), sink, parallelism=1), config(storage)) as job:
        await read(job, log)
        await job.checkpoint()
        await until(lambda: bool(list(storage.rglob("committed"))))
    for receipt in storage.rglob("committed"):
        receipt.unlink()
    for slot in range(8):
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=f"{topic}-out-0-{slot}"):
            pass  # it takes the id over
    restart = sa.Restart.exponential()
    with pytest.raises(sa.JobFailed, match=rf"{topic}\[0\] offsets 0 to 1.*the environment variable (\S+)") as raised:
        await sa.run(sums(log.source(), sink, parallelism=1), config(storage, restart=restart))
    assert isinstance(raised.value.__cause__, sa.TransactionLost)
    # Its records are there: the user says so.
    await see(kafka.bootstrap, topic, b'{"key":"a","total":1}', b'{"key":"a","total":3}')
    setting = re.search(r"the environment variable (\w+)=(\S+) set", str(raised.value))
    assert setting is not None
    monkeypatch.setenv(setting[1], setting[2])
    async with dropped(sums(log.source(follow=True), sink, parallelism=1), config(storage)) as job:
        log.add(("a", 4))
        await read(job, log)
        await job.stop()
    await see(kafka.bootstrap, topic, *(b'{"key":"a","total":%d}' % total for total in (1, 3, 7)))


async def test_secrets_are_in_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": "me"}
    source = KafkaSource(
        closed_port(), "events", value=sa.Json(Event), client={**secret, "sasl_plain_password": "hunter2"}
    )
    with pytest.raises(sa.JobFailed) as raised:
        await sa.run(sums(source, part_files(tmp_path / "out")), config(tmp_path / "storage"))
    assert "hunter2" not in f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"
