"""A job from files to files in a process that is killed by SIGKILL at random moments: its visible output equals a
plain computation, nothing lost, nothing doubled, per customer in order; each undecodable line is one dead letter."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.recovery.jobs import Settings
from tests.recovery.orders import by_customer, check, hidden_in, letters_in, random_orders, totals_in, write_logs
from tests.recovery.processes import kill_until_finished, new_seed

pytestmark = [pytest.mark.kill, pytest.mark.slow]

KILLS = 8
ORDERS = 40_000
PACE = 3000.0
"""Records per second, of those that are to be killed."""


def unchanged(rng: random.Random) -> dict[str, Any]:
    return {"source_parallelism": 2, "parallelism": 2, "brake": rng.choice(("orders", "totals"))}


def rescaled(rng: random.Random) -> dict[str, Any]:
    """Another parallelism at every start, other chains and channels with it; and another kind of operator."""
    return {
        "source_parallelism": rng.randint(1, 3),
        "parallelism": rng.randint(1, 4),
        "brake": rng.choice(("orders", "totals")),
        "interval_ms": rng.choice((30, 80, 150)),
        "mailbox_capacity": rng.choice((64, 256, 1024)),
        "waiting": rng.random() < 0.5,
    }


def overtaking(rng: random.Random) -> dict[str, Any]:
    """And barriers that overtake, mostly."""
    patience = rng.choice((None, None, 0, 30))
    alignment = "unaligned" if patience is None and rng.random() < 0.8 else "aligned"
    return {**rescaled(rng), "alignment": alignment, "alignment_timeout_ms": patience}


UNION: dict[str, Any] = {"flat": True, "called": True, "exchanged": True, "mailbox_capacity": 256, "brake": "orders"}


@pytest.mark.parametrize("backends", [("heap",), ("rocksdb",)], ids=["heap", "rocksdb"])
@pytest.mark.parametrize(
    ("folders", "shape", "scale"),
    [
        pytest.param(1, {"mailbox_capacity": 512}, unchanged, id="running totals"),
        pytest.param(2, UNION, unchanged, id="union, flat_map, calls and two exchanges"),
        pytest.param(1, {"rebalanced": True}, rescaled, id="rebalanced, rescaled at every start"),
        pytest.param(3, UNION, rescaled, id="union, rescaled at every start"),
        pytest.param(1, {"rebalanced": True}, overtaking, id="rebalanced, unaligned, rescaled at every start"),
        pytest.param(2, UNION, overtaking, id="union, unaligned, rescaled at every start"),
    ],
)
async def test_killed_at_random_moments(
    tmp_path: Path,
    folders: int,
    shape: dict[str, Any],
    scale: Callable[[random.Random], dict[str, Any]],
    backends: Sequence[str],
) -> None:
    await survive(tmp_path, folders, shape, scale, backends)


@pytest.mark.parametrize("scale", [unchanged, overtaking])
async def test_killed_at_random_moments_with_increments(
    tmp_path: Path, scale: Callable[[random.Random], dict[str, Any]]
) -> None:
    await survive(tmp_path, 2, UNION, scale, ("incremental heap",))


async def test_killed_at_random_moments_and_started_on_another_backend(tmp_path: Path) -> None:
    """Which restores what the other one has left."""
    await survive(tmp_path, 2, UNION, overtaking, ("heap", "incremental heap", "rocksdb"))


async def survive(
    tmp_path: Path,
    folders: int,
    shape: dict[str, Any],
    scale: Callable[[random.Random], dict[str, Any]],
    backends: Sequence[str],
) -> None:
    seed = new_seed()
    logs = random_orders(random.Random(seed), ORDERS, logs=3 * folders)
    sources = [tmp_path / f"in-{number}" for number in range(folders)]
    poisoned = [
        origin
        for number, source in enumerate(sources)
        for origin in write_logs(source, logs[3 * number : 3 * number + 3], poison_every=97)
    ]
    settings = Settings(
        storage=str(tmp_path / "checkpoints"),
        sources=[str(source) for source in sources],
        output=str(tmp_path / "out"),
        letters=str(tmp_path / "letters"),
        local=str(tmp_path / "local"),
        **shape,
    )
    story = await kill_until_finished(
        lambda rng: msgspec.structs.replace(settings, **{**scale(rng), **shape, "backend": rng.choice(backends)}),
        orders=ORDERS,
        # With barriers that overtake, hardly anything has to be read again: little would be left for the last one.
        pace=PACE / 3 if scale is overtaking else PACE,
        kills=KILLS,
        seed=seed,
    )
    try:
        check(by_customer(totals_in(tmp_path / "out")), logs, settings)
        assert letters_in(tmp_path / "letters") == sorted(poisoned)
        assert hidden_in(tmp_path / "out") == hidden_in(tmp_path / "letters") == []
        assert backends != ("rocksdb",) or not list((tmp_path / "local").iterdir()), "local state of killed processes"
        assert story.restores > 1, "hardly any of its starts found a checkpoint"
    except AssertionError as error:
        error.add_note(str(story))
        raise
