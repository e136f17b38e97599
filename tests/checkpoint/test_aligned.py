"""The aligned protocol against a model that knows from the channels' scripts what each snapshot must hold."""

import copy
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.checkpoint import protocol as p
from streamactors.checkpoint.aligned import AlignedBarriers
from streamactors.elements import Barrier
from tests.checkpoint.subtask_model import END, Model, Script

Step = tuple[str, int]


@st.composite
def scripts(draw: st.DrawFn) -> list[Script]:
    """One to three channels with the same barriers in order, records between, an end of data anywhere (records don't
    follow it, barriers do), and barriers that an upstream subtask has dropped as aborted."""
    barriers = sorted(draw(st.sets(st.integers(1, 5), max_size=4)))
    channels = draw(st.integers(1, 3))
    return [draw(script(barriers)) for _ in range(channels)]


@st.composite
def script(draw: st.DrawFn, barriers: Sequence[int]) -> Script:
    elements: list[int | str] = []
    ended = False
    for barrier in [*barriers, None]:
        if not ended:
            elements += [0] * draw(st.integers(0, 2))
            if draw(st.integers(0, 5)) == 0:
                ended = True
                elements.append(END)
        if barrier is not None and draw(st.integers(0, 9)) > 0:
            elements.append(barrier)
    return elements


CHOICES = st.lists(st.integers(0, 999), max_size=60)


def run(model: Model, choices_made: list[int]) -> None:
    """Any interleaving of taking, aborting and leaving; what upstream dropped is aborted in the end."""
    open_barriers = {n for s in model.scripts for n in s if isinstance(n, int) and n}
    steps = iter(choices_made)
    while choices := model.choices():
        step, which = divmod(next(steps, 999), 100)
        if step == 0 and open_barriers:
            model.abort(sorted(open_barriers)[which % len(open_barriers)])
        elif step <= 2:
            model.leave()
        else:
            model.take(choices[which % len(choices)])
        if not model.choices():
            # The coordinator times out what is incomplete: then everything goes on.
            for number in sorted(open_barriers - model.everywhere() - model.aborted):
                model.abort(number)
    model.check_end()


@given(scripts(), CHOICES)
def test_any_interleaving(channels: list[Script], choices: list[int]) -> None:
    run(Model(AlignedBarriers(len(channels)), channels), choices)


SMALL: list[list[Script]] = [
    [[0, 1, 0], [0, 1, 0]],
    [[0, 1, 0, 2, 0], [1, 0, 0, 2]],
    [[0, END, 1], [0, 1, 0, END]],
    [[END, 1, 2], [0, 1, 0, 2]],
    [[0, END, 1], [0, END, 1]],
    [[1, 0], [0, 1], [0, END, 1]],
]


@pytest.mark.parametrize("channels", SMALL)
@pytest.mark.parametrize("aborted", [None, 1, 2])
def test_every_interleaving_of_small_scripts(channels: list[Script], aborted: int | None) -> None:
    ended = exhaust(Model(AlignedBarriers(len(channels)), channels), aborted)
    assert ended > 1


def exhaust(model: Model, to_abort: int | None) -> int:
    """Depth first through every order of steps; returns how many ends there were."""
    ends = 0
    if not model.choices():
        copied = copy.deepcopy(model)
        copied.check_end()
        ends += 1
    if to_abort is not None:
        ends += _after(model, lambda m: m.abort(to_abort), None)
    for channel in model.choices():
        ends += _after(model, lambda m, c=channel: m.take(c), to_abort)  # type: ignore[misc]
    return ends


def _after(model: Model, step: Callable[[Model], None], to_abort: int | None) -> int:
    copied = copy.deepcopy(model)
    step(copied)
    return exhaust(copied, to_abort)


# ------------------------------------------------------------------------------------------------------------- directed
def head(channel: int, checkpoint: int) -> p.BarrierAtHead:
    return p.BarrierAtHead(channel, Barrier(checkpoint))


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
    assert not aligned._aborted
