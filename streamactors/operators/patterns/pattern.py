"""`Pattern`: what users write (Flink CEP: Pattern), a frozen list of stages; and what of it is senseless.

Whatever can't match, or would not mean what it says, is refused when it is written, by the name of its stage; what only
the whole pattern shows, when it is given to a stream.
"""

import datetime as dt
import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Literal, NoReturn, Self, TypeVar, overload

import msgspec

from streamactors.errors import InvalidDataflow
from streamactors.operators.base import is_async

T = TypeVar("T")
U = TypeVar("U")

Contiguity = Literal["strict", "relaxed", "any"]
SkipStrategy = Literal["none", "past-last", "to-next", "to-first", "to-last"]

_MILLISECOND: Final = dt.timedelta(milliseconds=1)
_STRATEGIES: Final = ("none", "past-last", "to-next", "to-first", "to-last")
_WORDS: Final[dict[Contiguity, str]] = {"strict": "next", "relaxed": "followed by", "any": "followed by any"}


class Match(msgspec.Struct, Generic[T], frozen=True):
    """Events of one key that fit a pattern: `match["stage"]` are those of a stage, in their order.

    `start` and `end`: milliseconds since the epoch, of the first event, and of the moment when it was complete (or
    timed out); 0 where the stream has no event time. A condition gets the match so far, up to its last event.
    """

    key: Any
    start: int
    end: int
    events: dict[str, list[T]]
    """By stage, in the order of the pattern; [] for one that was left out, or has not come yet."""

    def __getitem__(self, stage: str) -> list[T]:
        return self.events[stage]


@dataclass(frozen=True)
class Stage:
    """One step of a pattern. `at_most` None: without end."""

    name: str
    where: Callable[..., Any]
    contiguity: Contiguity
    """To the event of the stage before it."""
    negated: bool = False
    at_least: int = 1
    at_most: int | None = 1
    optional: bool = False
    greedy: bool = False
    looping: Contiguity = "relaxed"
    """Between its own events."""
    sees_match: bool = False
    """Whether its condition takes the match so far."""

    @property
    def is_async(self) -> bool:
        return is_async(self.where)

    @property
    def repeats(self) -> bool:
        return self.at_most is None or self.at_most > 1

    def describe(self) -> str:
        """All of its structure, in words: two stages with the same words make the same automaton."""
        if self.negated:
            return f"not {_WORDS[self.contiguity]} {self.name}"
        words = [_WORDS[self.contiguity], self.name]
        if self.repeats:
            most = "" if self.at_most is None else self.at_most
            words.append(f"{{{self.at_least},{most}}} {self.looping}")
        words += ["optional"] * self.optional + ["greedy"] * self.greedy
        return " ".join(words)


@dataclass(frozen=True)
class Skip:
    """What goes on after a match (Flink: AfterMatchSkipStrategy). `stage`: for to-first and to-last."""

    strategy: SkipStrategy = "none"
    stage: str | None = None


