"""Routing: every record once, order per channel, keys to their owners, barriers behind records, rooms of any size."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.actors.mailbox import Mailbox
from streamactors.checkpoint.manifest import EdgeKey, InFlightEdge
from streamactors.elements import END, Barrier, Batch, Element, TimeMark
from streamactors.errors import RecordFailed
from streamactors.graph.logical import Broadcast, Forward, Keyed, Partitioning, Rebalance
from streamactors.runtime.channel import MailboxChannel
from streamactors.runtime.inflight import Route
from streamactors.runtime.routing import Output, Outputs, concatenate, router
from streamactors.state.key_groups import key_group, subtask_of

GROUPS = 16
PARTITIONINGS: list[Partitioning] = [Forward(), Rebalance(), Broadcast(), Keyed(lambda value: value % 7)]


def outputs_to(partitioning: Partitioning, mailboxes: list[Mailbox[Element]], wake: Callable[[], None]) -> Outputs:
    channels = [MailboxChannel(mailbox, 0) for mailbox in mailboxes]
    return Outputs([Output(router(partitioning, "up", len(channels), GROUPS), channels)], wake)


def overtakable(receivers: int, capacity: int) -> tuple[Outputs, list[Mailbox[Element]]]:
    """Round-robin, in a job whose barriers may overtake."""
    mailboxes: list[Mailbox[Element]] = [Mailbox(1, capacity) for _ in range(receivers)]
    edge = InFlightEdge(EdgeKey("up", "down"), "rebalance")
    routes = [Route(edge, 0, receiver) for receiver in range(receivers)]
    channels = [MailboxChannel(mailbox, 0) for mailbox in mailboxes]
    return Outputs([Output(router(Rebalance(), "up", receivers, GROUPS), channels, routes)], lambda: None), mailboxes


def values_of(element: Batch | TimeMark) -> list[Any]:
    assert isinstance(element, Batch)
    return list(element.values)


def taken_from(mailbox: Mailbox[Element]) -> list[Any]:
    """Values, and barriers by their number."""
    seen: list[Any] = []
    while (taken := mailbox.take()) is not None:
        element = taken[1]
        seen += element.values if isinstance(element, Batch) else [f"barrier {getattr(element, 'checkpoint', 'end')}"]
    return seen


def test_an_overtaking_barrier_goes_ahead_of_what_is_unsent_and_captures_it_once() -> None:
    outputs, mailboxes = overtakable(2, capacity=2)
    outputs._outputs[0].stage(Batch(list(range(10))))
    outputs.seal()
    assert not outputs.flush()
    captured: list[tuple[int, list[int]]] = []
    outputs.overtake(Barrier(1), lambda route, batch: captured.append((route.receiver, values_of(batch))))
    assert captured == [(0, [4, 6, 8]), (1, [5, 7, 9])]
    assert outputs.departed == [1]
    assert taken_from(mailboxes[0]) == [0, 2, "barrier 1"]
    outputs.flush()
    assert taken_from(mailboxes[0]) == [4, 6]


def test_an_aligned_barrier_that_waits_goes_ahead_and_captures_only_what_it_waits_behind() -> None:
    outputs, mailboxes = overtakable(1, capacity=2)
    outputs._outputs[0].stage(Batch([0, 1, 2, 3]))
    outputs.forward(Barrier(1))
    outputs._outputs[0].stage(Batch([4, 5]))
    outputs.seal()
    outputs.flush()
    captured: list[list[int]] = []
    outputs.overtake(Barrier(1), lambda route, batch: captured.append(values_of(batch)))
    assert captured == [[2, 3]]
    assert taken_from(mailboxes[0]) == [0, 1, "barrier 1"]


def test_no_barrier_overtakes_an_earlier_one() -> None:
    outputs, mailboxes = overtakable(1, capacity=1)
    outputs._outputs[0].stage(Batch([0, 1]))
    outputs.forward(Barrier(1))
    outputs._outputs[0].stage(Batch([2]))
    captured: list[list[int]] = []
    outputs.overtake(Barrier(2), lambda route, batch: captured.append(values_of(batch)))
    assert captured == [[2]] and outputs.departed == []
    seen = []
    while not outputs.flush() or mailboxes[0].queued:
        seen += taken_from(mailboxes[0])
    assert seen + taken_from(mailboxes[0]) == [0, 1, "barrier 1", "barrier 2", 2]


@pytest.mark.parametrize("receivers", [0, 1, 2])
def test_a_barrier_that_has_left_everywhere_is_not_sent_again(receivers: int) -> None:
    """Its time-out may come just when it has gone."""
    outputs, mailboxes = overtakable(receivers, capacity=4) if receivers else (Outputs([], lambda: None), [])
    outputs.forward(Barrier(1))
    outputs.flush()
    if receivers:
        outputs._outputs[0].stage(Batch([1, 2]))
    captured: list[Batch | TimeMark] = []
    outputs.overtake(Barrier(1), lambda route, batch: captured.append(batch))
    assert captured == [] and outputs.departed == [1]
    assert all(taken_from(mailbox) == ["barrier 1"] for mailbox in mailboxes)


def test_the_barrier_of_a_checkpoint_that_was_given_up_is_dropped() -> None:
    outputs, mailboxes = overtakable(1, capacity=1)
    outputs._outputs[0].stage(Batch([0, 1]))
    outputs.forward(Barrier(1))
    outputs.flush()
    outputs.drop(1)
    outputs.overtake(Barrier(1), lambda route, batch: pytest.fail("captured"))
    seen = taken_from(mailboxes[0])
    outputs.flush()
    assert seen + taken_from(mailboxes[0]) == [0, 1] and outputs.departed == []


@given(
    partitioning=st.sampled_from(PARTITIONINGS),
    receivers=st.integers(1, 4),
    capacity=st.integers(1, 9),
    batches=st.lists(st.integers(1, 30), max_size=8),
    barriers=st.sets(st.integers(0, 7)),
    order=st.lists(st.integers(0, 99), max_size=200),
)
def test_everything_arrives_once_and_in_order(
    partitioning: Partitioning, receivers: int, capacity: int, batches: list[int], barriers: set[int], order: list[int]
) -> None:
    if isinstance(partitioning, Forward):
        receivers = 1
    mailboxes: list[Mailbox[Element]] = [Mailbox(1, capacity) for _ in range(receivers)]
    outputs = outputs_to(partitioning, mailboxes, lambda: None)
    sent, ahead = 0, {}
    for number, size in enumerate(batches):
        outputs._outputs[0].stage(Batch(list(range(sent, sent + size))))
        sent += size
        if number in barriers:
            outputs.forward(Barrier(number + 1))
            ahead[number + 1] = sent
    outputs.broadcast(END)
    got: list[list[Element]] = [[] for _ in range(receivers)]
    for choice in [*order, *list(range(receivers)) * (2 * sent + 50)]:
        outputs.flush()
        taken = mailboxes[choice % receivers].take()
        if taken is not None:
            got[choice % receivers].append(taken[1])
    assert outputs.flush() and outputs.unsent == 0
    assert outputs.departed == sorted(ahead)
    for index, elements in enumerate(got):
        check_channel(partitioning, index, receivers, elements, sent, ahead)
    values = sorted(value for elements in got for e in elements if isinstance(e, Batch) for value in e.values)
    copies = receivers if isinstance(partitioning, Broadcast) else 1
    assert values == sorted(list(range(sent)) * copies)


def check_channel(
    partitioning: Partitioning, index: int, receivers: int, elements: list[Element], sent: int, ahead: dict[int, int]
) -> None:
    assert elements[-1] is END
    seen: list[int] = []
    passed: list[int] = []
    for element in elements:
        if isinstance(element, Batch):
            seen += element.values
            if isinstance(partitioning, Keyed):
                assert list(element.keys or ()) == [value % 7 for value in element.values]
                assert element.groups is not None
                for key, group in zip(element.keys or (), element.groups, strict=True):
                    assert group == key_group(key, GROUPS) and subtask_of(group, receivers, GROUPS) == index
        elif isinstance(element, Barrier):
            passed.append(element.checkpoint)
            assert all(value < ahead[element.checkpoint] for value in seen)
            lost = ahead[element.checkpoint] - len(seen)
            assert not isinstance(partitioning, Forward | Broadcast) or not lost
    assert seen == sorted(seen) and passed == sorted(ahead)


def test_rebalance_deals_evenly_over_batches() -> None:
    rebalance = router(Rebalance(), "up", 3, GROUPS)
    counts = [0, 0, 0]
    for size in (1, 1, 1, 2, 2, 2, 4, 5):
        for channel, part in rebalance.route(Batch(list(range(size)))):
            counts[channel] += len(part)
    assert counts == [6, 6, 6]


def test_who_waits_for_room_is_woken() -> None:
    woken: list[bool] = []
    mailbox: Mailbox[Element] = Mailbox(1, 4)
    outputs = outputs_to(Forward(), [mailbox], lambda: woken.append(True))
    outputs._outputs[0].stage(Batch([1, 2, 3, 4, 5, 6, 7]))
    assert outputs.unsent == 7
    outputs.seal()
    assert not outputs.flush()
    assert (mailbox.queued, outputs.unsent) == (4, 3)
    mailbox.take()
    assert woken == [True]
    assert outputs.flush()


def test_a_failing_key_selector_names_the_step_and_the_record() -> None:
    keyed = router(Keyed(lambda value: 1 // value), "parse", 2, GROUPS)
    with pytest.raises(RecordFailed, match="operator 'parse' failed, record log:8: key_by: ZeroDivisionError"):
        list(keyed.route(Batch([1, 0, 2], origins=[7, 8, 9], split="log:")))


def test_without_receivers_a_barrier_has_left_at_once() -> None:
    outputs = Outputs([], lambda: None)
    outputs.forward(Barrier(1))
    assert outputs.departed == [1] and outputs.flush()


def test_a_barrier_has_left_once_every_channel_has_it() -> None:
    mailboxes: list[Mailbox[Element]] = [Mailbox(1, 1), Mailbox(1, 1)]
    outputs = outputs_to(Rebalance(), mailboxes, lambda: None)
    outputs._outputs[0].stage(Batch([1, 2, 3]))
    outputs.forward(Barrier(1))
    outputs.flush()
    assert outputs.departed == []
    mailboxes[0].take()
    outputs.flush()
    assert outputs.departed == [1]


def test_concatenated_batches_keep_their_columns() -> None:
    one = Batch([1, 2], [10, None], origins=[0, 1], split="a:")
    two = Batch([3], origins=[2], split="a:")
    joined = concatenate([one, two])
    assert (joined.values, joined.timestamps, joined.origins) == ([1, 2, 3], [10, None, None], [0, 1, 2])
    assert joined.origin(2) == "a:2"
    assert concatenate([one, Batch([3], origins=[2], split="b:")]).origin(0) is None


def test_key_groups_are_kept_where_a_union_mixes_records_with_and_without() -> None:
    """Staged together, all would lose them: after a rescale those of a key would go by old index in blocks, and later
    ones of that key by their group, to another subtask."""
    mailbox: Mailbox[Element] = Mailbox(1, 1)
    route = Route(InFlightEdge(EdgeKey("up", "down"), "forward"), 0, 0)
    output = Output(router(Forward(), "up", 1, 16), [MailboxChannel(mailbox, 0)], [route])
    output.stage(Batch(["a", "b"], groups=[3, 4]))
    output.stage(Batch(["x"]))
    captured: list[Batch | TimeMark] = []
    Outputs([output], lambda: None).overtake(Barrier(1), lambda route, batch: captured.append(batch))
    of = {value: batch.groups for batch in captured if isinstance(batch, Batch) for value in batch.values}
    assert of["a"] is not None
