"""The automaton against the definition of what a pattern means, and against examples written out."""

import datetime as dt
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from streamactors.errors import InvalidDataflow
from streamactors.operators.patterns.nfa import END, Question
from streamactors.operators.patterns.pattern import Pattern
from streamactors.operators.patterns.runs import Run, Runs
from tests.operators.patterns.matching import Machine, asked, shown
from tests.operators.patterns.oracle import Choice, Oracle

Value = tuple[str, int]
"""Its letter, and a number that some conditions go by."""


# ------------------------------------------------------------------------------------------- against the definition
def nothing(value: Any) -> bool:
    """Stages are judged by `Rule`s here: an answer has to be the same for the automaton and for the oracle."""
    raise AssertionError


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Pattern[Any], dict[str, tuple[str, bool]]]:
    """With each stage's rule: the letters that it takes, and whether it minds what was taken before."""
    rules: dict[str, tuple[str, bool]] = {}
    pattern: Pattern[Any] | None = None
    for place in range(draw(st.integers(1, 4))):
        name = f"s{place}"
        rules[name] = draw(st.sampled_from(["a", "b", "c", "ab", "bc", "abc"])), draw(st.integers(0, 4)) == 0
        how = draw(
            st.sampled_from(["next", "followed_by", "followed_by", "followed_by_any", "not_next", "not_followed_by"])
        )
        pattern = Pattern.begin(name, nothing) if pattern is None else getattr(pattern, how)(name, nothing)
        if place == 0 or not how.startswith("not"):
            pattern = draw(quantified(pattern))
    assert pattern is not None
    if draw(st.booleans()):
        pattern = pattern.within(dt.timedelta(milliseconds=draw(st.integers(1, 8))))
    strategy: Any = draw(st.sampled_from(["none", "none", "past-last", "to-next", "to-first", "to-last"]))
    pattern = pattern.skip(
        strategy, draw(st.sampled_from(sorted(rules))) if "-first" in strategy or strategy == "to-last" else None
    )
    try:
        pattern.validate()
    except InvalidDataflow:
        assume(False)
    return pattern, rules


def quantified(pattern: Pattern[Any]) -> st.SearchStrategy[Pattern[Any]]:
    @st.composite
    def changed(draw: st.DrawFn) -> Pattern[Any]:
        found = pattern
        times = draw(st.sampled_from([None, None, (1,), (2,), (2, 2), (1, 2), (2, 3), (0, 2)]))
        if times is not None:
            found = found.times(*times)
            looping = draw(st.sampled_from(["relaxed", "relaxed", "consecutive", "allow_combinations"]))
            found = found if looping == "relaxed" else getattr(found, looping)()
        if draw(st.integers(0, 3)) == 0:
            found = found.optional()
        if draw(st.integers(0, 2)) == 0 and found.stages[-1].looping != "any":
            found = found.greedy()
        return found

    return changed()


@st.composite
def inputs(draw: st.DrawFn) -> list[tuple[Value, int]]:
    letters = draw(st.text("abcx", max_size=8))
    time, events = 0, []
    for letter in letters:
        time += draw(st.integers(0, 3))
        events.append(((letter, draw(st.integers(0, 2))), time))
    return events


def judged(rule: tuple[str, bool], value: Value, before: list[Value]) -> bool:
    letters, minds = rule
    return value[0] in letters and (not minds or sum(number for _, number in before) % 2 == value[1] % 2)


def may_take_more(machine: Machine, run: Run) -> bool:
    """Not only become a match by waiting."""
    options = machine.nfa.options(run.stage, run.count)
    return any(run.ways >> place & 1 and option.target != END for place, option in enumerate(options))


def compared(pattern: Pattern[Any], rules: dict[str, tuple[str, bool]], events: list[tuple[Value, int]]) -> Oracle:
    def answer(runs: Runs, question: Question, value: Value) -> bool:
        before = [runs.value(run.event) for run in runs.path(question.run)]
        return judged(rules[pattern.stages[question.stage].name], value, before)

    def fits(stage: int, index: int, so_far: Choice) -> bool:
        return judged(rules[pattern.stages[stage].name], events[index][0], [events[each][0] for _, each in so_far])

    machine = Machine(pattern, answer)
    numbered = {id(value): number for number, (value, _) in enumerate(events)}
    found = []
    for value, time in events:
        found += machine.give(value, time)
    oracle = Oracle(pattern, [time for _, time in events], fits)
    if pattern.window is None and pattern.skips.strategy == "none":
        runs = Runs(machine.stored, machine.events)
        live = Counter(
            tuple(step.stage for step in runs.path(number))
            for number, run in runs.live()
            if may_take_more(machine, run)
        )
        wanted = Counter(tuple(stage for stage, _ in choice) for choice in oracle.choices() if oracle.is_live(choice))
        assert live == wanted, "what is kept can't be completed, or what could be is not kept"
    found += machine.end()
    results = [
        (
            tuple(zip((run.stage for run in each.path), (numbered[id(value)] for value in each.values), strict=True)),
            each.time,
            each.timed_out,
        )
        for each in found
    ]
    assert results == oracle.results()
    assert pattern.window is None or not machine.stored
    for choice, _, timed_out in results:
        event("timed out" if timed_out else f"match of {min(len(choice), 4)}")
    return oracle


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(patterns(), inputs())
def test_what_the_definition_says(drawn: Any, events: list[tuple[Value, int]]) -> None:
    pattern, rules = drawn
    # Equal values are told apart by identity: each has to be an object of its own.
    compared(pattern, rules, [((letter, number), time) for (letter, number), time in map(_copied, events)])


