"""Counting: a snapshot holds at least what is ahead of the barriers; nothing blocks, nothing is lost. A savepoint holds
exactly that."""

import pytest
from hypothesis import example, given, settings

from streamactors.checkpoint import protocol as p
from streamactors.checkpoint.at_least_once import AtLeastOnceBarriers, CountedBarriers
from streamactors.elements import Barrier
from tests.checkpoint.barrier_scripts import CHOICES, Kind, any_scripts, small_scripts, with_aborts
from tests.checkpoint.subtask_model import (
    Model,
    Script,
    Source,
    coming,
    exhaust,
    head,
    overtaking,
    plain,
    run,
    savepoint,
)


@given(any_scripts([plain]), CHOICES)
def test_any_interleaving_of_counts(channels: list[Script], choices: list[int]) -> None:
    run(Model(CountedBarriers(len(channels)), scripts=channels, exact=False, prompt=False), choices)


@pytest.mark.parametrize(("channels", "abort"), with_aborts(small_scripts(plain, plain)))
def test_every_interleaving_of_small_scripts(channels: list[Script], abort: int) -> None:
    assert exhaust(Model(CountedBarriers(len(channels)), scripts=channels, exact=False), abort=abort) > 100


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
    assert not counted._counts


class TestRule4SavepointsAreAlignedWhateverTheMode:
    @given(any_scripts([plain], [savepoint]), CHOICES)
    @example([["end", plain(4)], ["end", savepoint(3)], ["end"]], [])
    @example([[plain(1), savepoint(2), "end"], ["end", plain(1), plain(4)], ["end"]], [])
    @settings(max_examples=300)
    def test_any_interleaving(self, channels: list[Script], choices: list[int]) -> None:
        run(Model(AtLeastOnceBarriers(len(channels)), scripts=channels, exact=False, prompt=False), choices)

    @pytest.mark.parametrize("kinds", [(savepoint, plain), (plain, savepoint)])
    def test_every_interleaving_of_small_scripts(self, kinds: tuple[Kind, Kind]) -> None:
        for channels in small_scripts(*kinds):
            model = Model(AtLeastOnceBarriers(len(channels)), scripts=channels, exact=False, unsent_room=1)
            exhaust(model, abort=1)

    @pytest.mark.parametrize("kinds", [(savepoint, plain), (plain, savepoint)])
    def test_every_interleaving_of_a_source(self, kinds: tuple[Kind, Kind]) -> None:
        exhaust(Source(AtLeastOnceBarriers(0), triggers=[kinds[0](1), kinds[1](2)], records=2), abort=1)

    def test_a_savepoint_blocks_and_a_checkpoint_does_not(self) -> None:
        protocol = AtLeastOnceBarriers(2)
        assert protocol.on(head(0, 1)) == []
        assert protocol.on(head(1, 1)) == [p.Snapshot(Barrier(1)), p.Forward(Barrier(1))]
        assert protocol.on(head(0, savepoint(2))) == [p.Block(0)]

    def test_a_savepoint_that_was_given_up_upstream_blocks_no_longer(self) -> None:
        protocol = AtLeastOnceBarriers(2)
        protocol.on(head(0, savepoint(1)))
        unblock, decline = protocol.on(head(1, 2))
        assert unblock == p.UnblockAll() and isinstance(decline, p.Decline) and decline.checkpoint == 1

    def test_a_savepoint_that_comes_behind_a_later_checkpoint_was_given_up(self) -> None:
        protocol = AtLeastOnceBarriers(3)
        assert protocol.on(head(0, 2)) == []
        (decline,) = protocol.on(head(1, savepoint(1)))
        assert isinstance(decline, p.Decline) and decline.checkpoint == 1
        assert protocol.on(head(2, savepoint(1))) == protocol.on(head(1, 2)) == []
        assert protocol.on(head(2, 2)) == [p.Snapshot(Barrier(2)), p.Forward(Barrier(2))]

    def test_one_that_is_known_to_come_changes_nothing(self) -> None:
        protocol = AtLeastOnceBarriers(1)
        assert protocol.on(coming(0, overtaking(1))) == []
        assert protocol.on(head(0, 1)) == [p.Snapshot(Barrier(1)), p.Forward(Barrier(1))]

    def test_it_is_discarded_once(self) -> None:
        protocol = AtLeastOnceBarriers(1)
        protocol.on(head(0, savepoint(1)))
        assert protocol.on(p.Aborted(1)) == [p.Discard(1)]
        assert protocol.on(p.BarrierLeft(1)) == []
