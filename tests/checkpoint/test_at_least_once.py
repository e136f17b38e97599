"""The counting protocol: a snapshot holds at least what is ahead of the barriers; nothing blocks, nothing is lost."""

import pytest
from hypothesis import given

from streamactors.checkpoint import protocol as p
from streamactors.checkpoint.at_least_once import CountedBarriers
from streamactors.elements import Barrier
from tests.checkpoint.subtask_model import Model, Script
from tests.checkpoint.test_aligned import CHOICES, SMALL, exhaust, head, run, scripts


@given(scripts(), CHOICES)
def test_any_interleaving(channels: list[Script], choices: list[int]) -> None:
    run(Model(CountedBarriers(len(channels)), channels, exact=False), choices)


@pytest.mark.parametrize("channels", SMALL)
@pytest.mark.parametrize("aborted", [None, 1, 2])
def test_every_interleaving_of_small_scripts(channels: list[Script], aborted: int | None) -> None:
    assert exhaust(Model(CountedBarriers(len(channels)), channels, exact=False), aborted) > 1


def test_the_end_of_a_channel_may_complete_several_at_once() -> None:
    counted = CountedBarriers(2)
    assert counted.on(head(0, 1)) == counted.on(head(0, 2)) == []
    one, two = Barrier(1), Barrier(2)
    assert counted.on(p.ChannelEnded(1)) == [p.Snapshot(one), p.Forward(one), p.Snapshot(two), p.Forward(two)]


def test_a_source_snapshots_when_it_is_triggered() -> None:
    source = CountedBarriers(0)
    assert source.on(p.Triggered(Barrier(1))) == [p.Snapshot(Barrier(1)), p.Forward(Barrier(1))]
    assert source.on(p.Triggered(Barrier(1))) == []
    assert source.on(p.BarrierLeft(1)) == [p.Acknowledge(1)]


def test_aborts_before_and_after() -> None:
    counted = CountedBarriers(1)
    assert counted.on(p.Aborted(1)) == counted.on(head(0, 1)) == []
    assert counted.on(head(0, 2)) == [p.Snapshot(Barrier(2)), p.Forward(Barrier(2))]
    assert counted.on(p.Aborted(2)) == [p.Discard(2)]
    assert counted.on(p.BarrierLeft(2)) == []
    assert not counted._aborted and not counted._counts
