"""Merging watermarks: never backwards, never ahead of an input that counts; and a step whose key groups differ."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streamactors.elements import IDLE, MAX_TIME, MIN_TIME, TimeMark, Watermark
from streamactors.time.progress import EventTime, InputTime, WatermarkMerge

INPUTS = 3
step = st.tuples(st.integers(0, INPUTS - 1), st.sampled_from(["advance", "idle", "end"]), st.integers(0, 9))


def apply(merge: WatermarkMerge[int], given: tuple[int, str, int]) -> list[TimeMark]:
    index, what, time = given
    if what == "advance":
        return list(merge.advanced(index, time))
    return list(merge.idled(index) if what == "idle" else merge.ended(index))


class Oracle:
    """The rules, said once more: over all that was ever told."""

    def __init__(self) -> None:
        self.times = [MIN_TIME] * INPUTS
        self.counts = [True] * INPUTS
        self.ended = [False] * INPUTS
        self.current = MIN_TIME

    def apply(self, index: int, what: str, time: int) -> None:
        if what == "advance":
            self.times[index] = max(self.times[index], time)
            self.counts[index], self.ended[index] = True, False
        else:
            self.counts[index] = False
            self.ended[index] = self.ended[index] or what == "end"
        active = [self.times[i] for i in range(INPUTS) if self.counts[i]]
        resting = [self.times[i] for i in range(INPUTS) if not self.counts[i] and not self.ended[i]]
        reached = min(active) if active else max(resting, default=MIN_TIME)
        self.current = max(self.current, reached)
        self.idle = not active


@given(st.lists(step, max_size=40))
def test_the_merge_is_the_least_of_those_that_count_and_never_goes_back(steps: list[tuple[int, str, int]]) -> None:
    merge = WatermarkMerge({index: InputTime() for index in range(INPUTS)})
    oracle, told, idle = Oracle(), MIN_TIME, False
    for one in steps:
        oracle.apply(*one)
        for mark in apply(merge, one):
            if isinstance(mark, Watermark):
                assert mark.time_ms > told or idle, "a watermark is news, or the way back from idle"
                assert mark.time_ms >= told
                told, idle = mark.time_ms, False
            else:
                assert not idle
                idle = True
        assert (told, idle) == (oracle.current, oracle.idle) == (merge.current, merge.idle)


@given(st.lists(step, max_size=30), st.lists(step, max_size=10))
def test_a_merge_goes_on_from_what_its_inputs_had_told(
    before: list[tuple[int, str, int]], after: list[tuple[int, str, int]]
) -> None:
    """Given with an `EventTime` behind it, which knows how far it had come."""
    one = WatermarkMerge({index: InputTime() for index in range(INPUTS)})
    for given_step in before:
        apply(one, given_step)
    told = {index: InputTime(t.watermark, idle=t.idle, ended=t.ended) for index, t in one.inputs.items()}
    other, time = WatermarkMerge(told), EventTime(one.current, idle=one.idle)
    assert other.current <= one.current and other.idle == one.idle
    for given_step in after:
        for mark in apply(other, given_step):
            time.on(mark)
        apply(one, given_step)
        assert (time.current, time.idle) == (one.current, one.idle)


@given(st.permutations(list(range(INPUTS))), st.lists(st.integers(0, 9), min_size=INPUTS, max_size=INPUTS))
def test_all_idle_gives_the_same_in_any_order(order: list[int], times: list[int]) -> None:
    merge = WatermarkMerge({index: InputTime(time) for index, time in enumerate(times)})
    marks = [mark for index in order for mark in merge.idled(index)]
    assert merge.current == max(times) and marks[-1] == IDLE


def test_an_input_that_comes_back_late_counts_again() -> None:
    merge = WatermarkMerge({0: InputTime(5), 1: InputTime(5)})
    assert merge.idled(0) == []
    assert merge.advanced(1, 9) == [Watermark(9)]
    assert merge.advanced(0, 6) == [] and merge.advanced(1, 12) == []
    assert merge.advanced(0, 11) == [Watermark(11)]


GROUPS = range(4, 12)
mark = st.one_of(
    st.integers(0, 30).map(Watermark),
    st.tuples(st.integers(4, 11), st.integers(0, 7), st.integers(0, 30)).map(
        lambda drawn: Watermark(drawn[2], True, (drawn[0], min(11, drawn[0] + drawn[1])))
    ),
)


@given(st.lists(mark, max_size=25), st.integers(0, 25))
def test_key_groups_ahead_of_their_subtask_stay_so_over_snapshots(marks: list[Watermark], cut: int) -> None:
    time = EventTime(groups=GROUPS)
    model: dict[int, int] = dict.fromkeys(GROUPS, MIN_TIME)
    for number, one in enumerate(marks):
        if number == cut:
            time = EventTime(time.stored, groups=GROUPS, ahead=time.ahead)
        first, last = one.groups or (GROUPS[0], GROUPS[-1])
        model |= {group: max(model[group], one.time_ms) for group in range(first, last + 1)}
        before = time.current
        news = time.on(one)
        assert {group: time.at(group) for group in GROUPS} == model
        assert time.current == min(model.values())
        assert news == (Watermark(time.current) if time.current > before else None)


def test_the_end_of_event_time_is_not_stored() -> None:
    time = EventTime(groups=GROUPS)
    time.on(Watermark(7))
    time.on(Watermark(9, True, (4, 5)))
    assert time.on(Watermark(MAX_TIME)) == Watermark(MAX_TIME)
    assert (time.current, time.at(4), time.stored, time.ahead) == (MAX_TIME, MAX_TIME, 7, ((4, 5, 9),))


def test_idleness_is_passed_on_once_and_a_watermark_ends_it() -> None:
    time = EventTime(5)
    results: list[Any] = [time.on(IDLE), time.on(IDLE), time.on(Watermark(5)), time.on(Watermark(5))]
    assert results == [IDLE, None, Watermark(5), None]
