"""The builder: what is refused, by name; and that patterns are values."""

import datetime as dt
import functools
from typing import Any

import pytest

import streamactors as sa
from connectors.memory import ListSource
from streamactors.operators.patterns.pattern import Pattern

MINUTE = dt.timedelta(minutes=1)


def yes(event: Any) -> bool:
    return True


BEGIN: Any = Pattern.begin("a", yes)


@pytest.mark.parametrize(
    ("build", "refused"),
    [
        (lambda: BEGIN.next("a", yes), r"has a stage 'a' already"),
        (lambda: BEGIN.next("", yes), r"named by a string, not ''"),
        (lambda: BEGIN.next("b", None), r"stage 'b' of the pattern: where is a function, not None"),
        (lambda: BEGIN.next("b", lambda: True), r"stage 'b' of the pattern: where takes the event"),
        (lambda: BEGIN.next("b", lambda one, two, three: True), r"stage 'b' of the pattern: where takes the event"),
        (lambda: BEGIN.times(0, 0), r"stage 'a' of the pattern: times\(0, 0\) takes no event at all"),
        (lambda: BEGIN.times(3, 2), r"times\(3, 2\) takes no event"),
        (lambda: BEGIN.times(-1), r"times\(-1, None\) takes whole numbers"),
        (lambda: BEGIN.times(1.5), r"takes whole numbers"),
        (lambda: BEGIN.times(2, 3).one_or_more(), r"stage 'a' has been given how many times already"),
        (lambda: BEGIN.consecutive(), r"stage 'a' of the pattern: consecutive\(\) is about a stage that takes several"),
        (lambda: BEGIN.one_or_more().greedy().allow_combinations(), r"greedy\(\) with allow_combinations\(\)"),
        (lambda: BEGIN.one_or_more().allow_combinations().greedy(), r"greedy\(\) with allow_combinations\(\)"),
        (lambda: BEGIN.not_next("n", yes).optional(), r"stage 'n' of the pattern: optional\(\) makes no sense"),
        (lambda: BEGIN.not_next("n", yes).times(2), r"stage 'n' of the pattern: times\(2, None\) makes no sense"),
        (lambda: BEGIN.within(dt.timedelta(0)), r"give a timedelta of a millisecond at least"),
        (lambda: BEGIN.within(5), r"within\(5\): give a timedelta"),
        (lambda: BEGIN.within(dt.timedelta(microseconds=1900)), r"give a timedelta .* whole milliseconds"),
        (lambda: BEGIN.within(MINUTE).within(MINUTE), r"give it once"),
        (lambda: BEGIN.skip("all"), r"skip\('all'\): one of none, past-last"),
        (lambda: BEGIN.skip("to-first"), r"to-first and to-last take a stage, others none"),
        (lambda: BEGIN.skip("none", "a"), r"to-first and to-last take a stage, others none"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_written(build: Any, refused: str) -> None:
    with pytest.raises(sa.InvalidDataflow, match=refused):
        build()


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        (BEGIN.optional(), "would match nothing at all"),
        (BEGIN.times(0, 2).next("b", yes).optional(), "would match nothing at all"),
        (BEGIN.not_followed_by("n", yes), "stage 'n' of the pattern: not_followed_by is last, .* add within"),
        (BEGIN.optional().not_next("n", yes).next("b", yes), "stage 'n' .* nothing before it is sure to come"),
        (BEGIN.not_next("n", yes).next("b", yes).optional(), "stage 'n' .* what follows it is optional"),
        (BEGIN.one_or_more().greedy(), "stage 'a' .* on the last stage has nothing to take events from"),
        (BEGIN.greedy().next("b", yes), "stage 'a' .* has nothing to choose: it takes 1 in any case"),
        (BEGIN.next("b", yes).skip("to-first", "c"), "'to-first', 'c'.*: no stage of"),
        (BEGIN.next("b", yes).not_next("n", yes).skip("to-last", "n"), "'to-last', 'n'.*: no stage of"),
        ("a then b", "takes a Pattern, made by sa.Pattern.begin"),
    ],
)
def test_what_can_not_match_is_refused_by_the_step(pattern: Any, refused: str) -> None:
    stream = sa.Dataflow("flow").source("events", ListSource([1])).key_by(lambda value: value)
    with pytest.raises(sa.InvalidDataflow, match=f"pattern 'match'.*{refused}"):
        stream.pattern("match", pattern)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"timed_out": sa.OutputTag("out", sa.Match)}, "nothing times out without within"),
        ({"late": "late"}, "late= takes an OutputTag, not 'late'"),
        (
            {"late": sa.OutputTag("aside", int), "on_error": sa.OutputTag("aside", sa.DeadLetter)},
            "late= and on_error= both send to the side output 'aside'",
        ),
        ({"max_partial_matches": 0}, "max_partial_matches=0 is no whole number from 1 up"),
    ],
)
def test_what_the_step_is_given_is_checked(options: Any, refused: str) -> None:
    stream = sa.Dataflow("flow").source("events", ListSource([1])).key_by(lambda value: value)
    with pytest.raises(sa.InvalidDataflow, match=f"pattern 'match': {refused}"):
        stream.pattern("match", BEGIN, **options)


def test_patterns_are_values() -> None:
    longer = BEGIN.next("b", yes)
    assert len(BEGIN.stages) == 1 and len(longer.stages) == 2
    assert longer.optional() is not longer and not longer.stages[1].optional


def test_it_is_described_by_all_of_its_structure() -> None:
    pattern = BEGIN.times(2, 5).greedy().not_followed_by("n", yes).next("b", yes).one_or_more().consecutive().optional()
    assert pattern.next("c", yes).within(MINUTE).skip("past-last").describe() == (
        "begin a {2,5} relaxed greedy, not followed by n, next b {1,} strict optional, next c, within 60000 ms"
    )


class Limit:
    def __call__(self, event: int, match: Any) -> bool:
        return True


@pytest.mark.parametrize(
    ("where", "sees_match"),
    [
        (yes, False),
        (lambda event, match: True, True),
        (lambda event, least=1: True, False),
        (lambda *arguments: True, False),
        (functools.partial(lambda limit, event: True, 1), False),
        (Limit(), True),
        (str.isdigit, False),
        (bool, False),
    ],
)
def test_a_condition_takes_the_match_if_it_asks_for_it(where: Any, sees_match: bool) -> None:
    assert Pattern.begin("a", where).stages[0].sees_match is sees_match
