"""Planning a restore: every piece of stored state reaches exactly one subtask, or is refused by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.memory import ListSink
from streamactors.checkpoint.manifest import (
    BlockRef,
    FileHandle,
    KeyedHandle,
    Manifest,
    NodeState,
    OperatorMeta,
    SubtaskState,
)
from streamactors.errors import IncompatibleState
from streamactors.graph.logical import Keyed, SourceSpec
from streamactors.graph.planner import plan
from streamactors.operators.base import Context, KeyedOperator
from streamactors.operators.process import ProcessSpec
from streamactors.operators.sink import SinkSpec
from streamactors.runtime.restore import plan_restore, stored_max_parallelism
from streamactors.state.key_groups import subtask_range
from tests.graph.graphs import Graph, identity
from tests.runtime.feeds import Feed

GROUPS = 16
SPLITS = 5


class Counting(KeyedOperator[Any, Any, Any]):
    def process(self, value: Any, ctx: Context[Any, Any], /) -> None: ...


def flow(*, count: str = "count", kind: str = "process") -> Any:
    graph = Graph().add("source", SourceSpec(Feed(SPLITS)))
    if kind == "process":
        graph.add(count, ProcessSpec(Counting, keyed=True), ("source", Keyed(identity)))
    else:
        graph.add(count, "map", "source")
    return graph.add("sink", SinkSpec(ListSink()), count).build()


def planned(parallelism: int, groups: int = GROUPS, **options: Any) -> Any:
    return plan(flow(**options), parallelism=parallelism, max_parallelism=groups, checkpointing=True)


def stored(parallelism: int) -> Manifest:
    """As a job of that parallelism would have left it: `count` and `sink` are chained."""
    subtasks = []
    for index in range(parallelism):
        positions = {str(split): split * 10 for split in range(SPLITS) if split % parallelism == index}
        blocks = tuple(BlockRef("total", group, 1, 0, 1) for group in subtask_range(index, parallelism, GROUPS))
        keyed = (KeyedHandle(FileHandle(f"file-{index}", 1, b""), blocks),)
        subtasks.append(SubtaskState("source", index, (NodeState("source", positions=positions),)))
        nodes = (NodeState("count", keyed=keyed, schemas={"total": "int"}), NodeState("sink", pending=(f"tx-{index}",)))
        subtasks.append(SubtaskState("count", index, nodes))
    kinds = {"source": "source", "count": "process", "sink": "sink"}
    operators = tuple(OperatorMeta(uid, kind, parallelism, GROUPS) for uid, kind in kinds.items())
    return Manifest(
        flow="test", run=1, attempt=1, checkpoint=1, time_ms=0, operators=operators, subtasks=tuple(subtasks)
    )


@given(before=st.integers(1, 6), after=st.integers(1, 6))
def test_every_piece_reaches_one_subtask(before: int, after: int) -> None:
    restores = plan_restore(stored(before), planned(after), ())
    groups: list[int] = []
    positions: dict[str, Any] = {}
    pending: list[Any] = []
    for (id, uid), restore in restores.items():
        own = subtask_range(id.index, after, GROUPS)
        for _, refs in restore.blocks:
            assert refs and all(ref.group in own for ref in refs)
            groups += [ref.group for ref in refs]
        if uid == "source":
            assert restore.positions is not None
            assert all(int(split) % after == id.index for split in restore.positions)
            assert not positions.keys() & restore.positions.keys()
            positions |= restore.positions
        pending += restore.pending
        assert all(int(tx.removeprefix("tx-")) % after == id.index for tx in restore.pending)
        assert uid != "count" or restore.schemas == {"total": "int"}
    assert sorted(groups) == list(range(GROUPS))
    assert positions == {str(split): split * 10 for split in range(SPLITS)}
    assert sorted(pending) == sorted(f"tx-{index}" for index in range(before))


def test_state_of_an_unknown_operator_is_refused_unless_given_up() -> None:
    with pytest.raises(IncompatibleState, match=r"'count', which the flow no longer has.*drop_state=\['count'\]"):
        plan_restore(stored(2), planned(2, count="total"))
    restores = plan_restore(stored(2), planned(2, count="total"), {"count"})
    assert {uid for _, uid in restores} == {"source", "sink"}


def test_a_step_that_was_added_starts_afresh() -> None:
    restores = plan_restore(stored(1), planned(1, count="total"), {"count"})
    assert not [uid for _, uid in restores if uid == "total"]


def test_another_max_parallelism_is_refused() -> None:
    with pytest.raises(IncompatibleState, match="max_parallelism=16"):
        plan_restore(stored(2), planned(2, groups=32))
    assert stored_max_parallelism(stored(2)) == GROUPS


def test_another_kind_of_step_under_the_same_uid_is_refused() -> None:
    with pytest.raises(IncompatibleState, match="'count' was a process when .* and is a map now"):
        plan_restore(stored(1), planned(1, kind="map"))
