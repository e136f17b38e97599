"""The unaligned protocol against a model that knows from the channels' scripts what each checkpoint must hold."""

from collections.abc import Callable

import pytest
from hypothesis import given

from streamactors.checkpoint import protocol as p
from streamactors.checkpoint.unaligned import UnalignedBarriers
from tests.checkpoint.barrier_scripts import CHOICES, any_scripts, small_scripts, with_aborts
from tests.checkpoint.subtask_model import END, Model, Script, Source, coming, exhaust, head, overtaking, run, tail

ONE, TWO = overtaking(1), overtaking(2)


@given(any_scripts([overtaking]), CHOICES)
def test_any_interleaving(channels: list[Script], choices: list[int]) -> None:
    protocol = UnalignedBarriers(len(channels))
    run(Model(protocol, scripts=channels, prompt=False, outputs=2, hand_room=2, unsent_room=3), choices)


@pytest.mark.parametrize(("channels", "abort"), with_aborts(small_scripts(overtaking, overtaking)))
def test_every_interleaving_of_small_scripts(channels: list[Script], abort: int) -> None:
    assert exhaust(Model(UnalignedBarriers(len(channels)), scripts=channels, unsent_room=1), abort=abort) > 300


def test_every_interleaving_of_two_outputs_and_two_in_hand() -> None:
    model = Model(UnalignedBarriers(1), scripts=[[0, 0, ONE, 0]], outputs=2, hand_room=2, prompt=False)
    assert exhaust(model) > 300


@given(any_scripts([overtaking]), CHOICES)
def test_any_interleaving_between_processes(channels: list[Script], choices: list[int]) -> None:
    protocol = UnalignedBarriers(len(channels))
    run(Model(protocol, scripts=channels, prompt=False, hand_room=2, unsent_room=3, remote=True), choices)


@pytest.mark.slow
@pytest.mark.parametrize("channels", small_scripts(overtaking, overtaking))
def test_every_interleaving_of_small_scripts_between_processes(channels: list[Script]) -> None:
    assert exhaust(Model(UnalignedBarriers(len(channels)), scripts=channels, unsent_room=1, remote=True)) > 100


@pytest.mark.parametrize("channels", [[[0, ONE, 0], [ONE]], [[0, TWO], [ONE, 0, TWO]]])
def test_every_interleaving_of_aborts_between_processes(channels: list[Script]) -> None:
    exhaust(Model(UnalignedBarriers(2), scripts=channels, outputs=0, remote=True), abort=1)


@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize("abort", [1, 2])
def test_every_interleaving_of_a_source(outputs: int, abort: int) -> None:
    source = Source(UnalignedBarriers(0), triggers=[ONE, TWO], records=3, outputs=outputs, prompt=False)
    assert exhaust(source, abort=abort) > 50


# ------------------------------------------------------------------------------------------------------------- directed
def test_the_first_announcement_snapshots_captures_and_overtakes() -> None:
    protocol = UnalignedBarriers(3)
    assert protocol.on(tail(1, ONE)) == [
        p.Snapshot(ONE),
        p.CaptureInHand(1),
        p.Capture(1, 0),
        p.Capture(1, 1),
        p.Capture(1, 2),
        p.Overtake(ONE),
    ]
    assert protocol.on(head(1, ONE)) == protocol.on(tail(0, ONE)) == []


def test_one_that_is_known_to_come_begins_and_counts_when_it_has_come() -> None:
    protocol = UnalignedBarriers(2)
    captures = [p.Capture(1, 0), p.Capture(1, 1)]
    assert protocol.on(coming(0, ONE)) == [p.Snapshot(ONE), p.CaptureInHand(1), *captures, p.Overtake(ONE)]
    assert protocol.on(p.BarrierLeft(1)) == protocol.on(coming(1, ONE)) == protocol.on(tail(1, ONE)) == []
    assert protocol.on(tail(0, ONE)) == [p.Acknowledge(1)]


def test_it_is_acknowledged_when_it_has_left_and_is_announced_everywhere() -> None:
    for last_is_left in (True, False):
        protocol = UnalignedBarriers(2)
        protocol.on(tail(0, ONE))
        events: list[p.Event] = [tail(1, ONE), p.BarrierLeft(1)]
        first, last = events if last_is_left else reversed(events)
        assert protocol.on(first) == []
        assert protocol.on(last) == [p.Acknowledge(1)]
        assert protocol.on(p.BarrierLeft(1)) == []


def test_a_source_overtakes_at_the_announcement_of_its_trigger() -> None:
    source = UnalignedBarriers(0)
    assert source.on(tail(0, ONE)) == [p.Snapshot(ONE), p.CaptureInHand(1), p.Overtake(ONE)]
    assert source.on(p.Triggered(ONE)) == []
    assert source.on(p.BarrierLeft(1)) == [p.Acknowledge(1)]


