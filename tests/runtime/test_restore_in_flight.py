"""Planning the restore of in-flight records, read back through real frames: every record reaches exactly one subtask of
today's plan, in the order of its channel, or is refused by name."""

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamactors.checkpoint.manifest import EdgeKey
from streamactors.elements import Batch
from streamactors.errors import IncompatibleState
from streamactors.graph.logical import Broadcast, Forward, Keyed, Partitioning, Rebalance
from streamactors.graph.physical import PhysicalPlan, SubtaskId
from streamactors.graph.planner import plan
from streamactors.runtime.backlog import RestoredBatch
from streamactors.runtime.restore_in_flight import plan_backlogs
from streamactors.state.key_groups import key_group, subtask_of
from tests.graph.graphs import Graph
from tests.runtime.in_flight import GROUPS, Captured, Channel, grouped

pytestmark = pytest.mark.slow

Restored = dict[SubtaskId, list[RestoredBatch]]


class Record(NamedTuple):
    """The `number`th of its channel."""

    key: int
    sender: int
    receiver: int
    number: int


def key_of(record: Record) -> int:
    return record.key


def two_steps(
    partitioning: Partitioning, senders: int, receivers: int, *, chain: bool = True, groups: int = GROUPS
) -> PhysicalPlan:
    graph = Graph().add("up", "source", parallelism=senders)
    graph.add("down", "process", ("up", partitioning), parallelism=receivers, chain=chain)
    return plan(graph.build(), max_parallelism=groups)


def owner(record: Record, parallelism: int) -> int:
    return subtask_of(key_group(record.key, GROUPS), parallelism, GROUPS)


KEYED = Keyed(key_of)
KINDS: dict[str, Partitioning] = {
    "forward": Forward(),
    "rebalance": Rebalance(),
    "broadcast": Broadcast(),
    "keyed": KEYED,
}
widths = st.integers(1, 5)


@st.composite
def channels(draw: st.DrawFn, planned: PhysicalPlan, *, with_groups: bool = False) -> list[Channel]:
    """Of the edge from up to down; a broadcast's copies are told apart by their receiver."""
    down, _ = planned.node["down"]
    senders, receivers = planned.node["up"][0].parallelism, down.parallelism
    chained = len(down.nodes) > 1
    straight = chained or isinstance(planned.edges[0].partitioning, Forward)
    by_key = with_groups or (not chained and isinstance(planned.edges[0].partitioning, Keyed))
    found = []
    for sender in range(senders):
        for receiver in [sender] if straight else range(receivers):
            channel, number = Channel(sender, receiver), 0
            keys = [key for key in range(40) if subtask_of(key_group(key, GROUPS), receivers, GROUPS) == receiver]
            if by_key and not keys:
                continue
            for queue in [channel.queued] if chained else [channel.queued, channel.unsent]:
                for _ in range(draw(st.integers(0, 2))):
                    picks = draw(st.lists(st.sampled_from(keys if by_key else range(40)), min_size=1, max_size=5))
                    batch = [Record(key, sender, receiver, number + place) for place, key in enumerate(picks)]
                    number += len(batch)
                    queue.append(grouped(batch, key_of) if by_key else Batch(batch))
            found.append(channel)
    return found


def records(channels: list[Channel]) -> list[Record]:
    return [record for channel in channels for batch in channel.queued + channel.unsent for record in batch.values]


def received(found: Restored) -> dict[int, list[Record]]:
    return {
        subtask.index: [record for restored in batches for record in restored.batch.values]
        for subtask, batches in found.items()
    }


def check_order(found: dict[int, list[Record]]) -> None:
    for got in found.values():
        for channel in {record[1:3] for record in got}:
            numbers = [record.number for record in got if record[1:3] == channel]
            assert all(one < other for one, other in pairwise(numbers))


def check_each_once(found: dict[int, list[Record]], stored: list[Record]) -> None:
    assert Counter(record for got in found.values() for record in got) == Counter(stored)


# --------------------------------------------------------------------------------------------------------- every record
@given(st.data(), widths, widths, widths, widths)
def test_keyed(data: st.DataObject, senders: int, before: int, up: int, after: int) -> None:
    old, new = two_steps(KEYED, senders, before), two_steps(KEYED, up, after)
    stored = data.draw(channels(old))
    restored = asyncio.run(Captured(old).add("up", "down", stored).restored(new))
    found = received(restored)
    check_each_once(found, records(stored))
    check_order(found)
    assert all(owner(record, after) == index for index, got in found.items() for record in got)
    for batches in restored.values():
        for edge, batch in batches:
            assert edge.key == EdgeKey("up", "down")
            assert batch.keys == [record.key for record in batch.values]
            assert batch.groups == [key_group(record.key, GROUPS) for record in batch.values]


