"""`python -m examples.fraud_pattern`: alerts from transactions in files, equal to those of a plain loop."""

from pathlib import Path

import pytest

from examples.fraud_pattern import Alert, made_up, on_files, on_kafka, plain_alerts
from tests.programs import Program


async def test_the_alerts_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    found = await on_files(tmp_path, 10_000)
    assert sorted(found, key=_order) == sorted(plain_alerts(list(made_up(10_000))), key=_order)
    assert len(found) > 20 and {len(alert.tried) for alert in found} >= {2, 3}


async def test_run_again_it_gives_no_alert_twice(tmp_path: Path) -> None:
    assert await on_files(tmp_path, 2_000) == await on_files(tmp_path, 2_000)


def test_on_kafka_it_is_the_same_flow() -> None:
    assert "fraud" in on_kafka("localhost:9092", "transactions", "alerts").explain()


@pytest.mark.slow
def test_the_program_says_that_the_alerts_are_right(tmp_path: Path) -> None:
    with Program("-m", "examples.fraud_pattern", "--count", "20000", cwd=tmp_path) as program:
        assert program.end() == 0, program.stderr
    assert "alerts; a plain loop gives the same" in program.stdout


def _order(alert: Alert) -> tuple[int, str]:
    return alert.charged, alert.card
