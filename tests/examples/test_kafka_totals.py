"""`make demo-kafka` kills the job, tells the truth about the outcome, and finds nothing lost and nothing doubled."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from examples.kafka_totals import Order, Total, compare, made_up, plain_totals
from streamactors.testing import KafkaBroker

ROOT = Path(__file__).parents[2]


@pytest.mark.kill
@pytest.mark.slow
async def test_the_demo(kafka: KafkaBroker) -> None:
    command = [sys.executable, "-m", "examples.kafka_totals", "--orders", "100000"]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, "KAFKA_BOOTSTRAP": kafka.bootstrap},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 180)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    printed = output.decode()
    assert process.returncode == 0, printed
    assert "Killed by SIGKILL" in printed
    assert "kafka-totals: restoring file://" in printed
    assert printed.splitlines()[-1] == "100,000 expected · 100,000 found · 0 lost · 0 doubled"


def test_the_orders_are_the_same_every_time() -> None:
    assert list(made_up(1_000)) == list(made_up(1_000))
    assert len({order.customer for order in made_up(1_000)}) > 100


def test_the_plain_computation() -> None:
    orders = [Order(0, "a", 5), Order(1, "b", 1), Order(2, "a", 2)]
    assert plain_totals(orders) == {"a": [Total(0, "a", 5), Total(2, "a", 7)], "b": [Total(1, "b", 1)]}


def test_what_is_wrong_is_found() -> None:
    expected = plain_totals([Order(0, "a", 5), Order(1, "b", 1), Order(2, "a", 2)])
    first, second = expected["a"]
    assert compare(expected, expected).equal
    lost = compare(expected, {**expected, "b": []})
    assert (lost.equal, lost.lost, lost.doubled) == (False, 1, 0)
    doubled = compare(expected, {**expected, "a": [first, first, second]})
    assert (doubled.equal, doubled.lost, doubled.doubled) == (False, 0, 1)
    misplaced = compare(expected, {**expected, "a": [second, first]})
    assert (misplaced.equal, misplaced.lost, misplaced.doubled, misplaced.misplaced) == (False, 0, 0, 1)
    assert str(misplaced) == "3 expected · 3 found · 0 lost · 0 doubled · 1 customers wrong"
    assert not compare(expected, {**expected, "b": [Total(1, "b", 99)]}).equal
