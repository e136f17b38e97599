"""What must come out of the built-in flows, whatever goes wrong."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from streamactors.testing.simulation.events import Event, Update, named
from streamactors.testing.simulation.result import Check, Outcome
from streamactors.testing.simulation.world import World


class Counted(Protocol):
    """The `count`-th of its key, for record `number` of `split`."""

    @property
    def split(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def count(self) -> int: ...


CountedT = TypeVar("CountedT", bound=Counted)


def counted(inputs: Callable[[World], Sequence[Event]], *stages: str, keyed_sink: bool) -> Check:
    """Every event counted once per key, in the order of its split; the state is the fold of the input. `keyed_sink`:
    its own order tells too."""

    def check(outcome: Outcome) -> None:
        wanted = inputs(outcome.world)
        found: list[Update] = outcome.output()
        no_loss(wanted, [(update.split, update.number) for update in found])
        if not outcome.exactly_once:
            return
        once_by_key(found, keyed_sink=keyed_sink)
        for stage in stages:
            _is_fold(wanted, outcome.states[stage], stage)

    return check


def once_by_key(found: Sequence[CountedT], where: str = "", *, keyed_sink: bool = False) -> dict[str, list[CountedT]]:
    """Those of each key by their counts. Nothing came twice, and each was counted once, in the order of its split."""
    nothing_twice([(each.split, each.number) for each in found])
    by_key: defaultdict[str, list[CountedT]] = defaultdict(list)
    for each in found:
        by_key[each.key].append(each)
    for key, of_key in by_key.items():
        if not keyed_sink:
            of_key.sort(key=lambda each: each.count)
        counts = [each.count for each in of_key]
        assert counts == list(range(1, len(counts) + 1)), f"{where}key {key}: counted {counts}"
        in_order([(each.split, each.number) for each in of_key], f"{where}key {key}")
    return by_key


def _is_fold(wanted: Sequence[Event], states: dict[str, dict[Any, Any]], stage: str) -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    last: defaultdict[str, dict[str, int]] = defaultdict(dict)
    seen: defaultdict[str, list[str]] = defaultdict(list)
    for event in wanted:
        counts[event.key] += 1
        last[event.key][event.split] = event.number
        seen[event.key].append(named(event))
    held, kept, listed = states["count"], states["last"], states["seen"]
    assert held == counts, f"{stage}: its state holds the counts {held}, not {dict(counts)}"
    assert kept == last, f"{stage}: its state holds the last numbers {kept}, not {dict(last)}"
    unequal = [key for key in seen.keys() | listed.keys() if Counter(seen[key]) != Counter(listed.get(key, []))]
    assert not unequal, f"{stage}: its state holds other lists than that of the input, of {sorted(unequal)}"


def passed_on(inputs: Callable[[World], Sequence[Event]]) -> Check:
    """Every event once, in any order."""

    def check(outcome: Outcome) -> None:
        found = [(event.split, event.number) for event in outcome.output()]
        no_loss(inputs(outcome.world), found)
        if outcome.exactly_once:
            nothing_twice(found)

    return check


def no_loss(wanted: Sequence[Event], found: Sequence[tuple[str, int]], where: str = "output") -> None:
    lost = {(event.split, event.number) for event in wanted} - set(found)
    assert not lost, f"{where}: {len(lost)} of {len(wanted)} records are lost: {sorted(lost)[:10]}"


def nothing_twice(found: Sequence[Any]) -> None:
    seen: set[Any] = set()
    doubled = [record for record in found if record in seen or seen.add(record)]  # type: ignore[func-returns-value]
    assert not doubled, f"{len(doubled)} records came twice: {sorted(doubled)[:10]}"


def in_order(found: Sequence[tuple[str, int]], where: str) -> None:
    last: dict[str, int] = {}
    for split, number in found:
        assert number > last.get(split, -1), f"{where}: {split}@{number} came after {split}@{last[split]}"
        last[split] = number