def _copied(each: tuple[Value, int]) -> tuple[Value, int]:
    (letter, number), time = each
    return (letter, number), time


# ------------------------------------------------------------------------------------------------------ written out
def kind(letter: str) -> Any:
    return lambda value: value[0] == letter


def found_in(pattern: Pattern[Any], values: str) -> list[str]:
    return shown(Machine(pattern, asked(pattern)).give_all((value, 0) for value in values.split()))


A = Pattern.begin("a", kind("a"))
ONE_OR_MORE = A.followed_by_any("b", kind("b")).one_or_more()


@pytest.mark.parametrize(
    ("pattern", "values", "wanted"),
    [
        (A.next("b", kind("b")), "a c b1 b2", []),
        (A.followed_by("b", kind("b")), "a c b1 b2", ["a b1"]),
        (A.followed_by_any("b", kind("b")), "a c b1 b2", ["a b1", "a b2"]),
        (
            A.followed_by("b", kind("b")).one_or_more().consecutive().followed_by("c", kind("c")),
            "a b1 b2 d b3 c",
            ["a b1 b2 c", "a b1 c"],
        ),
        (
            ONE_OR_MORE.followed_by("c", kind("c")),
            "a b1 d1 b2 d2 b3 c",
            ["a b1 b2 b3 c", "a b1 b2 c", "a b1 c", "a b2 b3 c", "a b2 c", "a b3 c"],
        ),
        (
            ONE_OR_MORE.allow_combinations().followed_by("c", kind("c")),
            "a b1 d1 b2 d2 b3 c",
            ["a b1 b2 b3 c", "a b1 b2 c", "a b1 b3 c", "a b1 c", "a b2 b3 c", "a b2 c", "a b3 c"],
        ),
        (A.followed_by("b", kind("b")).one_or_more().greedy().followed_by("c", kind("c")), "a b1 b2 c", ["a b1 b2 c"]),
        (A.followed_by("b", kind("b")).optional().followed_by("c", kind("c")), "a b c", ["a b c", "a c"]),
        (A.followed_by("b", kind("b")).optional().greedy().followed_by("c", kind("c")), "a b c", ["a b c"]),
        (A.followed_by("b", kind("b")).times(2, 3), "a b1 b2 b3 b4", ["a b1 b2", "a b1 b2 b3"]),
        (A.followed_by("b", kind("b")).times(2), "a b1 b2 b3", ["a b1 b2", "a b1 b2 b3"]),
        (A.not_next("n", kind("n")).followed_by("b", kind("b")), "a1 n b a2 x n b2", ["a2 b2"]),
        (A.not_followed_by("n", kind("n")).followed_by("b", kind("b")), "a1 x n b a2 x b2", ["a2 b2"]),
        (A.not_next("n", kind("n")), "a1 n a2 x a3", ["a2"]),
    ],
)
def test_contiguity(pattern: Pattern[Any], values: str, wanted: list[str]) -> None:
    assert sorted(found_in(pattern, values)) == wanted


B_PLUS_C = Pattern.begin("b", kind("b")).one_or_more().consecutive().next("c", kind("c"))


@pytest.mark.parametrize(
    ("strategy", "stage", "wanted"),
    [
        ("none", None, ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
        ("to-next", None, ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
        ("past-last", None, ["b1 b2 b3 c"]),
        ("to-first", "b", ["b1 b2 b3 c", "b2 b3 c", "b3 c"]),
        ("to-last", "b", ["b1 b2 b3 c", "b3 c"]),
    ],
)
def test_skip_strategies(strategy: Any, stage: str | None, wanted: list[str]) -> None:
    assert found_in(B_PLUS_C.skip(strategy, stage), "b1 b2 b3 c") == wanted


def test_to_next_leaves_one_match_for_each_beginning() -> None:
    pattern = A.followed_by("b", kind("b")).one_or_more()
    assert found_in(pattern, "a b1 b2") == ["a b1", "a b1 b2"]
    assert found_in(pattern.skip("to-next"), "a b1 b2") == ["a b1"]


def test_one_event_is_kept_once_and_shared() -> None:
    """Hundreds of runs that end in different ways have the events of their common beginning once."""
    pattern = A.followed_by_any("b", kind("b")).followed_by_any("c", kind("c"))
    machine = Machine(pattern, asked(pattern))
    machine.give_all((value, 0) for value in ["a", *(f"b{number}" for number in range(300))])
    assert len(machine.stored) == 301 and len(machine.events) == 301
    assert len(machine.give("c")) == 300


def test_a_greedy_run_stays_alone() -> None:
    """Its beginnings are kept as its path, and are not live."""
    pattern = A.followed_by("b", kind("b")).one_or_more().greedy().next("c", kind("c"))
    machine = Machine(pattern, asked(pattern))
    machine.give_all((f"b{number}" if number else "a", 0) for number in range(50))
    assert len(machine.stored) == 50
    assert len([run for run in machine.stored.values() if run.ways]) == 1


def test_what_was_a_match_by_what_did_not_come_does_not_time_out() -> None:
    pattern = A.one_or_more().not_next("n", kind("n")).within(dt.timedelta(milliseconds=5))
    machine = Machine(pattern, asked(pattern))
    assert shown(machine.give_all([("a", 0), ("x", 1)])) == ["a"]
    assert machine.end() == [] and machine.stored == {}
    assert [found.timed_out for found in machine.give_all([("a", 0), ("n", 1)]) + machine.end()] == [True]
