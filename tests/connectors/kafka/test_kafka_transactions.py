"""Two-phase commit on a real broker: over processes, failures, restarts, rescales, and what can't be undone."""

import asyncio
import json
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.kafka import DeliveryFailed, KafkaSink, TransactionsExhausted
from connectors.kafka.cluster import Cluster
from connectors.kafka.options import WRITING, ClientOptions
from connectors.kafka.sink import KafkaWriter
from connectors.kafka.transactions import SETTLED, Prepared, Session, TransactionCoordinator, slots_for
from streamactors.errors import InvalidConfig, RecordFailed, StreamactorsError, TransactionLost
from streamactors.sinks import SinkWriter
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import (
    LOG,
    NUMBERS,
    PATIENCE,
    committed_values,
    eventually,
    see,
    see_nothing_open,
    visible,
    writing,
)
from tests.kafka_topics import Topics

ROOT = Path(__file__).resolve().parents[3]
SLOTS = slots_for(1, 0)
"""Transactional ids of a subtask under the default settings."""


def sink_to(kafka: KafkaBroker, topic: str, **options: Any) -> KafkaSink[int]:
    """The topic's name keeps the transactional ids of tests apart."""
    return KafkaSink(kafka.bootstrap, topic, value=NUMBERS, transactional_id_prefix=topic, **options)


@asynccontextmanager
async def coordinator(kafka: KafkaBroker) -> AsyncIterator[TransactionCoordinator]:
    """Another process's view."""
    cluster = Cluster(kafka.bootstrap, ClientOptions("test", None, WRITING), LOG)
    await cluster.connect()
    try:
        yield TransactionCoordinator(cluster, 60_000)
    finally:
        await cluster.close()


async def flushed(writer: SinkWriter[int], *values: int) -> None:
    """Written, and on the brokers, in a transaction that stays open."""
    await writer.write(list(values), None)
    assert isinstance(writer, KafkaWriter)
    await writer._opened.flush()


async def vanish(writer: SinkWriter[int]) -> None:
    """What SIGKILL leaves: closed sockets, and nothing aborted."""
    assert isinstance(writer, KafkaWriter)
    await writer._opened.close(0)
    await writer._cluster.close()
    writer._producer = None


def stored(pending: Sequence[Any]) -> list[Any]:
    """As another process gets it."""
    loaded: list[Any] = json.loads(json.dumps(pending))
    return loaded


def sessions(pending: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(Prepared.from_state(each).session) for each in pending]


# --------------------------------------------------------------------------------------------------- the protocol


async def test_records_are_visible_when_their_checkpoint_is_committed(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1, 2], None)
        (pending,) = await writer.prepare(1)
        await flushed(writer, 3)
        assert await committed_values(kafka.bootstrap, topic) == []
        await writer.commit(1)
        await eventually(lambda: committed_values(kafka.bootstrap, topic), [b"1", b"2"])
        assert pending["written"] == [[topic, 0, 0, 1]]
        assert await writer.prepare(2) != []
        await writer.commit(2)
        await see(kafka.bootstrap, topic, b"1", b"2", b"3")


async def test_another_process_commits_what_was_prepared(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1, 2], None)
        pending = stored(await writer.prepare(1))
        await vanish(writer)
    async with writing(sink_to(kafka, topic), pending):
        await see(kafka.bootstrap, topic, b"1", b"2")


async def test_a_late_commit_does_not_commit_the_transaction_after(kafka: KafkaBroker, topics: Topics) -> None:
    """(id, pid, epoch) names a session: had the next transaction the same one, it would be committed here."""
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        first = stored(await writer.prepare(1))
        await writer.commit(1)
        await flushed(writer, 2)
        async with coordinator(kafka) as others:
            assert await others.end(Prepared.from_state(first[0]).session, commit=True) == 0
        second = await writer.prepare(2)
        assert sessions(second) != sessions(first)
        await vanish(writer)
    async with writing(sink_to(kafka, topic), first):
        await see(kafka.bootstrap, topic, b"1")


