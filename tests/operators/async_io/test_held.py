"""What an async link holds: every order of ends and marks, against plain models."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamactors.elements import IDLE, Batch, EndOfKeys, Idle, Watermark
from streamactors.operators.async_io.held import (
    CallQueue,
    Held,
    Intake,
    Mark,
    OrderedQueue,
    UnorderedQueue,
    gather,
    originals,
)
from streamactors.state.serialisation.serializers import AnySerializer

QUEUES: dict[str, type[CallQueue]] = {"ordered": OrderedQueue, "unordered": UnorderedQueue}


def held(value: Any) -> Held:
    return Held(Intake(Batch([value]), "route", None), 0)


def taken(queue: CallQueue) -> list[Any]:
    """All that may go on: values and marks."""
    out: list[Any] = []
    while queue.ready:
        part = queue.take(2)
        assert part is not None and (not isinstance(part, list) or 1 <= len(part) <= 2)
        out += [one.value for one in part] if isinstance(part, list) else [part]
    assert queue.take() is None
    return out


KINDS = ["add", "take", "watermark", IDLE, EndOfKeys(0, 3)]
STEPS = st.lists(st.one_of(st.sampled_from(KINDS), st.integers(0, 20)), max_size=60)


@pytest.mark.parametrize("kind", QUEUES)
@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_nothing_is_lost_doubled_or_passes_a_mark(kind: str, steps: list[Any]) -> None:
    queue = QUEUES[kind]()
    line: list[Any] = []  # all that was put in: numbers and marks
    running: list[Held] = []
    out: list[Any] = []
    for step in [*steps, *range(60), "take"]:
        if step == "add":
            running.append(held(len(line)))
            line.append(len(line))
            queue.add(running[-1])
        elif step == "take":
            out += taken(queue)
        elif isinstance(step, int):
            if running:
                queue.finished(running.pop(step % len(running)))
        else:
            line.append(Watermark(len(line)) if step == "watermark" else step)
            queue.mark(line[-1], "route")
        numbers = [one.value for one in queue.elements() if isinstance(one, Held)]
        assert len(queue) == len(numbers) and numbers == sorted(numbers)
        assert sorted([*(one for one in out if isinstance(one, int)), *numbers]) == [
            one for one in line if isinstance(one, int)
        ]
    assert queue.empty
    assert _between_marks(out, kind) == _between_marks(line, kind)


def _between_marks(line: list[Any], kind: str) -> list[Any]:
    """Watermarks right behind one another, or behind idleness, said as their last one; the records between two marks in
    any order, where there is none."""
    out: list[Any] = []
    for one in line:
        while isinstance(one, Watermark) and out and isinstance(out[-1], Watermark | Idle):
            out.pop()
        if isinstance(one, int) and kind == "unordered" and out and isinstance(out[-1], set):
            out[-1].add(one)
        else:
            out.append({one} if isinstance(one, int) and kind == "unordered" else one)
    return out


@pytest.mark.parametrize("kind", QUEUES)
def test_watermarks_never_pile_up(kind: str) -> None:
    queue = QUEUES[kind]()
    queue.add(held("slow"))
    for time in range(10_000):
        queue.mark(Watermark(time), "route")
    assert len(list(queue.elements())) == 2
    queue.mark(Watermark(10_000, groups=(0, 1)), "route")  # of some key groups alone: not the same
    assert len(list(queue.elements())) == 3


@pytest.mark.parametrize("kind", QUEUES)
def test_idleness_that_is_over_is_not_told_and_does_not_pile_up(kind: str) -> None:
    """Told now, others would go on at once without the records that are held."""
    queue, records = QUEUES[kind](), [held("slow"), held("next")]
    queue.add(records[0])
    for time in range(1000):
        queue.mark(Watermark(time), "route")
        queue.mark(IDLE, "route")
    assert len(list(queue.elements())) == 3
    queue.mark(Watermark(1000), "route")
    queue.add(records[1])
    for one in records:
        queue.finished(one)
    assert taken(queue) == ["slow", Watermark(1000), "next"]


def test_unordered_results_come_as_they_end_and_ordered_ones_in_the_order_of_the_input() -> None:
    for queue, wanted in ((UnorderedQueue(), [2, 0, 1]), (OrderedQueue(), [0, 1, 2])):
        records = [held(value) for value in range(3)]
        for one in records:
            queue.add(one)
        out: list[Any] = []
        for place in (2, 0, 1):
            queue.finished(records[place])
            out += taken(queue)
        assert out == wanted


def test_what_a_mark_sets_off_goes_ahead_of_it() -> None:
    queue = UnorderedQueue()
    first, timer = held("first"), held("timer")
    queue.add(first)
    queue.mark(Watermark(5), "route")
    queue.finished(first)
    assert queue.take() == [first] and queue.next_mark() == Watermark(5)
    queue.add_first(timer)
    assert queue.next_mark() is None and not queue.ready
    queue.finished(timer)
    assert taken(queue) == ["timer", Watermark(5)]


# ---------------------------------------------------------------------------------------------- encoded before seen
def test_what_user_code_changes_is_stored_as_it_came() -> None:
    batch = Batch([{"n": [1]}, {"n": [2]}, {"n": [3]}], [10, 20, 30], None, None, [7, 8, 9], "s@")
    intake = Intake(batch, "route", AnySerializer())
    for value in batch.values:
        value["n"].append("changed")
    elements: list[Held | tuple[Mark, object]] = [Held(intake, 0), Held(intake, 2), (Watermark(1), "other")]
    (route, stored), mark = originals(elements)
    assert isinstance(stored, Batch) and route == "route" and mark == ("other", Watermark(1))
    assert list(stored.values) == [{"n": [1]}, {"n": [3]}]
    assert (stored.timestamps, stored.origins) == ([10, 30], [7, 9])


def test_large_inputs_are_stored_in_small_frames_and_decoded_when_these_are_written() -> None:
    decoded: list[int] = []

    class Keep(AnySerializer):
        def decode_many(self, data: bytes) -> list[Any]:
            decoded.append(len(data))
            return super().decode_many(data)

    intakes = [Intake(Batch([["x" * 100_000]] * 2), "route", Keep()) for _ in range(6)]
    assert {intake.fitting for intake in intakes} == {2}
    stored = [batch for _, batch in originals([Held(intake, index) for intake in intakes for index in (0, 1)])]
    assert [len(batch) for batch in stored if isinstance(batch, Batch)] == [4, 4, 4] and not decoded
    assert isinstance(stored[0], Batch) and len(list(stored[0].values)) == 4
    assert len(decoded) == 2 and max(decoded) < 210_000
    plain = [Held(Intake(Batch(["x" * 300_000]), "route", AnySerializer()), 0) for _ in range(3)]
    assert len(list(originals(plain))) == 3


def test_results_of_one_lot_keep_the_columns_of_their_records() -> None:
    one = Intake(Batch(["a", "b"], [1, 2], None, [5, 6], [10, 11], "s@", ("src", "s")), "route", None)
    two = Intake(Batch(["c"], [3], None, [7], [12], "s@", ("src", "s")), "route", None)
    assert one.lot == two.lot
    batch = gather([Held(one, 1), Held(two, 0)], ["B", "C"])
    assert (batch.values, batch.timestamps, batch.groups, batch.origins) == (["B", "C"], [2, 3], [6, 7], [11, 12])
    assert batch.split == "s@" and batch.home == ("src", "s") and batch.keys is None
    other = Intake(Batch(["d"], [4], None, [7], [12], "t@", ("src", "t")), "route", None)
    assert other.lot != one.lot


@given(st.lists(st.one_of(st.integers(1, 40), st.just("mark"), st.just("other route")), max_size=12))
@settings(max_examples=60, deadline=None)
def test_what_is_stored_is_what_is_held_in_its_order_with_its_routes(shape: list[Any]) -> None:
    elements: list[Held | tuple[Mark, object]] = []
    wanted: list[Any] = []
    route, number = "a", 0
    for part in shape:
        if part == "mark":
            elements.append((Watermark(number), route))
            wanted.append((route, Watermark(number)))
        elif part == "other route":
            route = "b" if route == "a" else "a"
        else:
            intake = Intake(Batch([[number + place] for place in range(part)], [1] * part), route, AnySerializer())
            kept = [place for place in range(part) if (number + place) % 3]
            elements += [Held(intake, place) for place in kept]
            wanted += [(route, [number + place]) for place in kept]
            number += part
    found: list[Any] = []
    for came_by, element in originals(elements):
        found += [(came_by, value) for value in element.values] if isinstance(element, Batch) else [(came_by, element)]
    assert found == wanted
