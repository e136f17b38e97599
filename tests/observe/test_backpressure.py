"""Shares of time, from what subtasks count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.observe.backpressure import LEAST, LoadMeter
from streamactors.observe.model import Load

SECONDS = st.floats(0, 1e6, allow_nan=False)
SPENT = st.tuples(SECONDS, SECONDS, SECONDS)


def test_shares_are_of_the_time_since_the_look_before() -> None:
    meter = LoadMeter()
    assert meter.measure(10.0, {"a": (1.0, 3.0, 0.0)})["a"] == Load(
        busy=0.25, idle=0.75, backpressured=0.0, seconds=4.0
    )
    now = meter.measure(14.0, {"a": (2.0, 3.0, 3.0)})["a"]
    assert now == Load(busy=0.25, idle=0.0, backpressured=0.75, seconds=4.0)


def test_those_who_look_at_the_same_time_see_the_same() -> None:
    meter = LoadMeter()
    meter.measure(10.0, {"a": (0.0, 4.0, 0.0)})
    first = meter.measure(14.0, {"a": (4.0, 4.0, 0.0)})
    assert meter.measure(14.0 + LEAST / 2, {"a": (4.0, 4.0, 0.0)}) == first


def test_another_attempt_begins_anew() -> None:
    meter = LoadMeter()
    meter.measure(10.0, {"a": (50.0, 0.0, 0.0), "gone": (1.0, 0.0, 0.0)})
    assert meter.measure(20.0, {"a": (0.0, 2.0, 0.0)}) == {
        "a": Load(busy=0.0, idle=1.0, backpressured=0.0, seconds=2.0)
    }


def test_who_has_not_begun_is_idle() -> None:
    assert LoadMeter().measure(1.0, {"a": (0.0, 0.0, 0.0)})["a"].idle == 1.0


@given(
    st.lists(st.tuples(st.floats(0, 5, allow_nan=False), st.dictionaries(st.sampled_from("abc"), SPENT)), max_size=8)
)
def test_shares_are_shares(looks: list[tuple[float, dict[str, tuple[float, float, float]]]]) -> None:
    meter, now = LoadMeter(), 100.0
    for pause, spent in looks:
        now += pause
        loads = meter.measure(now, spent)
        assert loads.keys() == spent.keys()
        for load in loads.values():
            assert load.busy + load.idle + load.backpressured == pytest.approx(1.0, abs=0.001)
            assert min(load.busy, load.idle, load.backpressured) >= 0
