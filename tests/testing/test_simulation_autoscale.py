"""The autoscaler among simulated faults: it rescales whenever it thinks fit, and nothing is lost or doubled."""

import datetime as dt
from collections import Counter

import pytest

import streamactors as sa
from streamactors.runtime.autoscaling.decisions import Autoscaler, Decision
from streamactors.runtime.autoscaling.demand import Observation
from streamactors.runtime.rescaling import Rescales
from streamactors.testing import Faults, simulate
from streamactors.testing.simulation.process import here
from tests.testing import simulated_flows as flows

pytestmark = pytest.mark.slow


def ms(milliseconds: int) -> dt.timedelta:
    return dt.timedelta(milliseconds=milliseconds)


RESTLESS = sa.Config(
    max_parallelism=8,
    restart=sa.Restart.exponential(ms(10), dt.timedelta(seconds=2)),
    checkpoints=sa.Checkpoints("file:///simulation", interval=ms(100), tolerable_failures=2),
    autoscale=sa.Autoscale(every=ms(5), window=ms(10), cooldown=ms(5), scale_down_after=ms(10), max_parallelism=4),
)


@pytest.mark.parametrize("workers", [(), (2, 3)], ids=str)
def test_whatever_it_decides_and_when_every_record_counts_once(
    workers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decided, done, decide, run = Counter[str](), Counter[bool](), Autoscaler.on, Rescales.running

    def on(self: Autoscaler, observation: Observation) -> Decision:
        decision = decide(self, observation)
        decided[decision.action] += 1
        return decision

    def running(self: Rescales) -> None:
        done[over_workers()] += self.under_way is not None
        run(self)

    monkeypatch.setattr(Autoscaler, "on", on)
    monkeypatch.setattr(Rescales, "running", running)
    faults, seeds = Faults(workers=workers, rescales=0), range(10)  # none by hand
    restarts = sum(simulate(flows.totals, seed=seed, config=RESTLESS, faults=faults).attempts for seed in seeds)
    assert decided["rescale"] > 3 and decided["keep"] > 3 and restarts > 20, decided
    assert done[bool(workers)] > 3, done


def over_workers() -> bool:
    """Of the run of which this process is part: what it is compared with is in one process."""
    return here()._fleet is not None
