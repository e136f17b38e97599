"""The operator behind `pattern`: a key's events in the order of event time, through the automaton.

Invariant: where there are watermarks, an event waits until one has come to its time-stamp; all of a key's events up to
that moment are then there, and go through in the order of (time-stamp, arrival). Where there are none, in the order of
arrival. Nothing of a step is stored before all of its conditions have answered.

State holds events, and what has been taken by which stage; never a condition.
"""

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from streamactors.elements import DeadLetter, OutputTag
from streamactors.errors import InvalidDataflow, StreamactorsError, TooManyPartialMatches
from streamactors.metrics import Counter
from streamactors.operators.base import (
    Context,
    KeyedOperator,
    Link,
    LinkContext,
    OperatorContext,
    OperatorSpec,
    dead_letter,
    refuse_one_tag,
)
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
        self.runs = runs
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
        path = self.runs.path(run)
        values = tuple(self.runs.value(each.event) for each in path)
        return self.match(Found(path, values, path[-1].timestamp if path else 0))

    def match(self, found: Found) -> Match[T]:
        events: dict[str, list[T]] = {stage.name: [] for stage in self._stages if not stage.negated}
        for run, value in zip(found.path, found.values, strict=True):
            events[self._stages[run.stage].name].append(value)
        return Match(self._key, found.path[0].timestamp if found.path else 0, found.time, events)


@dataclass(frozen=True)
class Settings(Generic[T]):
    """Beside the pattern. `on_error`: where events go on which a condition fails; None: the job fails. `timed`: whether
    there are watermarks."""

    timed_out: OutputTag[Match[T]] | None = None
    late: OutputTag[T] | None = None
    max_partial_matches: int | None = None
    on_error: OutputTag[DeadLetter] | None = None
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
        self._dead = Counter()
        self._uid = ""

    def open(self, ctx: OperatorContext, /) -> None:
        self._uid = ctx.uid
        self._late = ctx.metrics.counter("late_records")
        self._dead = ctx.metrics.counter("dead_letters")

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

    def _begin(self, ctx: Context[Any, Any]) -> Matching[Any]:
        return Matching(self._pattern, Runs(self.partial_matches, self.events), ctx.key)

    def _end(self, found: Iterable[Found], matching: Matching[Any], ctx: Context[Any, Match[Any]]) -> None:
        runs = matching.runs
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

    def _kept(self, matching: Matching[Any]) -> Runs | None:
        """What the partial matches are before an event, if they may have to become that again."""
        return None if self._settings.on_error is None else matching.runs.copy()

    def _give_up(
        self, value: Any, error: Exception, kept: Runs | None, matching: Matching[Any], ctx: Context[Any, Any]
    ) -> None:
        """An event on which a condition has failed is as if it had not come; what streamactors itself refuses, or can't
        read, is no condition's. To be called while `error` is handled."""
        tag = self._settings.on_error
        if tag is None or kept is None or isinstance(error, StreamactorsError):
            raise error
        matching.runs = kept
        self._dead.inc()
        ctx.emit_to(tag, dead_letter(self._uid, value, None, error))

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
        matching = self._begin(ctx)
        self._end(self._take(matching, value, ctx.timestamp or 0, ctx), matching, ctx)

    def on_timer(self, timer: Timer, ctx: Context[Any, Match[Any]], /) -> None:
        time = timer.timestamp
        matching = self._begin(ctx)
        found: list[Found] = []
        for value in self.waiting.pop(time, ()):
            found += self._take(matching, value, time, ctx)
        found += self._nfa.pass_time(matching.runs, time)
        self._end(found, matching, ctx)

    def _take(self, matching: Matching[Any], value: Any, time: int, ctx: Context[Any, Any]) -> Sequence[Found]:
        kept = self._kept(matching)
        try:
            return self._step(matching, value, time)
        except Exception as error:
            self._give_up(value, error, kept, matching, ctx)
            return ()

    def _step(self, matching: Matching[Any], value: Any, time: int) -> Sequence[Found]:
        matching.take(value)
        steps = self._nfa.step(matching.runs, value, time)
        answer: Any = None
        while not isinstance(asked := _next(steps, answer), list):
            answer = matching.known(asked)
            if answer is None:
                answer = matching.note(asked, _plain(matching.ask(asked)))
        self._check_bound(matching.runs)
        return asked


