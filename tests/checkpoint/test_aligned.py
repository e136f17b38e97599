"""The aligned protocol against a model that knows from the channels' scripts what each snapshot must hold."""

import pytest
from hypothesis import given

from streamactors.checkpoint import protocol as p
from streamactors.checkpoint.aligned import AlignedBarriers
from streamactors.elements import Barrier
from tests.checkpoint.barrier_scripts import CHOICES, any_scripts, small_scripts, with_aborts
from tests.checkpoint.subtask_model import END, Model, Script, Source, exhaust, head, plain, run


@given(any_scripts([plain]), CHOICES)
def test_any_interleaving(channels: list[Script], choices: list[int]) -> None:
    run(Model(AlignedBarriers(len(channels)), scripts=channels, prompt=False, outputs=2), choices)


@pytest.mark.parametrize(("channels", "abort"), with_aborts(small_scripts(plain, plain)))
def test_every_interleaving_of_small_scripts(channels: list[Script], abort: int) -> None:
    assert exhaust(Model(AlignedBarriers(len(channels)), scripts=channels), abort=abort) > 100


@pytest.mark.parametrize("abort", [1, 2])
def test_every_interleaving_of_a_source(abort: int) -> None:
    assert exhaust(Source(AlignedBarriers(0), triggers=[plain(1), plain(2)], records=2), abort=abort) > 100


class TestRule6EndOfData:
    @pytest.mark.parametrize("ended", [[END, 1, 2], [END, 1], [0, END, 2]])
    def test_an_ended_channel_counts_as_aligned(self, ended: Script) -> None:
        exhaust(Model(AlignedBarriers(2), scripts=[ended, [0, 1, 0, 2]]))


# ------------------------------------------------------------------------------------------------------------- directed
def test_a_source_snapshots_when_it_is_triggered() -> None:
    source = AlignedBarriers(0)
    barrier = Barrier(3)
    assert source.on(p.Triggered(barrier)) == [p.Snapshot(barrier), p.Forward(barrier)]
    assert source.on(p.Triggered(Barrier(2))) == []
    assert source.on(p.BarrierLeft(3)) == [p.Acknowledge(3)]
    assert source.on(p.BarrierLeft(3)) == []


def test_a_trigger_that_comes_after_its_abort_does_nothing() -> None:
    source = AlignedBarriers(0)
    assert source.on(p.Aborted(1)) == []
    assert source.on(p.Triggered(Barrier(1))) == []


def test_the_target_of_a_savepoint_is_passed_on() -> None:
    aligned = AlignedBarriers(1)
    barrier = Barrier(1, "file:///savepoint")
    assert p.Forward(barrier) in aligned.on(p.BarrierAtHead(0, barrier))


def test_channels_are_blocked_until_the_last_barrier() -> None:
    aligned = AlignedBarriers(2)
    assert aligned.on(head(0, 1)) == [p.Block(0)]
    assert aligned.on(head(1, 1)) == [p.Block(1), p.Snapshot(Barrier(1)), p.Forward(Barrier(1)), p.UnblockAll()]


def test_an_abort_during_the_alignment_unblocks() -> None:
    aligned = AlignedBarriers(2)
    aligned.on(head(0, 1))
    assert aligned.on(p.Aborted(1)) == [p.UnblockAll()]
    assert aligned.on(head(1, 1)) == []
    assert aligned.on(head(0, 2)) == [p.Block(0)]


def test_a_later_barrier_gives_up_the_alignment_of_an_earlier_checkpoint() -> None:
    aligned = AlignedBarriers(2)
    aligned.on(head(0, 1))
    actions = aligned.on(head(1, 2))
    assert actions[0] == p.UnblockAll() and isinstance(actions[1], p.Decline) and actions[2:] == [p.Block(1)]
    assert aligned.on(head(0, 2))[1:] == [p.Snapshot(Barrier(2)), p.Forward(Barrier(2)), p.UnblockAll()]


def test_an_abort_after_the_snapshot_discards_it_and_acknowledges_nothing() -> None:
    aligned = AlignedBarriers(1)
    aligned.on(head(0, 1))
    assert aligned.on(p.Aborted(1)) == [p.Discard(1)]
    assert aligned.on(p.BarrierLeft(1)) == []


def test_remembered_aborts_are_forgotten_with_the_next_snapshot() -> None:
    aligned = AlignedBarriers(1)
    for number in range(1, 50):
        aligned.on(p.Aborted(number))
    aligned.on(head(0, 50))
    assert not aligned._settled._given_up