async def test_every_transaction_has_a_session_of_its_own(kafka: KafkaBroker, topics: Topics) -> None:
    """Also when ids come round again."""
    topic = await topics.new()
    seen = []
    async with writing(sink_to(kafka, topic)) as writer:
        for checkpoint in range(1, 12):
            await writer.write([checkpoint], None)
            seen += sessions(await writer.prepare(checkpoint))
            await writer.commit(checkpoint)
    assert len(seen) == len(set(seen)) == 11
    assert len({each.split(":")[0] for each in seen}) == SLOTS
    await see(kafka.bootstrap, topic, *(b"%d" % checkpoint for checkpoint in range(1, 12)))


async def test_committing_again_changes_nothing(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        await writer.commit(1)
        await writer.commit(1)
        await vanish(writer)
    for _ in range(3):  # crashes before the receipt is written
        async with writing(sink_to(kafka, topic), pending):
            pass
    await see(kafka.bootstrap, topic, b"1")


async def test_an_aborted_checkpoint_s_records_are_committed_by_the_next(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic), tolerable_failures=2) as writer:
        for checkpoint in (1, 2, 3):
            await writer.write([checkpoint], None)
            pending = await writer.prepare(checkpoint)
            assert [each["checkpoint"] for each in pending] == list(range(1, checkpoint + 1))
        await writer.commit(3)
        await see(kafka.bootstrap, topic, b"1", b"2", b"3")
        await writer.write([4], None)
        assert [each["checkpoint"] for each in await writer.prepare(4)] == [4]


async def test_several_checkpoints_in_flight(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic), max_concurrent=2) as writer:
        for checkpoint in range(1, 10):
            await writer.write([checkpoint], None)
            await writer.prepare(checkpoint)
            if checkpoint > 1:
                await writer.commit(checkpoint - 1)
        assert b"9" not in await committed_values(kafka.bootstrap, topic)
        await writer.commit(9)
        await see(kafka.bootstrap, topic, *(b"%d" % checkpoint for checkpoint in range(1, 10)))


