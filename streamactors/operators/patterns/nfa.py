"""The automaton of a pattern (Flink CEP: NFA), pure: runs and an event in, matches out.

Invariants. There is one run for each way in which events can be taken, told apart by what it has taken. Its ways on
(`Option`) are open until an event closes them: a strict one closes with the next event, a relaxed one when it is taken,
one past a negation when that meets its event, one past a greedy stage when that takes an event. A run without open ways
is over. Time passes before an event is looked at, so that none belongs to a run whose window is over.

Whether an event belongs to a stage is asked by yielding a `Question`; the answer is sent back. So the same automaton
serves conditions that have to be awaited.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from streamactors.operators.patterns.pattern import Contiguity, Pattern
from streamactors.operators.patterns.runs import NO_RUN, Run, Runs


class Question(NamedTuple):
    """Does the event in hand belong to this stage, by what the run has taken so far?"""

    stage: int
    run: int


class Event(NamedTuple):
    number: int
    timestamp: int


class Found(NamedTuple):
    """A match, or a partial match that has timed out. `time`: when it was known to be, in milliseconds."""

    path: tuple[Run, ...]
    values: tuple[Any, ...]
    """The event of each."""
    time: int
    timed_out: bool = False


Steps = Generator[Question, bool, list[Found]]

END: Final = -1
"""The target of the way that completes a match whose last stages must not come."""


@dataclass(frozen=True)
class Option:
    """A way on from a stage. Both masks are of options of the same run, which come before this one."""

    target: int
    loop: bool
    contiguity: Contiguity
    negations: tuple[int, ...] = ()
    """Stages that must not come on the way."""
    yields_to: int = 0
    """Greedy ways: where one of them is taken, this one closes."""


class Nfa:
    """Compiled once per subtask. Stages are told by their place in the pattern."""

    def __init__(self, pattern: Pattern[Any]) -> None:
        self.stages = pattern.stages
        self.window = pattern.window
        self._skip = pattern.skips
        self._begin = self._options(-1, may_repeat=False, may_leave=True)
        self._cache: dict[tuple[int, bool, bool], tuple[Option, ...]] = {}

    # -------------------------------------------------------------------------------------------------- ways on
    def options(self, stage: int, count: int) -> tuple[Option, ...]:
        """Of a run whose last event was this stage's `count`-th."""
        own = self.stages[stage]
        may_repeat = own.at_most is None or count < own.at_most
        key = stage, may_repeat, count >= own.at_least
        if key not in self._cache:
            self._cache[key] = self._options(stage, may_repeat=may_repeat, may_leave=key[2])
        return self._cache[key]

    def _options(self, stage: int, *, may_repeat: bool, may_leave: bool) -> tuple[Option, ...]:
        options: list[Option] = []
        greedy = 0
        if may_repeat:
            own = self.stages[stage]
            options.append(Option(stage, True, own.looping))
            greedy |= own.greedy
        if not may_leave:
            return tuple(options)
        negations: list[int] = []
        for place in range(stage + 1, len(self.stages)):
            after = self.stages[place]
            if after.negated:
                negations.append(place)
                continue
            options.append(Option(place, False, after.contiguity, tuple(negations), greedy))
            if not after.optional:
                return tuple(options)
            greedy |= after.greedy << (len(options) - 1)
        if negations:
            options.append(Option(END, False, self._ending(negations), tuple(negations), greedy))
        return tuple(options)

    def _ending(self, negations: Iterable[int]) -> Contiguity:
        """Strict: the next event decides. Else the end of the window does."""
        return "strict" if all(self.stages[place].contiguity == "strict" for place in negations) else "relaxed"

    def completes(self, stage: int, count: int) -> bool:
        """Whether a run is a match when it takes this event."""
        own = self.stages[stage]
        return count >= own.at_least and all(after.optional and not after.negated for after in self.stages[stage + 1 :])

    def is_waiting(self, run: Run) -> bool:
        """Whether it is a match if its window passes without another event."""
        options = self.options(run.stage, run.count)
        return bool(options) and options[-1].target == END and bool(run.ways >> (len(options) - 1))

    # ------------------------------------------------------------------------------------------------------- steps
    def step(self, runs: Runs, value: Any, timestamp: int) -> Steps:
        """One event, later than or as late as those before."""
        found = self.pass_time(runs, timestamp - 1)
        event = runs.arrive(value)
        complete: list[int] = []
        for number, run in runs.live():
            taken, still_open, ended = yield from self._go_on(number, run, self.options(run.stage, run.count))
            complete += [number] if ended else []
            complete += self._extended(runs, number, run, taken, Event(event, timestamp))
            if still_open != run.ways or run.fresh:
                runs.change(
                    number, msgspec.structs.replace(run, ways=still_open, fresh=False, given=ended or run.given)
                )
        nothing = Run(NO_RUN, event, -1, 0, timestamp, timestamp, event, (1 << len(self._begin)) - 1)
        taken, _, _ = yield from self._go_on(NO_RUN, nothing, self._begin)
        complete += self._extended(runs, NO_RUN, nothing, taken, Event(event, timestamp))
        return found + self._given(runs, complete, timestamp)

    def _go_on(
        self, number: int, run: Run, options: tuple[Option, ...]
    ) -> Generator[Question, bool, tuple[list[Option], int, bool]]:
        """The options that take the event, those that stay open, and whether the run is a match by this event's not
        belonging to the stages that must not come."""
        taken: list[Option] = []
        taking, still_open, ended = 0, run.ways, False
        for place, option in enumerate(options):
            bit = 1 << place
            if not still_open & bit:
                continue
            if (yield from self._stopped(number, run, option)) or option.yields_to & taking:
                still_open &= ~bit
            elif option.target == END:
                ended = option.contiguity == "strict"
                still_open &= ~bit if ended else still_open
            elif (yield Question(option.target, number)):
                taken.append(option)
                taking |= bit
                still_open &= still_open if option.contiguity == "any" else ~bit
            elif option.contiguity == "strict":
                still_open &= ~bit
        return taken, still_open, ended

    def _stopped(self, number: int, run: Run, option: Option) -> Generator[Question, bool, bool]:
        for place in option.negations:
            looked_for = run.fresh or self.stages[place].contiguity != "strict"
            if looked_for and (yield Question(place, number)):
                return True
        return False

    def _extended(self, runs: Runs, parent: int, run: Run, taken: list[Option], event: Event) -> list[int]:
        """Adds the run with one event more, for each way that takes it; gives those that are matches."""
        complete = []
        for option in taken:
            count = run.count + 1 if option.loop else 1
            ways = (1 << len(self.options(option.target, count))) - 1
            longer = Run(parent, event.number, option.target, count, event.timestamp, run.started, run.first, ways)
            number = runs.add(longer)
            if self.completes(option.target, count):
                complete.append(number)
        return complete

    def pass_time(self, runs: Runs, now: int) -> list[Found]:
        """Event time has come to `now`: every event up to it has been seen. The windows that are over end."""
        if self.window is None:
            return []
        over = [(number, run) for number, run in runs.live() if run.started + self.window <= now + 1]
        found: list[Found] = []
        for number, run in sorted(over, key=lambda each: (each[1].started, _rank(runs.path(each[0])))):
            if not runs.is_live(number):
                continue  # an earlier match has skipped it
            end = run.started + self.window - 1
            if self.is_waiting(run):
                found += self._given(runs, [number], end)
            elif not run.given and not self.completes(run.stage, run.count):
                found.append(_found(runs, runs.path(number), end, timed_out=True))
            runs.close(number)
        return found

    # -------------------------------------------------------------------------------------------------- after a match
    def _given(self, runs: Runs, complete: list[int], time: int) -> list[Found]:
        """Those that are complete at one moment, the earlier ones first, without those that these skip."""
        found: list[Found] = []
        bound = 0
        for path in sorted((runs.path(number) for number in complete), key=_rank):
            if path[0].first >= bound:
                found.append(_found(runs, path, time))
                bound = max(bound, self._bound(path))
        if bound:
            runs.close_before(bound)
        return found

    def _bound(self, path: tuple[Run, ...]) -> int:
        """Nothing that begins before this event goes on."""
        match self._skip.strategy:
            case "none":
                return 0
            case "to-next":
                return path[0].event + 1
            case "past-last":
                return path[-1].event + 1
        events = [run.event for run in path if self.stages[run.stage].name == self._skip.stage]
        if not events:
            return 0
        return events[0] if self._skip.strategy == "to-first" else events[-1]


def _found(runs: Runs, path: tuple[Run, ...], time: int, *, timed_out: bool = False) -> Found:
    return Found(path, tuple(runs.value(run.event) for run in path), time, timed_out)


def _rank(path: tuple[Run, ...]) -> tuple[tuple[int, int], ...]:
    """Which of those that are complete at one moment goes first: what takes earlier events."""
    return tuple((run.event, run.stage) for run in path)
