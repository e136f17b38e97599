"""Windows over partitions of which one has a hundred times what another has: none is lost, none comes too early."""

import asyncio
import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import streamactors as sa
from connectors.kafka import KafkaSource
from connectors.memory import ListSink
from streamactors.testing import KafkaBroker
from tests.connectors.kafka.driving import NUMBERS, PATIENCE
from tests.connectors.kafka.test_kafka_watermarks import SPAN, START, STEPS, fill
from tests.kafka_topics import Topics

pytestmark = pytest.mark.slow

SIZE = 100


async def test_no_window_over_unequal_partitions_is_lost(kafka: KafkaBroker, topics: Topics, tmp_path: Path) -> None:
    """Nor while the job fails in the middle, and goes on from its checkpoints."""
    topic = await topics.new(partitions=len(STEPS))
    stamps = await fill(kafka, topic)
    failures = [START + SPAN // 3, START + 2 * SPAN // 3]

    def fail_now_and_then(stamp: int) -> int:
        if failures and stamp > failures[0]:
            del failures[0]
            raise RuntimeError("now and then")
        return stamp

    late, sink, beside = sa.OutputTag("late", int), ListSink[Any](), ListSink[int]()
    flow = sa.Dataflow("unequal-windows")
    source = KafkaSource(kafka.bootstrap, topic, value=NUMBERS, bounded=True, client={"max_poll_records": 50})
    timed = flow.source("in", source, watermarks=sa.Watermarks.monotonic(lambda stamp: stamp))
    keyed = timed.map(fail_now_and_then).key_by(lambda stamp: stamp % 5)
    counts = keyed.window("w", sa.Tumbling(dt.timedelta(milliseconds=SIZE)), late=late).aggregate(sa.Count())
    counts.sink("out", sink)
    counts.side_output(late).sink("late", beside)
    checkpoints = sa.Checkpoints(tmp_path.as_uri(), interval=dt.timedelta(milliseconds=20))
    restart = sa.Restart.fixed(dt.timedelta(milliseconds=1), attempts=3)
    async with asyncio.timeout(PATIENCE):
        await sa.run(flow, sa.Config(parallelism=2, checkpoints=checkpoints, restart=restart))
    wanted = Counter((stamp % 5, stamp // SIZE * SIZE) for stamp in stamps)
    assert not failures and not beside.values
    assert sorted((each.key, each.start, each.value) for each in sink.values) == sorted(
        (*window, count) for window, count in wanted.items()
    )