async def test_empty_transactions_are_not_listed(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        assert list(await writer.prepare(1)) == []
        await writer.commit(1)
        await writer.write([], None)
        assert list(await writer.prepare(2)) == []
        await writer.write([1], None)
        assert len(await writer.prepare(3)) == 1
        await writer.commit(3)
        assert list(await writer.prepare(4)) == []
        await writer.commit(4)
    await see(kafka.bootstrap, topic, b"1")


async def test_a_transaction_without_a_record_is_not_listed_either(kafka: KafkaBroker, topics: Topics) -> None:
    """Begun for a record that then could not be encoded."""
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        with pytest.raises(RecordFailed):
            await writer.write(["one"], None)  # type: ignore[list-item]
        assert list(await writer.prepare(1)) == []
        await writer.write([2], None)
        assert len(await writer.prepare(2)) == 1
        await writer.commit(2)
    await see(kafka.bootstrap, topic, b"2")


async def test_a_key_s_records_keep_their_order_over_transactions(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new(partitions=3)
    sink = KafkaSink(
        kafka.bootstrap,
        topic,
        value=NUMBERS,
        key=lambda value: b"%d" % (value % 7),
        transactional_id_prefix=topic,
        client={"max_batch_size": 500},
    )
    async with writing(sink) as writer:
        for checkpoint in range(1, 9):
            for start in range(0, 500, 100):
                first = 500 * checkpoint + start
                await writer.write(list(range(first, first + 100)), None)
            await writer.prepare(checkpoint)
            await writer.commit(checkpoint)
    await see_nothing_open(kafka.bootstrap, topic)
    by_key = defaultdict(list)
    for record in await visible(kafka.bootstrap, topic):
        by_key[record.key].append(int(record.value or b""))
    assert sorted(n for numbers in by_key.values() for n in numbers) == list(range(500, 4500))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


# ------------------------------------------------------------------------------------------- restarts and rescales


async def test_a_receipt_means_that_nothing_is_sent(kafka: KafkaBroker, topics: Topics) -> None:
    """Not even for a session that the brokers have long replaced."""
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        await writer.commit(1)
    async with coordinator(kafka) as others:
        await others.begin(pending[0]["id"])
    async with writing(sink_to(kafka, topic), pending, committed=True) as writer:
        await writer.write([2], None)
        await writer.prepare(2)
        await writer.commit(2)
    await see(kafka.bootstrap, topic, b"1", b"2")


async def test_with_a_receipt_an_id_that_went_on_is_fenced_like_any_other(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        for checkpoint in range(1, SLOTS + 1):
            await writer.write([checkpoint], None)
            pending = await writer.prepare(checkpoint)
            await writer.commit(checkpoint)
            if checkpoint == 1:
                old = stored(pending)
        await flushed(writer, SLOTS + 1)  # has the id of the first transaction
        assert writer._transactions._current.transactional_id == old[0]["id"]  # type: ignore[attr-defined]
        await vanish(writer)
    async with writing(sink_to(kafka, topic), old, committed=True):
        await see(kafka.bootstrap, topic, *(str(number).encode() for number in range(1, SLOTS + 1)))


async def test_a_restart_aborts_what_was_open(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await flushed(writer, 1)
        await vanish(writer)
    async with writing(sink_to(kafka, topic)):
        await see(kafka.bootstrap, topic)


async def test_a_restart_aborts_what_was_prepared_for_a_checkpoint_that_never_completed(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        completed = stored(await writer.prepare(1))
        await writer.write([2], None)
        await writer.prepare(2)
        await flushed(writer, 3)
        await vanish(writer)
    async with writing(sink_to(kafka, topic), completed):
        await see(kafka.bootstrap, topic, b"1")


@pytest.mark.parametrize("parallelism", [1, 2, 4])
async def test_a_rescaled_restart_commits_and_fences_for_all_old_subtasks(
    kafka: KafkaBroker, topics: Topics, parallelism: int
) -> None:
    topic = await topics.new()
    states: dict[int, list[Any]] = {}
    for subtask in range(3):
        async with writing(sink_to(kafka, topic), subtask=subtask, parallelism=3, widest_parallelism=3) as writer:
            await flushed(writer, subtask)
            states[subtask] = stored(await writer.prepare(1))
            await flushed(writer, 10 + subtask)
            await vanish(writer)
    scale = {"parallelism": parallelism, "widest_parallelism": max(3, parallelism)}
    for subtask in range(parallelism):
        restored = [each for old, state in states.items() if old % parallelism == subtask for each in state]
        async with writing(sink_to(kafka, topic), restored, committed=False, subtask=subtask, **scale):
            pass
    await see(kafka.bootstrap, topic, b"0", b"1", b"2")


async def test_ids_of_an_older_wider_start_are_fenced(kafka: KafkaBroker, topics: Topics) -> None:
    """4, then 1, then 1 again: what the first left open must not stay."""
    topic = await topics.new()
    for subtask in range(4):
        async with writing(sink_to(kafka, topic), subtask=subtask, parallelism=4, widest_parallelism=4) as writer:
            await flushed(writer, subtask)
            await vanish(writer)
    async with writing(sink_to(kafka, topic), widest_parallelism=4):
        await see(kafka.bootstrap, topic)


async def test_a_larger_pool_of_before_is_fenced_too(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic), tolerable_failures=5) as writer:
        for checkpoint in range(1, 6):
            await writer.write([checkpoint], None)
            pending = stored(await writer.prepare(checkpoint))
        await flushed(writer, 6)
        await vanish(writer)
    async with writing(sink_to(kafka, topic), pending[:1]):
        await see(kafka.bootstrap, topic, b"1")


async def test_restored_ids_are_not_used_again_before_a_checkpoint_completes(
    kafka: KafkaBroker, topics: Topics
) -> None:
    """A crash before that restores the same state, and must find the same sessions."""
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        await vanish(writer)
    for _ in range(5):
        async with writing(sink_to(kafka, topic), pending) as writer:
            await writer.commit(1)  # the restored checkpoint's own, once more: completes nothing new
            await writer.write([7], None)
            uncompleted = await writer.prepare(2)
            assert not set(sessions(uncompleted)) & set(sessions(pending))
            await flushed(writer, 8)
            await vanish(writer)
    async with writing(sink_to(kafka, topic), pending) as writer:
        for checkpoint in range(2, 9):
            await writer.write([checkpoint], None)
            await writer.prepare(checkpoint)
            await writer.commit(checkpoint)
    await see(kafka.bootstrap, topic, *(b"%d" % checkpoint for checkpoint in range(1, 9)))


async def test_another_subtask_s_transactions_are_refused_before_anything_is_fenced(
    kafka: KafkaBroker, topics: Topics
) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic), subtask=1, parallelism=2, widest_parallelism=2) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        await vanish(writer)
    with pytest.raises(StreamactorsError, match="came to subtask 0 of 2 instead of 1"):
        async with writing(sink_to(kafka, topic), pending, subtask=0, parallelism=2, widest_parallelism=2):
            pass
    async with writing(sink_to(kafka, topic), pending, subtask=1, parallelism=2, widest_parallelism=2):
        await see(kafka.bootstrap, topic, b"1")


@pytest.mark.kill
async def test_sigkill_between_prepare_and_commit(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    states = {}
    for subtask in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.connectors.kafka.prepare_and_hang",
            kafka.bootstrap,
            topic,
            str(subtask),
            "2",
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            states[subtask] = json.loads(await process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    assert await committed_values(kafka.bootstrap, topic) == []
    async with writing(sink_to(kafka, topic), [*states[0], *states[1]], widest_parallelism=2):
        await see(kafka.bootstrap, topic, b"1", b"2", b"11", b"12")


async def test_transactions_are_committed_when_a_sink_becomes_at_least_once(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        await vanish(writer)
    async with writing(sink_to(kafka, topic, delivery="at-least-once"), pending) as writer:
        await writer.write([2], None)
        await writer.prepare(2)
    await see(kafka.bootstrap, topic, b"1", b"2")


# --------------------------------------------------------------------------------------------------------- closing


async def test_closing_aborts_the_open_transaction_and_never_a_listed_one(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        await flushed(writer, 2)
    async with coordinator(kafka) as others:
        assert await others.end(Prepared.from_state(pending[0]).session, commit=True) == 0
    # Without another start: closing itself has aborted the open one, and readers get past it.
    await see(kafka.bootstrap, topic, b"1")


async def test_closing_after_a_cancelled_write_and_after_a_failed_open(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        task = asyncio.create_task(writer.write(list(range(1000)), None))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    failed = sink_to(kafka, topics.name("missing")).writer(writer._ctx)  # type: ignore[attr-defined]
    with pytest.raises(StreamactorsError):
        await failed.open([], committed=False)
    await failed.close()
    await see(kafka.bootstrap, topic)


# ------------------------------------------------------------------------------------------------------- what fails


async def test_a_session_that_was_replaced_is_lost_by_name(
    kafka: KafkaBroker, topics: Topics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        await vanish(writer)
    async with coordinator(kafka) as others:
        await others.begin(pending[0]["id"])  # aborts it
    with pytest.raises(TransactionLost) as caught:
        async with writing(sink_to(kafka, topic), pending):
            pass
    message = str(caught.value)
    for part in (pending[0]["id"], f"{topic}[0] offsets 0 to 0", "error 47", "checkpoint 1", "read_committed", SETTLED):
        assert part in message
    assert not caught.value.retryable
    # Somebody has looked into it.
    monkeypatch.setenv(SETTLED, f"other:1:1, {sessions(pending)[0]}")
    async with writing(sink_to(kafka, topic), pending) as writer:
        await writer.write([2], None)
        await writer.prepare(2)
        await writer.commit(2)
    await see(kafka.bootstrap, topic, b"2")
    assert "passing over transaction" in caplog.text


async def test_a_transaction_that_timed_out_is_lost_by_name(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    sink = sink_to(kafka, topic, client={"transaction_timeout_ms": 2_000})
    async with writing(sink, checkpoint_timeout=1.5) as writer:
        await writer.write([1], None)
        await writer.prepare(1)
        await see_nothing_open(kafka.bootstrap, topic)  # the brokers have aborted it
        with pytest.raises(TransactionLost, match=f"topic {topic}"):
            await writer.commit(1)


async def test_an_open_transaction_that_timed_out_fails_the_attempt_only(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    sink = sink_to(kafka, topic, client={"transaction_timeout_ms": 2_000})
    async with writing(sink, checkpoint_timeout=1.5) as writer:
        await flushed(writer, 1)
        await see_nothing_open(kafka.bootstrap, topic)
        await writer.write([2], None)
        with pytest.raises(DeliveryFailed, match=r"slow checkpoints need a longer client=") as caught:
            await writer.prepare(1)
        assert caught.value.retryable
    async with writing(sink, checkpoint_timeout=1.5):
        await see(kafka.bootstrap, topic)


async def test_an_id_that_the_brokers_never_knew_is_lost(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    unknown = Prepared(Session(f"{topic}-forgotten-0-0", 4_711, 0), 1, 0, 4, ((topic, 0, 0, 5),))
    with pytest.raises(TransactionLost, match=r"forgotten by the brokers \(error 49\)"):
        async with writing(sink_to(kafka, topic), [unknown.to_state()]):
            pass


async def test_a_transaction_that_was_aborted_by_hand_is_lost(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        pending = stored(await writer.prepare(1))
        async with coordinator(kafka) as others:
            assert await others.end(Prepared.from_state(pending[0]).session, commit=False) == 0
        with pytest.raises(TransactionLost, match=r"aborted \(error 48\)"):
            await writer.commit(1)


async def test_a_second_live_copy_is_told_of_its_prefix(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as first:
        await flushed(first, 1)
        async with writing(sink_to(kafka, topic)):
            await first.write([2], None)
            with pytest.raises(DeliveryFailed, match="needs its own transactional_id_prefix"):
                await first.prepare(1)
    await see(kafka.bootstrap, topic)


async def test_running_out_of_ids_fails_the_attempt(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        for checkpoint in range(1, SLOTS + 1):
            await writer.write([checkpoint], None)
            await writer.prepare(checkpoint)
        exhausted = rf"all {SLOTS} transactional ids.*{SLOTS} are prepared and not committed"
        with pytest.raises(TransactionsExhausted, match=exhausted):
            await writer.write([SLOTS + 1], None)
    async with writing(sink_to(kafka, topic)):
        await see(kafka.bootstrap, topic)


async def test_a_time_out_above_the_brokers_maximum_is_refused_at_start(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    sink = sink_to(kafka, topic, client={"transaction_timeout_ms": 10_000_000})
    with pytest.raises(InvalidConfig, match=r"10000 s as above their transaction\.max\.timeout\.ms"):
        async with writing(sink):
            pass


async def test_a_time_out_below_the_checkpoints_is_refused_at_start(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    sink = sink_to(kafka, topic, client={"transaction_timeout_ms": 30_000})
    with pytest.raises(InvalidConfig, match="does not exceed the checkpoint time-out of 60 s"):
        async with writing(sink):
            pass


async def test_finishing_without_a_checkpoint_is_no_way_to_commit(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    async with writing(sink_to(kafka, topic)) as writer:
        await writer.write([1], None)
        with pytest.raises(DeliveryFailed, match="finish without a checkpoint"):
            await writer.finish()


async def test_the_default_prefix_holds_flow_and_sink(kafka: KafkaBroker, topics: Topics) -> None:
    topic = await topics.new()
    flow = topics.name("flow")
    async with writing(KafkaSink(kafka.bootstrap, topic, value=NUMBERS), flow=flow, uid="totals") as writer:
        await writer.write([1], None)
        (pending,) = await writer.prepare(1)
    assert pending["id"] == f"{flow}-totals-0-0"
