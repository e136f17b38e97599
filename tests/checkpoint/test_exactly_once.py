"""Aligned, unaligned, and the hand-over from one to the other, against a model that knows what each must hold."""

import pytest
from hypothesis import given, settings

from streamactors.checkpoint import protocol as p
from streamactors.checkpoint.at_least_once import AtLeastOnceBarriers
from streamactors.checkpoint.exactly_once import ExactlyOnceBarriers
from streamactors.checkpoint.modes import barrier_protocol
from streamactors.elements import Barrier
from tests.checkpoint.barrier_scripts import CHOICES, Kind, any_scripts, small_scripts
from tests.checkpoint.subtask_model import (
    END,
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
    tail,
    timed,
    timed_out,
)

ONE, TWO = timed(1), timed(2)


def test_the_mode_chooses_the_protocol() -> None:
    assert isinstance(barrier_protocol("exactly-once", 2), ExactlyOnceBarriers)
    assert isinstance(barrier_protocol("at-least-once", 0), AtLeastOnceBarriers)


@given(any_scripts([overtaking], [timed], [timed, timed_out], [savepoint]), CHOICES)
@settings(max_examples=300)
def test_any_interleaving(channels: list[Script], choices: list[int]) -> None:
    protocol = ExactlyOnceBarriers(len(channels))
    run(Model(protocol, scripts=channels, prompt=False, outputs=2, hand_room=2, unsent_room=3), choices)


@given(any_scripts([overtaking], [timed, timed_out], [savepoint]), CHOICES)
def test_any_interleaving_between_processes(channels: list[Script], choices: list[int]) -> None:
    protocol = ExactlyOnceBarriers(len(channels))
    run(Model(protocol, scripts=channels, prompt=False, hand_room=2, unsent_room=3, remote=True), choices)


@given(any_scripts([timed, timed, timed_out]), CHOICES)
@settings(max_examples=300)
def test_any_interleaving_with_timers(channels: list[Script], choices: list[int]) -> None:
    run(Model(ExactlyOnceBarriers(len(channels)), scripts=channels, prompt=False), choices)


@given(any_scripts([plain]), CHOICES)
def test_any_interleaving_of_plain_barriers(channels: list[Script], choices: list[int]) -> None:
    run(Model(ExactlyOnceBarriers(len(channels)), scripts=channels, prompt=False), choices)


@pytest.mark.slow
@pytest.mark.parametrize("channels", small_scripts(timed, timed))
def test_every_interleaving_with_timers(channels: list[Script]) -> None:
    assert exhaust(Model(ExactlyOnceBarriers(len(channels)), scripts=channels, unsent_room=1), abort=1) > 300


MIXED: list[list[Script]] = [
    [[0, timed(1), 0], [0, timed_out(1), 0]],
    [[timed(1), 0], [timed(1)], [0, timed_out(1)]],
    [[timed(1), 0, timed_out(2)], [0, timed(1), timed(2)]],
    [[timed(1), 0, timed_out(2)], [0, timed(2)]],
    [[END, timed(1)], [0, timed_out(1), 0]],
    [[0, overtaking(1), savepoint(2), 0], [overtaking(1), 0, savepoint(2)]],
    [[savepoint(1), 0, overtaking(2)], [0, savepoint(1), overtaking(2)]],
    [[savepoint(1), 0, overtaking(2)], [0, overtaking(2)]],
]


@pytest.mark.parametrize("channels", MIXED)
def test_every_interleaving_of_kinds(channels: list[Script]) -> None:
    assert exhaust(Model(ExactlyOnceBarriers(len(channels)), scripts=channels, unsent_room=1), abort=1) > 100


@pytest.mark.slow
@pytest.mark.parametrize("channels", MIXED)
def test_every_interleaving_of_kinds_between_processes(channels: list[Script]) -> None:
    assert exhaust(Model(ExactlyOnceBarriers(len(channels)), scripts=channels, unsent_room=1, remote=True)) > 50


@pytest.mark.parametrize("kinds", [(timed, timed), (timed, timed_out), (overtaking, savepoint), (plain, plain)])
@pytest.mark.parametrize("abort", [1, 2])
def test_every_interleaving_of_a_source(kinds: tuple[Kind, Kind], abort: int) -> None:
    source = Source(ExactlyOnceBarriers(0), triggers=[kinds[0](1), kinds[1](2)], records=2)
    assert exhaust(source, abort=abort) > 100


@pytest.mark.parametrize("doomed", [plain(1), savepoint(1)])
def test_every_interleaving_of_a_later_barrier_with_a_plain_one_that_was_given_up(doomed: Barrier) -> None:
    channels: list[Script] = [[doomed, 0, overtaking(2)], [0, doomed, overtaking(2)]]
    assert exhaust(Model(ExactlyOnceBarriers(2), scripts=channels, doomed=1), abort=1) > 300


