"""The operator behind `pattern`: a key's events in the order of event time, through the automaton.

Invariant: where there are watermarks, an event waits until one has come to its time-stamp; all of a key's events up to
that moment are then there, and go through in the order of (time-stamp, arrival). Where there are none, in the order of
arrival. Nothing of a step is stored before all of its conditions have answered.

State holds events, and what has been taken by which stage; never a condition.
"""

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from streamactors.elements import OutputTag
from streamactors.errors import InvalidDataflow, TooManyPartialMatches
from streamactors.metrics import Counter
from streamactors.operators.base import Context, KeyedOperator, Link, LinkContext, OperatorContext, OperatorSpec
from streamactors.operators.patterns.nfa import Found, Nfa, Question, Steps
from streamactors.operators.patterns.pattern import Match, Pattern
from streamactors.operators.patterns.runs import Run, Runs
from streamactors.operators.process import Hook, ProcessLink
from streamactors.operators.structure import keep_structure
from streamactors.state.descriptors import MapState, UnionListState
from streamactors.time.timers import Timer

T = TypeVar("T")

PARTIAL: Final = "partial_matches"
"""The state in which runs are."""


class Matching(Generic[T]):
    """One key's events in one call: the questions of the automaton are answered for `value`, each once."""

    def __init__(self, pattern: Pattern[T], runs: Runs, key: Any) -> None:
        self._stages = pattern.stages
        self._runs = runs
        self._key = key
        self._value: Any = None
        self._answers: dict[int, bool] = {}
        """Of conditions that do not see the match, by stage."""

    def take(self, value: T) -> None:
        self._value = value
        self._answers.clear()

    def known(self, question: Question) -> bool | None:
        return self._answers.get(question.stage)

    def ask(self, question: Question) -> Any:
        """What the user's condition returns."""
        stage = self._stages[question.stage]
        if stage.sees_match:
            return stage.where(self._value, self._match(question.run))
        return stage.where(self._value)

    def note(self, question: Question, answer: bool) -> bool:
        if not self._stages[question.stage].sees_match:
            self._answers[question.stage] = answer
        return answer

    def is_async(self, question: Question) -> bool:
        return self._stages[question.stage].is_async

    def _match(self, run: int) -> Match[T]:
        path = self._runs.path(run)
        values = tuple(self._runs.value(each.event) for each in path)
        return self.match(Found(path, values, path[-1].timestamp if path else 0))

    def match(self, found: Found) -> Match[T]:
        events: dict[str, list[T]] = {stage.name: [] for stage in self._stages if not stage.negated}
        for run, value in zip(found.path, found.values, strict=True):
            events[self._stages[run.stage].name].append(value)
        return Match(self._key, found.path[0].timestamp if found.path else 0, found.time, events)


@dataclass(frozen=True)
class Settings(Generic[T]):
    """Beside the pattern. `timed`: whether there are watermarks."""

    timed_out: OutputTag[Match[T]] | None = None
    late: OutputTag[T] | None = None
    max_partial_matches: int | None = None
    timed: bool = True


def pattern_operator(pattern: Pattern[Any], element_type: Any, settings: Settings[Any]) -> "PatternOperator":
    """Async where a condition is. A class of its own, since the type of its state is known here alone."""
    is_async = any(stage.is_async for stage in pattern.stages)
    base: type[PatternOperator] = AsyncPatternOperator if is_async else SyncPatternOperator
    states = {
        "waiting": MapState[int, Any](int, list[element_type]),
        "events": MapState[int, Any](int, element_type),
    }
    made: type[PatternOperator] = type("PatternOperator", (base,), states)
    return made(pattern, settings)


