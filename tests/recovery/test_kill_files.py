"""A job from files to files in a process that is killed by SIGKILL at random moments: its visible output equals a
plain computation, nothing lost, nothing doubled, per customer in order."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.recovery.jobs import Settings
from tests.recovery.orders import by_customer, check, hidden_in, random_orders, totals_in, write_logs
from tests.recovery.processes import kill_until_finished, new_seed

pytestmark = [pytest.mark.kill, pytest.mark.slow]

KILLS = 10
ORDERS = 60_000
PACE = 4000.0
"""Records per second: undisturbed it would take longer than all that are killed are let live."""


def unchanged(rng: random.Random) -> dict[str, Any]:
    return {"source_parallelism": 2, "parallelism": 2, "brake": rng.choice(("orders", "totals"))}


def rescaled(rng: random.Random) -> dict[str, Any]:
    """Another parallelism at every start, other chains and channels with it."""
    return {
        "source_parallelism": rng.randint(1, 3),
        "parallelism": rng.randint(1, 4),
        "brake": rng.choice(("orders", "totals")),
        "interval_ms": rng.choice((30, 80, 150)),
        "mailbox_capacity": rng.choice((64, 256, 1024)),
    }


@pytest.mark.parametrize(
    ("folders", "shape", "scale"),
    [
        pytest.param(1, {"mailbox_capacity": 512}, unchanged, id="running totals"),
        pytest.param(
            2,
            {"flat": True, "exchanged": True, "mailbox_capacity": 256},
            unchanged,
            id="union, flat_map and two exchanges",
        ),
        pytest.param(1, {"rebalanced": True}, rescaled, id="rebalanced, rescaled at every start"),
        pytest.param(
            3, {"flat": True, "exchanged": True, "mailbox_capacity": 256}, rescaled, id="union, rescaled at every start"
        ),
    ],
)
async def test_killed_at_random_moments(
    tmp_path: Path, folders: int, shape: dict[str, Any], scale: Callable[[random.Random], dict[str, Any]]
) -> None:
    seed = new_seed()
    logs = random_orders(random.Random(seed), ORDERS, logs=3 * folders)
    sources = [tmp_path / f"in-{number}" for number in range(folders)]
    for number, source in enumerate(sources):
        write_logs(source, logs[3 * number : 3 * number + 3])
    settings = Settings(
        storage=str(tmp_path / "checkpoints"),
        sources=[str(source) for source in sources],
        output=str(tmp_path / "out"),
        **shape,
    )
    story = await kill_until_finished(
        lambda rng: msgspec.structs.replace(settings, **scale(rng)), pace=PACE, kills=KILLS, seed=seed
    )
    found = by_customer(totals_in(tmp_path / "out"))
    try:
        check(found, logs, settings)
        assert hidden_in(tmp_path / "out") == []
        assert story.restores > 1, "hardly any of its starts found a checkpoint"
    except AssertionError as error:
        error.add_note(str(story))
        raise