# ------------------------------------------------------------------------------------------------------------- directed
def test_a_timer_is_started_at_the_first_announcement() -> None:
    protocol = ExactlyOnceBarriers(2)
    assert protocol.on(tail(0, ONE)) == [p.StartTimer(ONE)]
    assert protocol.on(tail(1, ONE)) == []


def test_what_is_aligned_in_time_does_not_overtake() -> None:
    protocol = ExactlyOnceBarriers(1)
    protocol.on(tail(0, ONE))
    assert protocol.on(head(0, ONE)) == [p.Block(0), p.Snapshot(ONE), p.Forward(ONE), p.UnblockAll()]
    assert protocol.on(p.BarrierLeft(1)) == [p.Acknowledge(1)]
    assert protocol.on(p.AlignmentTimedOut(1)) == []


def test_an_alignment_is_handed_over() -> None:
    """Channel 0 has given its barrier, that of 1 is queued, that of 2 has not come."""
    protocol = ExactlyOnceBarriers(3)
    protocol.on(tail(0, ONE))
    protocol.on(head(0, ONE))
    protocol.on(tail(1, ONE))
    late = timed_out(1)
    assert protocol.on(p.AlignmentTimedOut(1)) == [
        p.Snapshot(late),
        p.CaptureInHand(1),
        p.Capture(1, 1),
        p.Capture(1, 2),
        p.Overtake(late),
        p.UnblockAll(),
    ]
    assert protocol.on(head(1, ONE)) == protocol.on(p.BarrierLeft(1)) == []
    assert protocol.on(tail(2, ONE)) == [p.Acknowledge(1)]
    assert protocol.on(head(2, ONE)) == []


def test_it_is_handed_over_when_upstream_has_timed_out() -> None:
    protocol = ExactlyOnceBarriers(2)
    protocol.on(tail(0, ONE))
    late = timed_out(1)
    begin = [p.Snapshot(late), p.CaptureInHand(1), p.Capture(1, 0), p.Capture(1, 1), p.Overtake(late)]
    assert protocol.on(tail(1, late)) == begin
    assert protocol.on(p.AlignmentTimedOut(1)) == []


def test_a_barrier_that_waits_in_an_output_overtakes_when_its_time_comes() -> None:
    protocol = ExactlyOnceBarriers(1)
    protocol.on(tail(0, ONE))
    protocol.on(head(0, ONE))
    assert protocol.on(p.AlignmentTimedOut(1)) == [p.Overtake(timed_out(1))]
    assert protocol.on(p.BarrierLeft(1)) == [p.Acknowledge(1)]


def test_a_source_starts_aligned() -> None:
    source = ExactlyOnceBarriers(0)
    assert source.on(tail(0, ONE)) == [p.StartTimer(ONE)]
    assert source.on(p.Triggered(ONE)) == [p.Snapshot(ONE), p.Forward(ONE)]


def test_a_source_that_has_something_in_hand_for_too_long_overtakes() -> None:
    source = ExactlyOnceBarriers(0)
    source.on(tail(0, ONE))
    late = timed_out(1)
    assert source.on(p.AlignmentTimedOut(1)) == [p.Snapshot(late), p.CaptureInHand(1), p.Overtake(late)]
    assert source.on(p.Triggered(ONE)) == []
    assert source.on(p.BarrierLeft(1)) == [p.Acknowledge(1)]


def test_one_that_is_known_to_come_hands_an_alignment_over() -> None:
    protocol = ExactlyOnceBarriers(2)
    protocol.on(tail(0, ONE))
    protocol.on(head(0, ONE))
    late = timed_out(1)
    begin = [p.Snapshot(late), p.CaptureInHand(1), p.Capture(1, 1), p.Overtake(late), p.UnblockAll()]
    assert protocol.on(coming(1, late)) == begin
    assert protocol.on(p.BarrierLeft(1)) == []
    assert protocol.on(tail(1, late)) == [p.Acknowledge(1)]