@given(st.data(), widths, widths, st.booleans(), st.booleans())
def test_forward_with_groups_chained_or_not(
    data: st.DataObject, before: int, after: int, then: bool, now: bool
) -> None:
    """After a keyed step of the same parallelism: records go where those of their key will pass from now on."""
    old, new = two_steps(Forward(), before, before, chain=then), two_steps(Forward(), after, after, chain=now)
    stored = data.draw(channels(old, with_groups=True))
    restored = asyncio.run(Captured(old).add("up", "down", stored).restored(new))
    found = received(restored)
    check_each_once(found, records(stored))
    check_order(found)
    assert all(owner(record, after) == index for index, got in found.items() for record in got)
    for subtask, batches in restored.items():
        assert subtask.vertex == ("up" if now else "down")
        for edge, batch in batches:
            assert edge.place == int(now)
            assert batch.groups == [key_group(record.key, GROUPS) for record in batch.values]
            assert batch.keys is None


@given(st.data(), widths, widths, st.booleans(), st.booleans())
def test_forward_without_groups_by_blocks(data: st.DataObject, before: int, after: int, then: bool, now: bool) -> None:
    old, new = two_steps(Forward(), before, before, chain=then), two_steps(Forward(), after, after, chain=now)
    stored = data.draw(channels(old))
    found = received(asyncio.run(Captured(old).add("up", "down", stored).restored(new)))
    check_each_once(found, records(stored))
    check_order(found)
    assert all(record.receiver * after // before == index for index, got in found.items() for record in got)


@given(st.data(), widths, widths, widths, widths, st.booleans(), st.booleans())
def test_rebalance_and_forward_that_the_parallelism_makes_one(
    data: st.DataObject, senders: int, before: int, up: int, after: int, then: bool, now: bool
) -> None:
    """`then`, `now`: the user's own rebalance, else a forward edge that is one where the parallelism differs."""
    old = two_steps(Rebalance() if then else Forward(), senders, before)
    new = two_steps(Rebalance() if now else Forward(), up, after)
    stored = data.draw(channels(old))
    found = received(asyncio.run(Captured(old).add("up", "down", stored).restored(new)))
    check_each_once(found, records(stored))
    check_order(found)
    if before == after:
        assert all(record.receiver == index for index, got in found.items() for record in got)
    elif then or now or senders != before or up != after:
        counts = [len(found.get(index, [])) for index in range(after)]
        assert max(counts) - min(counts) <= 1


@given(st.data(), widths, widths, widths, widths)
def test_broadcast(data: st.DataObject, senders: int, before: int, up: int, after: int) -> None:
    old, new = two_steps(Broadcast(), senders, before), two_steps(Broadcast(), up, after)
    stored = data.draw(channels(old))
    found = received(asyncio.run(Captured(old).add("up", "down", stored).restored(new)))
    check_order(found)
    for index in range(after):
        copies = [record for record in records(stored) if record.receiver == index % before]
        assert Counter(found.get(index, [])) == Counter(copies)


async def test_groups_go_where_anybody_may_get_the_records() -> None:
    """Else those behind would take them for what decides where records belong."""
    for kind in (Rebalance(), Broadcast()):
        old = two_steps(kind, 1, 2)
        batch = grouped([Record(key, 0, 1, key) for key in range(5)], key_of)
        captured = Captured(old).add("up", "down", [Channel(0, 1, [batch])])
        for new in (old, two_steps(kind, 1, 3)):
            batches = [restored.batch for got in (await captured.restored(new)).values() for restored in got]
            assert batches and all(batch.groups is None for batch in batches)


async def test_all_that_a_receiver_had_comes_before_what_its_senders_had_not_sent() -> None:
    old = two_steps(KEYED, 2, 2)
    keys = [key for key in range(40) if subtask_of(key_group(key, GROUPS), 2, GROUPS) == 1][:1]

    def batch(sender: int, number: int) -> Batch:
        return grouped([Record(keys[0], sender, 1, number)], key_of)

    stored = [Channel(1, 1, [batch(1, 0)], [batch(1, 1)]), Channel(0, 1, [batch(0, 0), batch(0, 1)], [batch(0, 2)])]
    found = received(await Captured(old).add("up", "down", stored).restored(two_steps(KEYED, 3, 1)))
    assert [record[1::2] for record in found[0]] == [(1, 0), (0, 0), (0, 1), (0, 2), (1, 1)]


async def test_the_deepest_link_comes_first() -> None:
    """And an edge is found again where chains have been cut and joined."""

    def chain_of_three(first: bool, second: bool) -> PhysicalPlan:
        graph = Graph().add("source", "source").add("a", "process", "source", chain=first)
        return plan(graph.add("b", "process", "a", chain=second).add("sink", "sink", "b").build(), max_parallelism=4)

    old = chain_of_three(True, True)
    captured = Captured(old)
    edges = [("source", "a"), ("a", "b"), ("b", "sink")]
    for upstream, downstream in edges:
        captured.add(upstream, downstream, [Channel(0, 0, [Batch([f"{upstream}-{downstream}"])])])

    async def found(first: bool, second: bool) -> dict[str, list[tuple[int, Any]]]:
        got = await captured.restored(chain_of_three(first, second))
        return {
            subtask.vertex: [(restored.edge.place, *restored.batch.values) for restored in batches]
            for subtask, batches in got.items()
        }

    assert await found(True, True) == {"source": [(3, "b-sink"), (2, "a-b"), (1, "source-a")]}
    assert await found(False, True) == {"a": [(0, "source-a")], "b": [(1, "b-sink"), (0, "a-b")]}
    assert await found(True, False) == {"source": [(1, "source-a")], "b": [(0, "a-b")], "sink": [(0, "b-sink")]}


async def test_edges_that_are_alike_are_told_apart() -> None:
    def union(*kinds: Partitioning) -> PhysicalPlan:
        graph = Graph().add("up", "source", parallelism=2)
        graph.add("down", "process", *[("up", kind) for kind in kinds], parallelism=2)
        return plan(graph.build(), max_parallelism=GROUPS)

    old = union(Rebalance(), Broadcast())
    captured = Captured(old).add("up", "down", [Channel(0, 1, [Batch(["turn"])])])
    captured.add("up", "down", [Channel(0, index, [Batch(["all"])]) for index in range(2)], ordinal=1)
    found = await captured.restored(old)
    got = {
        subtask.index: [(restored.edge.kind, *restored.batch.values) for restored in batches]
        for subtask, batches in found.items()
    }
    assert got == {0: [("broadcast", "all")], 1: [("rebalance", "turn"), ("broadcast", "all")]}
    with pytest.raises(IncompatibleState, match=r"'down' \(no. 2\), which was a broadcast and is a rebalance now"):
        plan_backlogs(captured.manifest(), union(Broadcast(), Rebalance()))
    with pytest.raises(IncompatibleState, match=r"2 records in flight on the edge 'up' → 'down' \(no. 2\), which the"):
        plan_backlogs(captured.manifest(), union(Rebalance()))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), widths, widths, widths, widths)
