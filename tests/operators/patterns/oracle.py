"""What a pattern means, by definition: every way of choosing events is tried, and judged by the rules. No automaton.

A *choice* is a tuple of (stage, event), both by their places. It is valid if each of its links is; what it means that a
stage may, must not or greedily does take an event is defined by whether a longer choice would be valid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from streamactors.operators.patterns.pattern import Pattern

Choice = tuple[tuple[int, int], ...]
LAST = 10**9


@dataclass(frozen=True)
class Oracle:
    """`fits(stage, event, choice so far)`; `times`: of the events, in order."""

    pattern: Pattern[Any]
    times: list[int]
    fits: Callable[[int, int, Choice], bool]
    imagined: int = field(default=-1)
    """A stage that alone is fit by one more event after the last."""

    # ------------------------------------------------------------------------------------------------------- rules
    def fit(self, stage: int, event: int, so_far: Choice) -> bool:
        if event == len(self.times):
            return stage == self.imagined
        return self.fits(stage, event, so_far)

    def in_window(self, first: int, event: int) -> bool:
        if self.pattern.window is None or event == len(self.times):
            return True
        return self.times[event] - self.times[first] < self.pattern.window

    def follows(self, so_far: Choice, stage: int, event: int) -> bool:
        """Whether a valid choice stays so with this event."""
        stages = self.pattern.stages
        before, last = so_far[-1] if so_far else (-1, event - 1)
        if stages[stage].negated or stage < before or event <= last or not self.structure(so_far, stage):
            return False
        if so_far and not self.in_window(so_far[0][1], event):
            return False
        if not self.fit(stage, event, so_far):
            return False
        contiguity = stages[stage].looping if stage == before else stages[stage].contiguity
        if so_far and contiguity == "strict" and event != last + 1:
            return False
        if so_far and contiguity == "relaxed" and any(self.fit(stage, m, so_far) for m in range(last + 1, event)):
            return False
        return stage == before or self.leaves(so_far, before, stage, last, event)

    def structure(self, so_far: Choice, stage: int) -> bool:
        stages = self.pattern.stages
        before = so_far[-1][0] if so_far else -1
        count = sum(1 for each, _ in so_far if each == before)
        if stage == before:
            most = stages[stage].at_most
            return most is None or count < most
        enough = before < 0 or count >= stages[before].at_least
        return enough and all(each.optional or each.negated for each in stages[before + 1 : stage])

    def leaves(self, so_far: Choice, before: int, stage: int, last: int, event: int) -> bool:
        """From one stage to a later one: what must not come has not, and what is greedy had no chance."""
        stages = self.pattern.stages
        for place in range(max(before, 0), stage):
            between = range(last + 1, min(event + 1, len(self.times) + 1))
            if stages[place].negated and place > before:
                looked_at = list(between)[:1] if stages[place].contiguity == "strict" else between
                inside = [m for m in looked_at if not so_far or self.in_window(so_far[0][1], m)]
                if any(self.fit(place, m, so_far) for m in inside):
                    return False
            if stages[place].greedy and any(self.follows(so_far, place, m) for m in between):
                return False
        return True

    # ------------------------------------------------------------------------------------------------------- choices
    def choices(self, so_far: Choice = ()) -> Iterator[Choice]:
        for event in range(so_far[-1][1] + 1 if so_far else 0, len(self.times)):
            for stage in range(len(self.pattern.stages)):
                if self.follows(so_far, stage, event):
                    longer = (*so_far, (stage, event))
                    yield longer
                    yield from self.choices(longer)

    def completed(self, choice: Choice) -> tuple[int, int] | None:
        """When it is a match: (time, event), LAST for the end of its window; None: never."""
        stages, (stage, last) = self.pattern.stages, choice[-1]
        enough = sum(1 for each, _ in choice if each == stage) >= stages[stage].at_least
        after = stages[stage + 1 :]
        if not enough or not all(each.optional or each.negated for each in after):
            return None
        negated = [each for each in after if each.negated]
        if not negated:
            return self.times[last], last
        decided = all(each.contiguity == "strict" for each in negated)
        coming = last + 1 < len(self.times) and self.in_window(choice[0][1], last + 1)
        if decided and coming:
            clear = self.leaves(choice, stage, len(stages), last, last + 1)
            return (self.times[last + 1], last + 1) if clear else None
        if self.pattern.window is None or not self.leaves(choice, stage, len(stages), last, len(self.times) - 1):
            return None
        return self.window_end(choice), LAST

    def window_end(self, choice: Choice) -> int:
        assert self.pattern.window is not None
        return self.times[choice[0][1]] + self.pattern.window - 1

    def is_live(self, choice: Choice) -> bool:
        """Whether one more event, if only it came in time, could make the choice longer."""
        stages = self.pattern.stages
        for stage in range(choice[-1][0], len(stages)):
            if stages[stage].negated:
                continue
            if Oracle(self.pattern, self.times, self.fits, stage).follows(choice, stage, len(self.times)):
                return True
        return False

    def ended(self, choice: Choice) -> "Oracle":
        """As it is when the choice's window is over: without the events that come later."""
        inside = [time for event, time in enumerate(self.times) if self.in_window(choice[0][1], event)]
        return Oracle(self.pattern, inside, self.fits)

    # ------------------------------------------------------------------------------------------------------- results
    def results(self) -> list[tuple[Choice, int, bool]]:
        """(choice, when, timed out) of what comes out once all windows are over, in order."""
        moments: list[tuple[tuple[int, int, Any], Choice, bool]] = []
        for choice in self.choices():
            rank = tuple((event, stage) for stage, event in choice)
            moment = self.completed(choice)
            if moment is not None:
                moments.append(((*moment, rank), choice, False))
            elif self.pattern.window is not None and not self.given(choice) and self.ended(choice).is_live(choice):
                moments.append(((self.window_end(choice), LAST, rank), choice, True))
        bound, results = 0, []
        for (time, _, _), choice, timed_out in sorted(moments, key=lambda each: each[0]):
            if choice[0][1] >= bound:
                results.append((choice, time, timed_out))
                bound = bound if timed_out else max(bound, self.bound(choice))
        return results

    def given(self, choice: Choice) -> bool:
        stages = self.pattern.stages
        enough = sum(1 for each, _ in choice if each == choice[-1][0]) >= stages[choice[-1][0]].at_least
        return enough and all(each.optional and not each.negated for each in stages[choice[-1][0] + 1 :])

    def bound(self, choice: Choice) -> int:
        skip = self.pattern.skips
        named = [event for stage, event in choice if self.pattern.stages[stage].name == skip.stage]
        bounds = {"none": 0, "to-next": choice[0][1] + 1, "past-last": choice[-1][1] + 1}
        if named:
            bounds |= {"to-first": named[0], "to-last": named[-1]}
        return bounds.get(skip.strategy, 0)