class TestRule4NoBarrierOvertakesAnother:
    def test_an_earlier_one_that_is_being_aligned_goes_first(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        protocol.on(tail(0, ONE))
        protocol.on(head(0, ONE))
        protocol.on(tail(1, ONE))
        actions = protocol.on(tail(1, timed_out(2)))
        assert [a for a in actions if isinstance(a, p.Snapshot | p.Overtake | p.UnblockAll)] == [
            p.Snapshot(timed_out(1)),
            p.Overtake(timed_out(1)),
            p.UnblockAll(),
            p.Snapshot(timed_out(2)),
            p.Overtake(timed_out(2)),
        ]
        assert p.Capture(1, 0) not in actions and p.Capture(2, 0) in actions

    def test_an_earlier_one_that_waits_in_an_output_goes_first(self) -> None:
        protocol = ExactlyOnceBarriers(1)
        protocol.on(tail(0, ONE))
        protocol.on(head(0, ONE))
        actions = protocol.on(tail(0, timed_out(2)))
        assert [a for a in actions if isinstance(a, p.Overtake)] == [p.Overtake(timed_out(1)), p.Overtake(timed_out(2))]

    def test_the_timer_of_a_later_one_takes_an_earlier_one_along(self) -> None:
        protocol = ExactlyOnceBarriers(1)
        protocol.on(tail(0, ONE))
        protocol.on(tail(0, TWO))
        actions = protocol.on(p.AlignmentTimedOut(2))
        snapshots = [action.barrier.checkpoint for action in actions if isinstance(action, p.Snapshot)]
        assert snapshots == [1, 2]

    def test_an_earlier_one_that_may_not_overtake_was_given_up(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        protocol.on(tail(0, savepoint(1)))
        assert protocol.on(head(0, savepoint(1))) == [p.Block(0)]
        protocol.on(tail(1, savepoint(1)))
        decline, unblock, snapshot, *_ = protocol.on(tail(1, overtaking(2)))
        assert isinstance(decline, p.Decline) and decline.checkpoint == 1
        assert [unblock, snapshot] == [p.UnblockAll(), p.Snapshot(overtaking(2))]
        assert protocol.on(head(1, savepoint(1))) == []

    def test_a_savepoint_is_always_aligned(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        barrier = savepoint(1)
        assert protocol.on(tail(0, barrier)) == protocol.on(tail(1, barrier)) == []
        assert protocol.on(p.AlignmentTimedOut(1)) == []
        assert protocol.on(head(0, barrier)) == [p.Block(0)]
        assert protocol.on(head(1, barrier)) == [p.Block(1), p.Snapshot(barrier), p.Forward(barrier), p.UnblockAll()]


class TestRule5AbortsMayComeBeforeTheirBarrier:
    def test_one_that_is_known_to_come_begins_nothing(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        assert protocol.on(p.Aborted(1)) == protocol.on(coming(1, timed_out(1))) == []
        assert protocol.on(tail(1, timed_out(1))) == protocol.on(tail(0, ONE)) == []

    def test_its_late_barrier_starts_no_timer_and_blocks_nothing(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        assert protocol.on(p.Aborted(1)) == protocol.on(tail(0, ONE)) == protocol.on(head(0, ONE)) == []
        assert protocol.on(tail(1, timed_out(1))) == protocol.on(p.AlignmentTimedOut(1)) == []

    def test_an_abort_ends_the_alignment_and_its_timer_has_no_more_to_say(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        protocol.on(tail(0, ONE))
        protocol.on(head(0, ONE))
        assert protocol.on(p.Aborted(1)) == [p.UnblockAll()]
        assert protocol.on(p.AlignmentTimedOut(1)) == []
        assert protocol.on(tail(1, TWO)) == [p.StartTimer(TWO)]

    @pytest.mark.parametrize("barrier", [timed_out(1), plain(1)])
    def test_a_snapshot_is_discarded_once(self, barrier: Barrier) -> None:
        protocol = ExactlyOnceBarriers(1)
        protocol.on(tail(0, barrier))
        protocol.on(head(0, barrier))
        assert protocol.on(p.Aborted(1)) == [p.Discard(1)]
        assert protocol.on(p.BarrierLeft(1)) == protocol.on(p.AlignmentTimedOut(1)) == []

    def test_a_barrier_that_is_given_up_upstream_unblocks(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        protocol.on(tail(0, ONE))
        protocol.on(head(0, ONE))
        decline, unblock, start = protocol.on(tail(1, TWO))
        assert isinstance(decline, p.Decline) and decline.checkpoint == 1
        assert [unblock, start] == [p.UnblockAll(), p.StartTimer(TWO)]


class TestRule6EndOfData:
    def test_the_end_of_a_channel_completes_an_alignment_and_a_capture_at_once(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        protocol.on(tail(0, overtaking(1)))
        protocol.on(p.BarrierLeft(1))
        protocol.on(tail(0, savepoint(2)))
        assert protocol.on(head(0, savepoint(2))) == [p.Block(0)]
        snapshot = [p.Snapshot(savepoint(2)), p.Forward(savepoint(2)), p.UnblockAll()]
        assert protocol.on(p.ChannelEnded(1)) == [p.Acknowledge(1), *snapshot]

    def test_what_an_ended_channel_gives_late_changes_nothing(self) -> None:
        protocol = ExactlyOnceBarriers(2)
        protocol.on(p.ChannelEnded(1))
        protocol.on(tail(0, ONE))
        assert p.Snapshot(ONE) in protocol.on(head(0, ONE))
        assert protocol.on(tail(1, timed_out(1))) == protocol.on(head(1, timed_out(1))) == []
