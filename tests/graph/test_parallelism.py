"""The parallelism that a job is rescaled to: what goes with what is named, and what is refused."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import ListSink
from streamactors.graph.parallelism import Parallelism, widths
from streamactors.graph.physical import PhysicalPlan
from streamactors.graph.planner import plan
from tests.runtime.feeds import Feed


def graph() -> Any:
    """in → a ┬→ b ⇒ c → d (2) → out: `→` hands records straight on, `⇒` deals them out by key.
    └→ e"""
    flow = sa.Dataflow("flow")
    a = flow.source("in", Feed()).map_async("a", keep)
    a.map_async("e", keep).sink("aside", ListSink[int]())
    c = a.map_async("b", keep).key_by(lambda value: value).reduce("c", max)
    c.map_async("d", keep, parallelism=2).sink("out", ListSink[int]())
    return flow.graph()


async def keep(value: int) -> int:
    return value


def planned(parallelism: Parallelism) -> PhysicalPlan:
    return plan(graph(), parallelism=parallelism.default, steps=parallelism.steps)


def rescaled(default: int | None, steps: Mapping[str, int], *before: Parallelism) -> dict[str, int]:
    old = before[0] if before else Parallelism()
    return widths(planned(old.rescaled(default, steps, planned(old))))


def test_a_default_is_for_those_that_have_none_of_their_own() -> None:
    assert rescaled(3, {}) == {"in": 3, "a": 3, "e": 3, "aside": 3, "b": 3, "c": 3, "d": 2, "out": 3}
    one_step = Parallelism(1, {"c": 5})
    assert rescaled(3, {}, one_step)["c"] == 5


def test_whoever_hands_records_straight_on_goes_along() -> None:
    assert rescaled(None, {"b": 4}) == {"in": 4, "a": 4, "e": 4, "aside": 4, "b": 4, "c": 1, "d": 2, "out": 1}
    assert rescaled(None, {"c": 4}) == {"in": 1, "a": 1, "e": 1, "aside": 1, "b": 1, "c": 4, "d": 2, "out": 1}
    assert rescaled(None, {"in": 3, "e": 2}) == {"in": 3, "a": 3, "e": 2, "aside": 3, "b": 3, "c": 1, "d": 2, "out": 1}


def test_who_is_named_with_the_flow_goes_by_what_is_named() -> None:
    assert rescaled(2, {"d": 6})["d"] == 6
    together = rescaled(2, {"c": 2}, Parallelism(2))
    assert together["c"] == together["d"] == 2
    assert rescaled(None, {"c": 3}, Parallelism(2))["d"] == 2, "the flow says so"


def named() -> PhysicalPlan:
    """in → `fetch` → `fetch` → `odd` → out, which is called `in` too."""
    flow = sa.Dataflow("flow")
    fetched = flow.source("in", Feed()).map(keep, name="fetch").map(keep, name="fetch")
    fetched.filter(lambda value: value % 2 == 1, name="odd").sink("out", ListSink[int](), name="in")
    return plan(flow.graph())


def test_a_step_may_be_given_by_its_name() -> None:
    [odd] = [uid for uid, (_, node) in named().node.items() if node.name == "odd"]
    assert Parallelism().rescaled(None, {"odd": 3}, named()) == Parallelism().rescaled(None, {odd: 3}, named())
    assert Parallelism().rescaled(None, {"in": 3}, named()).steps["in"] == 3, "a uid comes first"
    with pytest.raises(sa.InvalidConfig, match=r"several steps are called 'fetch': give the uid of one of them: .*, "):
        Parallelism().rescaled(None, {"fetch": 3}, named())
    with pytest.raises(sa.InvalidConfig, match=f"step '{odd}' is given twice"):
        Parallelism().rescaled(None, {"odd": 3, odd: 2}, named())


@pytest.mark.parametrize(
    ("default", "steps", "said"),
    [
        (None, {}, "names no step"),
        (0, {}, "parallelism is 0"),
        (True, {}, "parallelism is True"),
        (None, {"x": 1}, "no step 'x' to rescale; it has: in, a, "),
        (2, {"a": 0}, "parallelism of step 'a' is 0"),
    ],
)
def test_refused(default: int | None, steps: Mapping[str, int], said: str) -> None:
    with pytest.raises(sa.InvalidConfig, match=said):
        rescaled(default, steps)


UIDS = ("in", "a", "b", "c", "d", "e", "aside", "out")


@given(st.lists(st.tuples(st.none() | st.integers(1, 6), st.dictionaries(st.sampled_from(UIDS), st.integers(1, 6)))))
def test_what_is_named_holds_until_it_is_named_again(asked: list[tuple[int | None, dict[str, int]]]) -> None:
    parallelism = Parallelism()
    for default, steps in asked:
        if default is None and not steps:
            continue
        parallelism = parallelism.rescaled(default, steps, planned(parallelism))
        found = widths(planned(parallelism))
        assert steps.items() <= found.items()
        assert default is None or parallelism.default == default
        assert all(found[uid] == width for uid, width in parallelism.steps.items())