def test_both_inputs_of_a_step_get_their_own_at_any_parallelism(
    data: st.DataObject, senders: int, before: int, up: int, after: int
) -> None:
    """Also where both come from one step; on one side by key, on the other every subtask's copies."""

    def connected(senders: int, receivers: int) -> PhysicalPlan:
        graph = Graph().add("up", "source", parallelism=senders)
        graph.add("down", "connected", ("up", KEYED), right=[("up", Broadcast())], parallelism=receivers)
        return plan(graph.build(), max_parallelism=GROUPS)

    keyed = data.draw(channels(two_steps(KEYED, senders, before)))
    copied = data.draw(channels(two_steps(Broadcast(), senders, before)))
    captured = Captured(connected(senders, before)).add("up", "down", keyed).add("up", "down", copied, side=1)
    by_side: dict[int, Restored] = {0: {}, 1: {}}
    for subtask, batches in asyncio.run(captured.restored(connected(up, after))).items():
        for restored in batches:
            by_side[restored.edge.key.side].setdefault(subtask, []).append(restored)
    left, right = (received(found) for found in by_side.values())
    check_each_once(left, records(keyed))
    check_order(left)
    check_order(right)
    assert all(owner(record, after) == index for index, got in left.items() for record in got)
    for index in range(after):
        copies = [record for record in records(copied) if record.receiver == index % before]
        assert Counter(right.get(index, [])) == Counter(copies)


async def test_records_do_not_change_sides_with_the_flow() -> None:
    def connected(left: str, right: str) -> PhysicalPlan:
        graph = Graph().add("a", "source").add("b", "source")
        return plan(graph.add("down", "connected", left, right=[right]).build())

    captured = Captured(connected("a", "b")).add("b", "down", [Channel(0, 0, [Batch([1])])], side=1)
    with pytest.raises(
        IncompatibleState, match=r"1 records in flight on the edge 'b' → 'down' \(second input\), which the"
    ):
        plan_backlogs(captured.manifest(), connected("b", "a"))
    [batches] = (await captured.restored(connected("a", "b"))).values()
    assert [(restored.edge.key.side, *restored.batch.values) for restored in batches] == [(1, 1)]


def test_nothing_in_flight_nothing_to_give_back() -> None:
    old = two_steps(KEYED, 2, 2)
    assert plan_backlogs(Captured(old).manifest(), two_steps(Broadcast(), 1, 3)) == {}


# ------------------------------------------------------------------------------------------------------------- refusals
def some(kind: str) -> Channel:
    batch = [Record(key, 0, 0, key) for key in range(40) if owner(Record(key, 0, 0, 0), 2) == 0]
    return Channel(0, 0, [grouped(batch, key_of) if kind == "keyed" else Batch(batch)])


