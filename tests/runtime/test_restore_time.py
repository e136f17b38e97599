"""Where event time stands after a restore: for every key group where it stood, at any parallelism, and never ahead."""

import datetime as dt
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.checkpoint.manifest import (
    ChannelTime,
    EdgeKey,
    FrameRef,
    GroupTime,
    Manifest,
    NodeState,
    OperatorMeta,
    SubtaskState,
)
from streamactors.elements import IDLE, MIN_TIME, Watermark
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planner import plan
from streamactors.metrics import MetricGroup
from streamactors.runtime.chain import Chain, LinkSlot
from streamactors.runtime.event_time import InputTimes, Lanes, LaneStart, NodeTime
from streamactors.runtime.restore import plan_restore
from streamactors.runtime.restore_time import restored_time
from streamactors.state.key_groups import subtask_of
from streamactors.time.progress import EventTime

GROUPS = 16
times = st.lists(st.integers(0, 99), min_size=8, max_size=8)
widths = st.integers(1, 8)


class Last(sa.KeyedOperator[int, int, int]):
    last = sa.ValueState(int, default=0)

    def process(self, value: int, ctx: sa.Context[int, int]) -> None:
        self.last.set(value)


class Pass(sa.Operator[int, int]):
    def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        ctx.emit(value)


def planned(parallelism: int, *, sources: int = 1) -> PhysicalPlan:
    flow = sa.Dataflow("times")
    watermarks = sa.Watermarks.bounded(lambda v: v, dt.timedelta(0))
    numbers = flow.source("in", ListSource([1]), watermarks=watermarks, parallelism=sources).rebalance()
    numbers.process("pass", Pass).key_by(lambda v: v).process("last", Last).sink("out", ListSink[int]())
    return plan(flow.graph(), parallelism=parallelism, max_parallelism=GROUPS, checkpointing=True)


def event_times(plan: PhysicalPlan, restored: dict[int, NodeTime], uid: str) -> dict[int, EventTime]:
    vertex, _ = plan.node[uid]
    found = {}
    for index, time in restored.items():
        groups = vertex.key_groups(index)
        found[index] = EventTime(time.current, groups=range(groups.start, groups.stop), ahead=time.ahead)
    return found


def stored(plan: PhysicalPlan, nodes: dict[str, dict[int, EventTime]]) -> Manifest:
    subtasks = [
        SubtaskState(uid, index, (NodeState(uid, watermark=time.stored, ahead=ahead),))
        for uid, times in nodes.items()
        for index, time in times.items()
        for ahead in [tuple(GroupTime(*part) for part in time.ahead)]
    ]
    operators = tuple(
        OperatorMeta(uid, node.kind, vertex.parallelism, vertex.max_parallelism, node.named)
        for uid, (vertex, node) in plan.node.items()
    )
    return Manifest(
        flow="times", run=1, attempt=1, checkpoint=1, time_ms=0, operators=operators, subtasks=tuple(subtasks)
    )


@given(times, st.lists(widths, min_size=2, max_size=5))
@example(list(range(8)), [3, 2, 2, 4])
def test_every_key_group_stands_where_it_stood_over_any_rescales(drawn: list[int], steps: list[int]) -> None:
    plans = [planned(width) for width in steps]
    told = {index: EventTime(drawn[index]) for index in range(steps[0])}
    where = {group: drawn[subtask_of(group, steps[0], GROUPS)] for group in range(GROUPS)}
    for before, after in pairwise(plans):
        manifest = stored(before, {"last": told})
        vertex = after.node["last"][0]
        told = event_times(
            after, {i: restored_time(manifest, after, "last", i) for i in range(vertex.parallelism)}, "last"
        )
        for group in range(GROUPS):
            owner = told[subtask_of(group, vertex.parallelism, GROUPS)]
            assert owner.at(group) == where[group]
            assert owner.current <= where[group], "a subtask is never ahead of one of its key groups"


@given(times, widths, widths)
def test_without_keys_it_is_the_least_of_all_but_where_nothing_has_moved(
    drawn: list[int], before: int, after: int
) -> None:
    manifest = stored(planned(before), {"pass": {index: EventTime(drawn[index]) for index in range(before)}})
    now = planned(after)
    found = [restored_time(manifest, now, "pass", index).current for index in range(after)]
    assert found == (drawn[:before] if before == after else [min(drawn[:before])] * after)


def test_the_restored_node_knows_it() -> None:
    manifest = stored(planned(2), {"last": {0: EventTime(5), 1: EventTime(7)}})
    restores = plan_restore(manifest, planned(1))
    [restore] = [restore for (_, uid), restore in restores.items() if uid == "last"]
    assert restore.time.current == 5 and set(restore.time.lanes) == {0, 1}


EDGE = EdgeKey("pass", "last")


def test_lanes_merge_what_lay_with_each_old_subtask() -> None:
    def channels(*told: int) -> tuple[ChannelTime, ...]:
        return tuple(ChannelTime(EDGE, sender, time) for sender, time in enumerate(told))

    starts = {0: LaneStart(channels(5, 9), (0, 7)), 1: LaneStart(channels(MIN_TIME, 3), (8, 11))}
    lanes = Lanes({"last": NodeTime(lanes=starts)})

    def take(sender: int, receiver: int, mark: Watermark) -> list[object]:
        ref = FrameRef(0, sender, receiver, False, None, 0, 0, 1)
        return list(lanes.take(EDGE, ref, mark))

    assert take(0, 0, Watermark(7)) == [Watermark(7, True, (0, 7))]
    assert take(1, 0, Watermark(20)) == []
    assert take(1, 1, Watermark(20)) == [], "the other sender has told nothing yet"
    assert take(0, 1, Watermark(6)) == [Watermark(6, True, (8, 11))]
    assert take(0, 0, Watermark(8, True)) == [Watermark(8, True, (0, 7))]
    assert take(0, 0, Watermark(8, True, (4, 15))) == [Watermark(8, True, (4, 7))]
    assert take(0, 2, Watermark(50)) == []


def test_channels_that_are_what_they_were_go_on() -> None:
    start = LaneStart((ChannelTime(EDGE, 0, 5), ChannelTime(EDGE, 1, 9, idle=True)))
    lanes = Lanes({"last": NodeTime(lanes={3: start}, kept=frozenset({EDGE}))})
    ref = FrameRef(0, 0, 3, False, None, 0, 0, 1)
    assert list(lanes.take(EDGE, ref, Watermark(7))) == [Watermark(7, True)]
    inputs = InputTimes([(EDGE, 0), (EDGE, 1), (EdgeKey("new", "last"), 0)])
    inputs.restore(lanes.told("last", 3))
    found = [(channel.watermark, channel.idle) for channel in inputs.snapshot()]
    assert found == [(7, False), (9, True), (MIN_TIME, False)]
    assert [*inputs.took(2, IDLE), *inputs.took(0, Watermark(8))][-1] == Watermark(8, True)
    assert Lanes({"last": NodeTime(lanes={3: start})}).told("last", 3) == {}


async def test_an_idle_link_tells_so_again_unless_what_is_in_flight_may_end_it() -> None:
    for in_flight in (False, True):
        chain = Chain(float)
        times = [EventTime(9, idle=True), EventTime(9)]
        for time in times:
            chain.add(LinkSlot(None, [], {}, MetricGroup(), time=time))
        if in_flight:
            chain.push_backlog(0, None, Watermark(10, merged=True))
        chain.restate()
        while chain.busy:
            await chain.step()
        assert [(time.current, time.idle) for time in times] == [(9 + in_flight, not in_flight)] * 2
