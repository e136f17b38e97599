"""The automaton driven by hand: events in, what is found out."""

from collections.abc import Callable, Iterable
from typing import Any

from streamactors.elements import MAX_TIME
from streamactors.operators.patterns.nfa import Found, Nfa, Question, Steps
from streamactors.operators.patterns.pattern import Pattern
from streamactors.operators.patterns.runs import Run, Runs


class Machine:
    """Keeps state in plain dicts, and takes it out of them anew for every event, as behind a checkpoint."""

    def __init__(self, pattern: Pattern[Any], answer: Callable[[Runs, Question, Any], bool]) -> None:
        pattern.validate()
        self.nfa = Nfa(pattern)
        self.answer = answer
        self.stored: dict[int, Run] = {}
        self.events: dict[int, Any] = {}
        self.most = 0
        """Runs at one moment."""

    def give(self, value: Any, time: int = 0) -> list[Found]:
        runs = Runs(self.stored, self.events)
        found = self._drive(self.nfa.step(runs, value, time), runs, value)
        self._settle(runs)
        return found

    def give_all(self, values: Iterable[tuple[Any, int]]) -> list[Found]:
        return [found for value, time in values for found in self.give(value, time)]

    def end(self) -> list[Found]:
        runs = Runs(self.stored, self.events)
        found = self.nfa.pass_time(runs, MAX_TIME)
        self._settle(runs)
        return found

    def _drive(self, steps: Steps, runs: Runs, value: Any) -> list[Found]:
        try:
            question = next(steps)
            while True:
                question = steps.send(self.answer(runs, question, value))
        except StopIteration as stop:
            return list(stop.value)

    def _settle(self, runs: Runs) -> None:
        runs.settle()
        self.most = max(self.most, len(self.stored))
        reached = {number for live, run in self.stored.items() if run.ways for number in self._up(live)}
        assert reached == self.stored.keys(), "runs that no live one descends from are kept"
        assert self.events.keys() == {run.event for run in self.stored.values()}, (
            "events are kept that no run has taken"
        )

    def _up(self, number: int) -> Iterable[int]:
        while number >= 0:
            yield number
            number = self.stored[number].parent


def asked(pattern: Pattern[Any]) -> Callable[[Runs, Question, Any], bool]:
    """Conditions of one argument."""
    return lambda runs, question, value: bool(pattern.stages[question.stage].where(value))


def shown(found: Iterable[Found]) -> list[str]:
    """Events that are strings, in one: "a1 b1 c"."""
    return [" ".join(each.values) for each in found if not each.timed_out]