ALIKE = {"forward", "rebalance"}


@pytest.mark.parametrize("now", KINDS)
@pytest.mark.parametrize("then", KINDS)
def test_another_kind_of_edge(then: str, now: str) -> None:
    manifest = Captured(two_steps(KINDS[then], 2, 2)).add("up", "down", [some(then)]).manifest()
    new = two_steps(KINDS[now], 2, 2)
    if then == now or {then, now} <= ALIKE:
        assert plan_backlogs(manifest, new)
        return
    with pytest.raises(IncompatibleState, match=r"'up' → 'down', which was .* now\. .*drop_state=\['down'\]"):
        plan_backlogs(manifest, new)
    assert plan_backlogs(manifest, new, {"down"}) == plan_backlogs(manifest, new, {"up"}) == {}


def test_an_edge_that_is_gone() -> None:
    old = Graph().add("up", "source").add("mid", "process", "up").add("down", "sink", "mid").build()
    new = plan(Graph().add("up", "source").add("down", "sink", "up").build())
    captured = Captured(plan(old)).add("up", "mid", [Channel(0, 0, [Batch([1, 2])])])
    captured.add("mid", "down", [Channel(0, 0, [Batch([3])])])
    with pytest.raises(IncompatibleState, match="which the flow no longer has.*take a savepoint.*or let it finish"):
        plan_backlogs(captured.manifest(), new)
    with pytest.raises(IncompatibleState, match="1 records in flight on the edge 'mid' → 'down'"):
        plan_backlogs(captured.manifest(), new, {"up"})
    assert plan_backlogs(captured.manifest(), new, {"mid"}) == {}


def test_giving_up_drops_only_what_has_nowhere_to_go() -> None:
    """As with state: an operator that is still there gets back what still fits it."""
    old = two_steps(KEYED, 2, 2)
    manifest = Captured(old).add("up", "down", [some("keyed")]).manifest()
    assert plan_backlogs(manifest, old, {"up", "down"}) == plan_backlogs(manifest, old) != {}


def test_another_max_parallelism() -> None:
    manifest = Captured(two_steps(KEYED, 2, 2)).add("up", "down", [some("keyed")]).manifest()
    with pytest.raises(IncompatibleState, match="in 16 key groups, but max_parallelism is 32 now: set max_p.*=16"):
        plan_backlogs(manifest, two_steps(KEYED, 2, 2, groups=32))
    rebalanced = Captured(two_steps(Rebalance(), 2, 2)).add("up", "down", [some("keyed")]).manifest()
    assert plan_backlogs(rebalanced, two_steps(Rebalance(), 2, 2, groups=32))


# ------------------------------------------------------------------------------------------------- steps without a uid
def unnamed(*kinds: str, then: str = "sink") -> PhysicalPlan:
    """As the builder names steps without a uid: by their place."""
    graph, last = Graph().add("source", "source"), "source"
    for place, kind in enumerate(kinds, 1):
        uid = f"{kind}-{place}"
        graph.add(uid, kind, last, named=False)
        last = uid
    return plan(graph.add(then, "sink", last).build())


def test_steps_known_by_their_place_in_the_same_flow() -> None:
    old = unnamed("map", "map")
    captured = Captured(old).add("map-1", "map-2", [Channel(0, 0, [Batch([1])])])
    captured.add("map-2", "sink", [Channel(0, 0, [Batch([2])])])
    [backlog] = plan_backlogs(captured.manifest(), unnamed("map", "map")).values()
    assert [frame.edge.key.downstream for frame in backlog] == ["sink", "map-2"]


@pytest.mark.parametrize("edge", [("source", "map-1"), ("map-1", "map-2"), ("map-2", "sink")])
def test_steps_known_by_their_place_in_another_flow(edge: tuple[str, str]) -> None:
    captured = Captured(unnamed("map", "map")).add(*edge, [Channel(0, 0, [Batch([1])])])
    place = next(uid for uid in edge if uid.startswith("map"))
    for new in (unnamed("map", "map", "map"), unnamed("map", "map", then="out")):
        with pytest.raises(IncompatibleState, match=f"'{place}'.* is a step without a uid.*take a savepoint"):
            plan_backlogs(captured.manifest(), new)
        assert plan_backlogs(captured.manifest(), new, {edge[0]}) == {}


def test_named_steps_stay_themselves_in_another_flow() -> None:
    captured = Captured(two_steps(Rebalance(), 2, 2)).add("up", "down", [some("rebalance")])
    graph = Graph().add("up", "source", parallelism=2).add("down", "process", ("up", Rebalance()), parallelism=2)
    assert plan_backlogs(captured.manifest(), plan(graph.add("more", "sink", "down").build()))