class PatternOperator(KeyedOperator[Any, Any, Match[Any]]):
    waiting: MapState[int, list[Any]]
    """Events that no watermark has come to, by time-stamp, in the order of arrival."""
    events: MapState[int, Any]
    """Those that partial matches hold, each once."""
    partial_matches = MapState(int, Run)
    structure = UnionListState(str)
    """Of the pattern that the partial matches belong to."""

    def __init__(self, pattern: Pattern[Any], settings: Settings[Any]) -> None:
        self._pattern = pattern
        self._nfa = Nfa(pattern)
        self._settings = settings
        self._late = Counter()

    def open(self, ctx: OperatorContext, /) -> None:
        self._late = ctx.metrics.counter("late_records")

    # ------------------------------------------------------------------------------------------------ with watermarks
    def _wait(self, value: Any, ctx: Context[Any, Match[Any]]) -> None:
        time = ctx.timestamp
        if time is None:
            raise InvalidDataflow(
                "a record without a time-stamp among others that have one: give its source watermarks"
            )
        if time <= ctx.watermark:
            self._late.inc()
            if self._settings.late is not None:
                ctx.emit_to(self._settings.late, value)
            return
        self.waiting[time] = [*self.waiting.get(time, ()), value]
        ctx.timers.event(time)

    def _begin(self, ctx: Context[Any, Any]) -> tuple[Runs, Matching[Any]]:
        runs = Runs(self.partial_matches, self.events)
        return runs, Matching(self._pattern, runs, ctx.key)

    def _end(self, runs: Runs, found: Iterable[Found], matching: Matching[Any], ctx: Context[Any, Match[Any]]) -> None:
        self._set_timers(runs, ctx)
        runs.settle()
        timed_out = self._settings.timed_out
        for each in found:
            match = matching.match(each)
            if not each.timed_out:
                ctx.emit(match)
            elif timed_out is not None:
                ctx.emit_to(timed_out, match)

    def _check_bound(self, runs: Runs) -> None:
        """After each event, since many may have one time-stamp, and each may double them."""
        bound = self._settings.max_partial_matches
        if bound is not None and runs.live_count > bound:
            raise TooManyPartialMatches(
                f"{runs.live_count} partial matches of one key, and max_partial_matches={bound}: let fewer begin or "
                "go on (within, followed_by instead of followed_by_any, bounded times, a skip strategy), or allow more"
            )

    def _set_timers(self, runs: Runs, ctx: Context[Any, Any]) -> None:
        """For the ends of the windows of what is live, and no others."""
        window = self._nfa.window
        if window is None:
            return
        started = {run.started for _, run in runs.live()}
        for time in sorted(started - runs.started):
            ctx.timers.event(time + window - 1, "within")
        for time in sorted(runs.started - started):
            ctx.timers.delete(time + window - 1, "within")

    @abstractmethod
    def on_timer(self, timer: Timer, ctx: Context[Any, Match[Any]], /) -> Awaitable[None] | None: ...


class SyncPatternOperator(PatternOperator):
    def process(self, value: Any, ctx: Context[Any, Match[Any]], /) -> None:
        if self._settings.timed:
            self._wait(value, ctx)
            return
        runs, matching = self._begin(ctx)
        self._end(runs, self._step(runs, matching, value, ctx.timestamp or 0), matching, ctx)

    def on_timer(self, timer: Timer, ctx: Context[Any, Match[Any]], /) -> None:
        time = timer.timestamp
        runs, matching = self._begin(ctx)
        found: list[Found] = []
        for value in self.waiting.pop(time, ()):
            found += self._step(runs, matching, value, time)
        found += self._nfa.pass_time(runs, time)
        self._end(runs, found, matching, ctx)

    def _step(self, runs: Runs, matching: Matching[Any], value: Any, time: int) -> Sequence[Found]:
        matching.take(value)
        steps = self._nfa.step(runs, value, time)
        answer: Any = None
        try:
            while True:
                question = steps.send(answer)
                answer = matching.known(question)
                if answer is None:
                    answer = matching.note(question, _plain(matching.ask(question)))
        except StopIteration as stop:
            self._check_bound(runs)
            return _found(stop)


