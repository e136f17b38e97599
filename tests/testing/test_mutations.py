"""The simulation catches deliberate bugs of the protocols, each by the invariant that it breaks.

`-s` shows how many seeds each took. Runs are made in worker processes whose text hashes are fixed, so that a failure
comes again.
"""

import multiprocessing
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.testing.hunting import SEEDS, Catch, hunt, run
from tests.testing.mutants import MUTANTS

pytestmark = pytest.mark.slow

WORKERS = 2


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "0")
        with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool
            pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def hunts(workers: ProcessPoolExecutor, request: pytest.FixtureRequest) -> Mapping[str, Future[Catch | None]]:
    """Of the mutants whose tests were selected, all at once."""
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    return {name: workers.submit(hunt, name) for name in MUTANTS if name in asked}


@pytest.mark.parametrize("name", MUTANTS)
def test_is_caught(name: str, hunts: Mapping[str, Future[Catch | None]]) -> None:
    caught = hunts[name].result()
    assert caught is not None, f"{name}: {SEEDS} seeds have passed"
    print(f"\n| {name} | {caught.topology}, {caught.mode} | {caught.runs} | {caught.symptom[:100]} |", end="")
    assert re.search(MUTANTS[name].symptom, caught.symptom), f"{name} failed otherwise: {caught.symptom}"


@pytest.mark.parametrize("name", MUTANTS)
def test_is_what_made_its_run_fail(
    name: str, hunts: Mapping[str, Future[Catch | None]], workers: ProcessPoolExecutor
) -> None:
    """Without the mutant, the same run passes."""
    caught = hunts[name].result()
    assert caught is not None
    assert workers.submit(run, caught.topology, caught.mode, caught.seed, MUTANTS[name].faults).result() is None
