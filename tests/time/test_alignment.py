"""Who waits for whom in reading, as pure objects: readers of any speed, in any order, never get too far apart, and none
waits for ever."""

import datetime as dt
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

import streamactors as sa
from streamactors.time.alignment import Aligned, AlignmentGroup, AlignmentGroups
from streamactors.time.watermarks import SplitWatermarks

ALIGN = 100


def test_who_is_slowest_and_who_is_woken() -> None:
    woken: list[str] = []
    group = AlignmentGroup()
    slow, fast = group.join(lambda: woken.append("slow")), group.join(lambda: woken.append("fast"))
    assert slow.tell(None) is None and fast.tell(500) == 500 and slow.tell(10) == 10
    fast.wait(400)
    assert slow.tell(399) == 399 and woken == []
    assert slow.tell(400) == 400 and woken == ["fast"]
    assert slow.tell(401) == 401 and woken == ["fast"], "once"
    fast.wait(450)
    slow.leave()
    assert group.slowest == 500 and woken == ["fast", "fast"]
    slow.leave()


def test_nobody_waits_for_who_is_idle() -> None:
    woken: list[str] = []
    group = AlignmentGroup()
    idle, fast = group.join(lambda: None), group.join(lambda: woken.append("fast"))
    idle.tell(0)
    fast.tell(500)
    fast.wait(400)
    assert idle.tell(None) == 500 and woken == ["fast"]


def test_groups_by_name() -> None:
    groups = AlignmentGroups()
    assert groups["a"] is groups["a"] and groups["a"] is not groups["b"]


class Reading:
    """A subtask that reads its splits by turns, as the runtime does."""

    def __init__(self, group: AlignmentGroup, splits: list[list[int]]) -> None:
        self.left = {str(number): list(records) for number, records in enumerate(splits)}
        watermarks: sa.Watermarks[int] = sa.Watermarks.bounded(
            lambda record: record, dt.timedelta(0), align=dt.timedelta(milliseconds=ALIGN)
        )
        self.time: SplitWatermarks = watermarks.of_splits()
        self.time.opened(self.left)
        self.member: Aligned = group.join(self.wake)
        self.waiting: frozenset[str] = frozenset()
        self.awake = True
        self.told: dict[str, int] = {}

    def wake(self) -> None:
        self.awake = True

    @property
    def done(self) -> bool:
        return not any(self.left.values())

    def step(self, choice: int) -> None:
        """Reads a record, of a split that does not wait; sleeps if there is none."""
        readable = [name for name, records in self.left.items() if records and name not in self.waiting]
        if readable:
            name = readable[choice % len(readable)]
            record = self.left[name].pop(0)
            self.time.before(name, 0.0)
            self.time.after(name, [record])
            self.told[name] = max(self.told.get(name, record), record)
            if not self.left[name]:
                self.time.ended(name)
                del self.told[name]
        if self.done:
            self.member.leave()
            return
        self.waiting = self.time.too_far_ahead(self.member.tell(self.time.slowest()))
        self.member.wait(self.time.resumes_at())
        if all(name in self.waiting for name, records in self.left.items() if records):
            self.awake = False


RECORDS = st.lists(st.integers(0, 60), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(RECORDS, min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=60),
)
def test_nobody_gets_too_far_ahead_and_all_is_read(subtasks: list[list[list[int]]], turns: Any) -> None:
    group = AlignmentGroup()
    steps = [[[0, *(sum(gaps[: at + 1]) for at in range(len(gaps)))] for gaps in splits] for splits in subtasks]
    readers = [Reading(group, splits) for splits in steps]
    waited = False
    for reader in readers:  # all begin: who has given nothing yet is not waited for
        for split in range(len(reader.left)):
            reader.step(split)
    for turn in range(2000):
        at, choice = turns[turn] if turn < len(turns) else (turn, turn // 7)
        lively = [reader for reader in readers if reader.awake and not reader.done]
        if not lively:
            break
        reader = lively[at % len(lively)]
        before = {split for split in reader.waiting if reader.left[split]}
        sizes = {split: len(reader.left[split]) for split in before}
        reader.step(choice)
        assert all(len(reader.left[split]) == sizes[split] for split in before), "one that waits was read"
        waited = waited or any(reader.waiting for reader in readers)
        begun = [time for each in readers for time in each.told.values()]
        if begun and reader.told:
            assert max(reader.told.values()) - min(begun) <= ALIGN + 60
    event(f"waited: {waited}")
    assert all(reader.done for reader in readers), "somebody waits for ever"