class AsyncPatternOperator(PatternOperator):
    async def process(self, value: Any, ctx: Context[Any, Match[Any]], /) -> None:
        if self._settings.timed:
            self._wait(value, ctx)
            return
        runs, matching = self._begin(ctx)
        self._end(runs, await self._step(runs, matching, value, ctx.timestamp or 0), matching, ctx)

    async def on_timer(self, timer: Timer, ctx: Context[Any, Match[Any]], /) -> None:
        time = timer.timestamp
        runs, matching = self._begin(ctx)
        found: list[Found] = []
        for value in self.waiting.pop(time, ()):
            found += await self._step(runs, matching, value, time)
        found += self._nfa.pass_time(runs, time)
        self._end(runs, found, matching, ctx)

    async def _step(self, runs: Runs, matching: Matching[Any], value: Any, time: int) -> Sequence[Found]:
        matching.take(value)
        steps: Steps = self._nfa.step(runs, value, time)
        answer: Any = None
        try:
            while True:
                question = steps.send(answer)
                answer = matching.known(question)
                if answer is None:
                    result = matching.ask(question)
                    answer = matching.note(
                        question, bool(await result) if inspect.isawaitable(result) else bool(result)
                    )
        except StopIteration as stop:
            self._check_bound(runs)
            return _found(stop)


def _found(stop: StopIteration) -> Sequence[Found]:
    found: Sequence[Found] = stop.value
    return found


def _plain(answer: Any) -> bool:
    if answer is True or answer is False:
        return bool(answer)
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise InvalidDataflow("a plain function has returned an awaitable for where=: make it an `async def`")
    return bool(answer)


# ------------------------------------------------------------------------------------------------------------- the step
class PatternLink(ProcessLink):
    """Refuses partial matches of another pattern, before it takes a record."""

    def __init__(self, ctx: LinkContext, operator: PatternOperator, pattern: Pattern[Any]) -> None:
        on_timer = Hook.of(operator.on_timer, keyed=True)
        super().__init__(ctx, operator, Hook.of(operator.process, keyed=True), on_timer)
        self._structure = pattern.describe()

    async def open(self) -> None:
        what = "partial matches of another pattern"
        keep_structure(self.ctx, self._operator.structure, self._structure, [PARTIAL], what)
        await super().open()


@dataclass(frozen=True)
class PatternSpec(OperatorSpec, Generic[T]):
    pattern: Pattern[T]
    element_type: Any
    settings: Settings[T]

    @property
    def kind(self) -> str:
        return "pattern"

    @property
    def keyed_state(self) -> bool:
        return True

    def validate(self, uid: str) -> None:
        _check(self.pattern, self.settings, uid)

    def link(self, ctx: LinkContext) -> Link:
        if self.pattern.window is not None and not ctx.watermarks:
            raise InvalidDataflow(
                f"pattern {ctx.uid!r}: within(…) is about event time, and no source of this stream gives watermarks: "
                "give one by flow.source(…, watermarks=sa.Watermarks.…), or leave within out"
            )
        return PatternLink(ctx, self.operator(timed=ctx.watermarks), self.pattern)

    def operator(self, *, timed: bool = True) -> PatternOperator:
        return pattern_operator(self.pattern, self.element_type, replace(self.settings, timed=timed))


def _check(pattern: object, settings: Settings[Any], uid: str) -> None:
    if not isinstance(pattern, Pattern):
        raise InvalidDataflow(f"pattern {uid!r} takes a Pattern, made by sa.Pattern.begin(…), not {pattern!r}")
    try:
        pattern.validate()
    except InvalidDataflow as error:
        raise InvalidDataflow(f"pattern {uid!r}: {error}") from error
    _check_tag(uid, "timed_out", settings.timed_out)
    _check_tag(uid, "late", settings.late)
    if settings.timed_out is not None and pattern.window is None:
        raise InvalidDataflow(f"pattern {uid!r}: nothing times out without within(…): add it, or leave timed_out out")
    _check_bound(uid, settings.max_partial_matches)


def _check_tag(uid: str, name: str, tag: object) -> None:
    if tag is not None and not isinstance(tag, OutputTag):
        raise InvalidDataflow(f"pattern {uid!r}: {name}= takes an OutputTag, not {tag!r}")


def _check_bound(uid: str, bound: object) -> None:
    whole = isinstance(bound, int) and not isinstance(bound, bool) and bound >= 1
    if bound is not None and not whole:
        raise InvalidDataflow(f"pattern {uid!r}: max_partial_matches={bound!r} is no whole number from 1 up")