class TestRule4NoBarrierOvertakesAnother:
    def test_snapshots_are_taken_in_order_and_capture_side_by_side(self) -> None:
        protocol = UnalignedBarriers(2)
        protocol.on(tail(0, ONE))
        assert p.Overtake(TWO) in protocol.on(tail(0, TWO))
        assert protocol.on(p.BarrierLeft(1)) == protocol.on(p.BarrierLeft(2)) == []
        assert protocol.on(tail(1, ONE)) == [p.Acknowledge(1)]
        assert protocol.on(tail(1, TWO)) == [p.Acknowledge(2)]

    def test_a_later_barrier_on_a_channel_declines_the_earlier_that_did_not_come_on_it(self) -> None:
        protocol = UnalignedBarriers(2)
        protocol.on(tail(0, ONE))
        discard, decline, *rest = protocol.on(tail(1, TWO))
        assert discard == p.Discard(1) and isinstance(decline, p.Decline) and decline.checkpoint == 1
        assert rest[0] == p.Snapshot(TWO)
        assert protocol.on(p.BarrierLeft(1)) == []

    @pytest.mark.parametrize("told", [tail, coming])
    def test_so_does_a_later_one_that_came_before_it_and_was_aborted(self, told: Callable[..., p.Event]) -> None:
        protocol = UnalignedBarriers(2)
        assert protocol.on(p.Aborted(2)) == protocol.on(tail(0, TWO)) == []
        (decline,) = protocol.on(told(1, ONE))
        assert isinstance(decline, p.Decline) and decline.checkpoint == 1


class TestRule5AbortsMayComeBeforeTheirBarrier:
    def test_its_late_barrier_neither_snapshots_nor_captures(self) -> None:
        protocol = UnalignedBarriers(2)
        assert protocol.on(p.Aborted(1)) == protocol.on(tail(0, ONE)) == protocol.on(tail(1, ONE)) == []
        assert p.Snapshot(TWO) in protocol.on(tail(0, TWO))

    def test_nor_does_one_that_is_known_to_come(self) -> None:
        protocol = UnalignedBarriers(2)
        assert protocol.on(p.Aborted(1)) == protocol.on(coming(0, ONE)) == protocol.on(tail(0, ONE)) == []
        assert p.Snapshot(TWO) in protocol.on(coming(1, TWO))

    def test_an_abort_stops_the_capture_of_its_own_checkpoint_only(self) -> None:
        protocol = UnalignedBarriers(2)
        protocol.on(tail(0, ONE))
        protocol.on(tail(0, TWO))
        assert protocol.on(p.Aborted(1)) == [p.Discard(1)]
        assert protocol.on(p.BarrierLeft(1)) == protocol.on(tail(1, ONE)) == protocol.on(tail(1, TWO)) == []
        assert protocol.on(p.BarrierLeft(2)) == [p.Acknowledge(2)]

    def test_what_is_remembered_is_forgotten_when_it_can_not_come_any_more(self) -> None:
        protocol = UnalignedBarriers(2)
        for number in range(1, 50):
            protocol.on(p.Aborted(number))
            for channel in (0, 1):
                assert protocol.on(tail(channel, overtaking(number))) == []
                protocol.on(head(channel, overtaking(number)))
        assert not protocol._settled._given_up and not protocol._announced
        assert protocol.on(tail(0, overtaking(3))) == []


class TestRule6EndOfData:
    def test_an_ended_channel_counts_as_announced(self) -> None:
        protocol = UnalignedBarriers(2)
        protocol.on(tail(0, ONE))
        protocol.on(p.BarrierLeft(1))
        assert protocol.on(p.ChannelEnded(1)) == [p.Acknowledge(1)]
        assert p.Capture(2, 1) not in protocol.on(tail(0, TWO))
        assert protocol.on(p.BarrierLeft(2)) == [p.Acknowledge(2)]

    def test_barriers_pass_when_every_channel_has_ended(self) -> None:
        protocol = UnalignedBarriers(2)
        protocol.on(p.ChannelEnded(0))
        protocol.on(p.ChannelEnded(1))
        assert protocol.on(tail(1, ONE)) == [p.Snapshot(ONE), p.CaptureInHand(1), p.Overtake(ONE)]

    @pytest.mark.parametrize("ended", [[END, ONE, TWO], [0, END, ONE], [0, END, TWO], [0, END]])
    def test_every_interleaving(self, ended: Script) -> None:
        exhaust(Model(UnalignedBarriers(2), scripts=[ended, [0, ONE, TWO]], unsent_room=1), abort=1)