class Pattern(Generic[T]):
    """Stages that events of one key go through, in order. Each method gives a new pattern.

    `where(event)` or `where(event, match_so_far)`, `def` or `async def`, says whether an event belongs to the stage.
    """

    def __init__(self, stages: Iterable[Stage], within: int | None = None, skip: Skip | None = None) -> None:
        self.stages = tuple(stages)
        self.window = within
        """Milliseconds, or None."""
        self.skips = skip or Skip()

    # ------------------------------------------------------------------------------------------------------- stages
    @overload
    @classmethod
    def begin(cls, stage: str, where: Callable[[U], bool | Awaitable[bool]]) -> "Pattern[U]": ...
    @overload
    @classmethod
    def begin(cls, stage: str, where: Callable[[U, Match[U]], bool | Awaitable[bool]]) -> "Pattern[U]": ...
    @classmethod
    def begin(cls, stage: str, where: Callable[..., Any]) -> "Pattern[Any]":
        """The first stage: every event that fits it begins a match of its own."""
        return Pattern[Any]([_stage((), stage, where, "any")])

    def next(self, stage: str, where: Callable[..., bool | Awaitable[bool]]) -> Self:
        """The very next event of the key (strict contiguity)."""
        return self._then(stage, where, "strict")

    def followed_by(self, stage: str, where: Callable[..., bool | Awaitable[bool]]) -> Self:
        """The first event that fits, after any that do not (relaxed contiguity)."""
        return self._then(stage, where, "relaxed")

    def followed_by_any(self, stage: str, where: Callable[..., bool | Awaitable[bool]]) -> Self:
        """Each event that fits, after any others: a match for each (non-deterministic relaxed contiguity)."""
        return self._then(stage, where, "any")

    def not_next(self, stage: str, where: Callable[..., bool | Awaitable[bool]]) -> Self:
        """The very next event does not fit."""
        return self._then(stage, where, "strict", negated=True)

    def not_followed_by(self, stage: str, where: Callable[..., bool | Awaitable[bool]]) -> Self:
        """No event fits from here up to and with the next stage's; as the last stage: until `within` is over."""
        return self._then(stage, where, "relaxed", negated=True)

    def _then(self, name: str, where: Any, contiguity: Contiguity, *, negated: bool = False) -> Self:
        stage = _stage(self.stages, name, where, contiguity)
        return self._with(stages=(*self.stages, replace(stage, negated=negated)))

    # -------------------------------------------------------------------------------------------------- quantifiers
    def times(self, at_least: int, at_most: int | None = None) -> Self:
        """The stage takes that many events; without `at_most`, `at_least` or more. times(0, n): optional."""
        last = self._quantified(f"times({at_least}, {at_most})")
        if last.at_most != 1:
            raise InvalidDataflow(f"stage {last.name!r} has been given how many times already")
        _check_times(last.name, at_least, at_most)
        return self._last(at_least=max(at_least, 1), at_most=at_most, optional=last.optional or at_least == 0)

    def one_or_more(self) -> Self:
        return self.times(1)

    def optional(self) -> Self:
        """The stage may be left out."""
        self._quantified("optional()")
        return self._last(optional=True)

    def greedy(self) -> Self:
        """As long as the stage can take an event, no later stage gets one."""
        last = self._quantified("greedy()")
        if last.looping == "any":
            _refuse(last, "greedy() with allow_combinations(), which asks for all ways: leave one out")
        return self._last(greedy=True)

    def consecutive(self) -> Self:
        """The stage's events follow each other directly (Flink: consecutive)."""
        self._repeating("consecutive()")
        return self._last(looping="strict")

    def allow_combinations(self) -> Self:
        """The stage may pass over events that fit it (Flink: allowCombinations)."""
        if self._repeating("allow_combinations()").greedy:
            _refuse(self.stages[-1], "greedy() with allow_combinations(), which asks for all ways: leave one out")
        return self._last(looping="any")

    def _repeating(self, what: str) -> Stage:
        last = self._quantified(what)
        if not last.repeats:
            _refuse(last, f"{what} is about a stage that takes several events: call one_or_more() or times(…) first")
        return last

    def _quantified(self, what: str) -> Stage:
        last = self.stages[-1]
        if last.negated:
            _refuse(last, f"{what} makes no sense for a stage that must not come")
        return last

    # ---------------------------------------------------------------------------------------------------- the whole
    def within(self, duration: dt.timedelta) -> Self:
        """All of a match, from its first event: events that come `duration` later or more don't belong to it."""
        _check_window(duration)
        if self.window is not None:
            raise InvalidDataflow("within(…) holds for the whole pattern: give it once")
        return self._with(within=duration // _MILLISECOND)

    def skip(self, strategy: SkipStrategy, stage: str | None = None) -> Self:
        """What a match leaves of those that have begun, and would share events with it; all without this."""
        if strategy not in _STRATEGIES:
            raise InvalidDataflow(f"skip({strategy!r}): one of {', '.join(_STRATEGIES)}")
        if (stage is None) is (strategy in ("to-first", "to-last")):
            raise InvalidDataflow(f"skip({strategy!r}, {stage!r}): to-first and to-last take a stage, others none")
        return self._with(skip=Skip(strategy, stage))

    def describe(self) -> str:
        """Its structure in words, by which a restore tells whether partial matches still fit: all but conditions and
        what happens after a match."""
        window = "" if self.window is None else f", within {self.window} ms"
        stages = ", ".join(stage.describe() for stage in self.stages)
        return f"begin {stages.removeprefix(_WORDS['any']).lstrip()}{window}"

    def __repr__(self) -> str:
        return f"<Pattern {self.describe()}>"

    def _last(self, **changes: Any) -> Self:
        return self._with(stages=(*self.stages[:-1], replace(self.stages[-1], **changes)))

    def _with(
        self, *, stages: tuple[Stage, ...] | None = None, within: int | None = None, skip: Skip | None = None
    ) -> Self:
        return type(self)(
            self.stages if stages is None else stages, self.window if within is None else within, skip or self.skips
        )

    # --------------------------------------------------------------------------------------------------- validation
    def validate(self) -> None:
        """Raises InvalidDataflow for what only the whole pattern shows."""
        wanted = [stage for stage in self.stages if not stage.negated]
        if all(stage.optional for stage in wanted):
            raise InvalidDataflow(f"{self!r} would match nothing at all, everywhere: one stage must not be optional")
        for place, stage in enumerate(self.stages):
            if stage.negated:
                self._check_negation(place, stage)
            if stage.greedy:
                self._check_greedy(place, stage)
        named = self.skips.stage
        if named is not None and named not in {stage.name for stage in wanted}:
            raise InvalidDataflow(f"skip({self.skips.strategy!r}, {named!r}): no stage of {self!r} that takes events")

    def _check_negation(self, place: int, stage: Stage) -> None:
        before, after = self.stages[:place], [each for each in self.stages[place + 1 :] if not each.negated]
        if all(each.optional or each.negated for each in before):
            _refuse(stage, "nothing before it is sure to come, so that it is not said from when on it must not")
        if after and all(each.optional for each in after):
            _refuse(stage, "what follows it is optional, so that it is not said until when it must not come")
        if not after and stage.contiguity == "relaxed" and self.window is None:
            _refuse(stage, "not_followed_by is last, and would have to wait for ever: add within(…)")

    def _check_greedy(self, place: int, stage: Stage) -> None:
        if not stage.optional and stage.at_least == stage.at_most:
            _refuse(stage, f"greedy() has nothing to choose: it takes {stage.at_least} in any case")
        if place == len(self.stages) - 1:
            _refuse(
                stage,
                "greedy() on the last stage has nothing to take events from: a match is given as soon as it is "
                "complete. Add a stage that ends it, or leave greedy() out",
            )


def _refuse(stage: Stage, why: str) -> NoReturn:
    raise InvalidDataflow(f"stage {stage.name!r} of the pattern: {why}")


def _stage(before: tuple[Stage, ...], name: object, where: Any, contiguity: Contiguity) -> Stage:
    if not isinstance(name, str) or not name:
        raise InvalidDataflow(f"a stage of a pattern is named by a string, not {name!r}")
    if name in {stage.name for stage in before}:
        raise InvalidDataflow(f"the pattern has a stage {name!r} already: match[{name!r}] would be of two")
    return Stage(name, where, contiguity, sees_match=_takes_match(name, where))


def _takes_match(stage: str, where: Any) -> bool:
    if not callable(where):
        raise InvalidDataflow(f"stage {stage!r} of the pattern: where is a function, not {where!r}")
    try:
        parameters = list(inspect.signature(where).parameters.values())
    except (TypeError, ValueError):
        return False  # a builtin that does not tell
    needed = [one for one in parameters if one.default is one.empty and one.kind in _POSITIONAL]
    if len(needed) > 2 or not any(one.kind in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL) for one in parameters):
        raise InvalidDataflow(f"stage {stage!r} of the pattern: where takes the event, or it and the match so far")
    return len(needed) == 2


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _check_times(stage: str, at_least: object, at_most: object) -> None:
    if not _is_count(at_least) or not (at_most is None or _is_count(at_most)):
        raise InvalidDataflow(f"stage {stage!r} of the pattern: times({at_least!r}, {at_most!r}) takes whole numbers")
    if at_most is not None and not 1 <= at_most >= at_least:  # type: ignore[operator]
        raise InvalidDataflow(
            f"stage {stage!r} of the pattern: times({at_least}, {at_most}) takes no event at all; at_most is 1 at "
            "least, and no less than at_least"
        )


def _check_window(duration: object) -> None:
    if not isinstance(duration, dt.timedelta) or duration < _MILLISECOND or duration % _MILLISECOND:
        raise InvalidDataflow(
            f"within({duration!r}): give a timedelta of a millisecond at least, in whole milliseconds"
        )


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
