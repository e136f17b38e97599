"""The tour runs, and what it says about itself is so."""

import re

import pytest

from examples import tour


def test_the_tour_loses_and_doubles_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert tour.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "20000 expected · 20000 found · 0 lost · 0 doubled · 0 wrong"
    assert "-- the job is finished, after 1 restart" in lines


def test_both_graphs_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tour.main()
    printed = capsys.readouterr().out
    assert "[orders → map-1]  1 subtask" in printed
    assert "key groups: totals[0] 0..63, totals[1] 64..127" in printed
    assert "flowchart LR" in printed


def test_the_watched_order_travels_twice_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    tour.main()
    journeys = re.findall(rf"order {tour.WATCHED} of .*", capsys.readouterr().out)
    assert len(journeys) == 2
    assert len(set(journeys)) == 1


def test_a_wrong_result_is_noticed() -> None:
    right = tour.plain_totals()
    doubled, lost = [*right, right[0]], right[1:]
    assert "0 lost · 1 doubled · 0 wrong" in tour.verdict(doubled)
    assert "1 lost · 0 doubled · 0 wrong" in tour.verdict(lost)
