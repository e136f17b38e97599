"""The autoscaler among simulated faults: it rescales whenever it thinks fit, and nothing is lost or doubled."""

import datetime as dt
from collections import Counter

import pytest

import streamactors as sa
from streamactors.runtime.autoscaling.decisions import Autoscaler, Decision
from streamactors.runtime.autoscaling.demand import Observation
from streamactors.testing import simulate
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


def test_whatever_it_decides_and_when_every_record_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decided, original = Counter[str](), Autoscaler.on

    def on(self: Autoscaler, observation: Observation) -> Decision:
        decision = original(self, observation)
        decided[decision.action] += 1
        return decision

    monkeypatch.setattr(Autoscaler, "on", on)
    restarts = sum(simulate(flows.totals, seed=seed, config=RESTLESS).attempts for seed in range(10))
    assert decided["rescale"] > 3 and decided["keep"] > 3 and restarts > 20, decided
