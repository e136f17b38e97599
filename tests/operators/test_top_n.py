"""Rankings: what comes out, and when."""

import datetime as dt
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamactors as sa
from connectors.memory import ListSink, ListSource
from streamactors.operators.top_n import TopNSpec
from tests.operators.driven import Driven

either_backend = pytest.mark.parametrize("backend", ["heap", "rocksdb", "narrow"])


def first(row: Any) -> Any:
    return row[0]


@either_backend
def test_the_ranking_comes_out_when_it_changes(backend: str) -> None:
    ranked = Driven(TopNSpec(2, first, None), backend)
    for row in [(3, "a"), (1, "b"), (1, "c"), (None, "d"), (math.nan, "e"), (3, "f")]:
        ranked.put(0, ("k", row, 0))
    ranked.move("heap", 2)
    ranked.put(0, ("k", (5, "g"), 0), ("other", (0, "h"), 0))
    assert [value for value in ranked.values if value[0][1] != "h"] == [
        [(3, "a")],
        [(3, "a"), (1, "b")],
        [(3, "a"), (3, "f")],
        [(5, "g"), (3, "a")],
    ]
    assert [(0, "h")] in ranked.values
    ranked.close()


@pytest.mark.parametrize("backend", ["heap", "narrow"])
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 6), min_size=1, max_size=20), n=st.integers(1, 4))
def test_the_last_is_the_ranking_of_all(backend: str, numbers: list[int], n: int) -> None:
    """Also of records that are equal, and the same object."""
    ranked = Driven(TopNSpec(n, lambda number: number, None), backend)
    expected: list[list[int]] = []
    for count, number in enumerate(numbers, 1):
        ranked.put(0, ("k", number, 0))
        ranking = sorted(numbers[:count], reverse=True)[:n]
        expected += [ranking] if expected[-1:] != [ranking] else []
    assert ranked.values == expected
    ranked.close()


@either_backend
def test_what_comes_out_is_not_what_is_kept(backend: str) -> None:
    ranked = Driven(TopNSpec(3, first, None), backend)
    ranked.put(0, ("k", (1, "a"), 0))
    ranked.values[0].clear()
    ranked.put(0, ("k", (2, "b"), 0))
    assert ranked.values[1] == [(2, "b"), (1, "a")]
    ranked.close()


async def test_of_a_whole_job() -> None:
    flow, sink = sa.Dataflow("best"), ListSink[Any]()
    scores = flow.source("scores", ListSource([("a", 1), ("b", 5), ("a", 3), ("a", 2), ("b", 4)]))
    scores.key_by(first).top_n("best", 1, by=lambda score: score[1], ttl=sa.Ttl(dt.timedelta(days=1))).sink("out", sink)
    await sa.run(flow)
    assert sorted(sink.values) == [[("a", 1)], [("a", 3)], [("b", 5)]]


def test_what_makes_no_sense_is_refused() -> None:
    scores: Any = sa.Dataflow("best").source("scores", ListSource([("a", 1)]))
    with pytest.raises(sa.InvalidDataflow, match="top_n works key by key"):
        scores.top_n("best", 1, by=first)
    keyed = scores.key_by(first)
    for n in (0, True, "3"):
        with pytest.raises(sa.InvalidDataflow, match=f"top_n 'best': n={n!r}: give a whole number from 1 up"):
            keyed.top_n("best", n, by=first)

    async def rank(score: Any) -> Any:
        return score

    for by in (rank, 3):
        with pytest.raises(sa.InvalidDataflow, match="top_n 'best': by= is a plain function"):
            keyed.top_n("best", 1, by=by)
    with pytest.raises(sa.InvalidDataflow, match="top_n 'best': ttl=3: give a Ttl"):
        keyed.top_n("best", 1, by=first, ttl=3)