class AsyncPatternOperator(PatternOperator):
    async def process(self, value: Any, ctx: Context[Any, Match[Any]], /) -> None:
        if self._settings.timed:
            self._wait(value, ctx)
            return
        matching = self._begin(ctx)
        self._end(await self._take(matching, value, ctx.timestamp or 0, ctx), matching, ctx)

    async def on_timer(self, timer: Timer, ctx: Context[Any, Match[Any]], /) -> None:
        time = timer.timestamp
        matching = self._begin(ctx)
        found: list[Found] = []
        for value in self.waiting.pop(time, ()):
            found += await self._take(matching, value, time, ctx)
        found += self._nfa.pass_time(matching.runs, time)
        self._end(found, matching, ctx)

    async def _take(self, matching: Matching[Any], value: Any, time: int, ctx: Context[Any, Any]) -> Sequence[Found]:
        kept = self._kept(matching)
        try:
            return await self._step(matching, value, time)
        except Exception as error:
            self._give_up(value, error, kept, matching, ctx)
            return ()

    async def _step(self, matching: Matching[Any], value: Any, time: int) -> Sequence[Found]:
        matching.take(value)
        steps = self._nfa.step(matching.runs, value, time)
        answer: Any = None
        while not isinstance(asked := _next(steps, answer), list):
            answer = matching.known(asked)
            if answer is None:
                result = matching.ask(asked)
                answer = matching.note(asked, bool(await result) if inspect.isawaitable(result) else bool(result))
        self._check_bound(matching.runs)
        return asked


def _next(steps: Steps, answer: Any) -> Question | list[Found]:
    """The next question, or at the end what was found. Apart from the conditions, one of which may raise StopIteration
    as well."""
    try:
        return steps.send(answer)
    except StopIteration as stop:
        found: list[Found] = stop.value
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

    @property
    def error_tag(self) -> OutputTag[DeadLetter] | None:
        return self.settings.on_error

    @property
    def beside(self) -> Mapping[str, OutputTag[Any]]:
        told = {"timed_out": self.settings.timed_out, "late": self.settings.late}
        return {option: tag for option, tag in told.items() if tag is not None}

    def validate(self, uid: str) -> None:
        _check(self.pattern, self.settings, uid)

    def link(self, ctx: LinkContext) -> Link:
        if self.pattern.window is not None and not ctx.watermarks:
            raise InvalidDataflow(
                f"pattern {ctx.uid!r}: within(…) is about event time, and no source of this stream gives watermarks: "
                "give one by flow.source(…, watermarks=sa.Watermarks.…), or leave within out"
            )
        if self.settings.on_error is not None and ctx.watermarks:  # for records that can't wait for their time
            ctx = replace(ctx, on_error=self.settings.on_error)
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
    refuse_one_tag(f"pattern {uid!r}", timed_out=settings.timed_out, late=settings.late, on_error=settings.on_error)
    _check_bound(uid, settings.max_partial_matches)


def _check_tag(uid: str, name: str, tag: object) -> None:
    if tag is not None and not isinstance(tag, OutputTag):
        raise InvalidDataflow(f"pattern {uid!r}: {name}= takes an OutputTag, not {tag!r}")


def _check_bound(uid: str, bound: object) -> None:
    whole = isinstance(bound, int) and not isinstance(bound, bool) and bound >= 1
    if bound is not None and not whole:
        raise InvalidDataflow(f"pattern {uid!r}: max_partial_matches={bound!r} is no whole number from 1 up")
