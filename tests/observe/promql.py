"""As much of Prometheus' query language as the dashboard uses, over two scrapes of an endpoint."""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
TOKEN = re.compile(r'\s*("[^"]*"|[a-zA-Z_:][\w:]*|\d+\.?\d*[smh]?|=~|==|[(){}\[\],=/\-])')


@dataclass(frozen=True)
class Scrape:
    time: float
    series: dict[str, Vector]

    @classmethod
    def of(cls, time: float, text: str) -> "Scrape":
        series: defaultdict[str, Vector] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = frozenset(sample.labels.items())
                assert labels not in series[sample.name], f"twice: {sample}"
                series[sample.name][labels] = sample.value
        return cls(time, dict(series))


FOLDS: dict[str, Callable[[list[float]], float]] = {"sum": math.fsum, "max": max, "min": min}


class Query:
    """One evaluation, at the second scrape. Raises AssertionError for what it does not know."""

    def __init__(self, text: str, before: Scrape, now: Scrape) -> None:
        self._tokens = TOKEN.findall(text)
        assert "".join(self._tokens) == re.sub(r'\s+(?=([^"]*"[^"]*")*[^"]*$)', "", text), f"can't be read: {text}"
        self._before, self._now = before, now

    def value(self) -> Vector:
        vector = self._expression()
        assert not self._tokens, f"left over: {self._tokens}"
        return vector

    def _take(self, expected: str | None = None) -> str:
        token: str = self._tokens.pop(0)
        assert expected in (None, token), f"{token!r} instead of {expected!r}"
        return token

    def _next_is(self, *tokens: str) -> bool:
        return bool(self._tokens) and self._tokens[0] in tokens

    def _expression(self) -> Vector:
        left = self._term()
        while self._next_is("/", "-", "=="):
            left = _combined(self._take(), left, self._term())
        return left

    def _term(self) -> Vector:
        name = self._take()
        if re.fullmatch(r"[\d.]+", name):
            return {frozenset(): float(name)}
        if name in FOLDS:
            return self._aggregate(FOLDS[name])
        if name == "time":
            self._take("("), self._take(")")
            return {frozenset(): self._now.time}
        if name in ("rate", "increase"):
            return self._over_time(per_second=name == "rate")
        if name == "histogram_quantile":
            self._take("(")
            share = float(self._take())
            self._take(",")
            buckets = self._expression()
            self._take(")")
            return _quantiles(share, buckets)
        return self._selected(name)[1]

    def _aggregate(self, fold: Callable[[list[float]], float]) -> Vector:
        self._take("by"), self._take("(")
        kept = set()
        while not self._next_is(")"):
            kept.add(self._take())
            if self._next_is(","):
                self._take()
        self._take(")"), self._take("(")
        inner = self._expression()
        self._take(")")
        groups: defaultdict[Labels, list[float]] = defaultdict(list)
        for labels, value in inner.items():
            groups[frozenset(pair for pair in labels if pair[0] in kept)].append(value)
        return {labels: fold(values) for labels, values in groups.items()}

    def _over_time(self, *, per_second: bool) -> Vector:
        self._take("(")
        before, now = self._selected(self._take())
        self._take("["), self._take(), self._take("]"), self._take(")")
        seconds = self._now.time - self._before.time if per_second else 1.0
        return {labels: (value - before[labels]) / seconds for labels, value in now.items() if labels in before}

    def _selected(self, name: str) -> tuple[Vector, Vector]:
        matches: dict[str, str] = {}
        if self._next_is("{"):
            self._take()
            label, _, value = self._take(), self._take("=~"), self._take()
            matches[label] = value.strip('"')
            self._take("}")
        assert name in self._now.series, f"the endpoint has no {name}"

        def chosen(scrape: Scrape) -> Vector:
            return {
                labels: value
                for labels, value in scrape.series.get(name, {}).items()
                if all(re.fullmatch(match, dict(labels)[label]) for label, match in matches.items())
            }

        return chosen(self._before), chosen(self._now)


def _combined(operator: str, left: Vector, right: Vector) -> Vector:
    if operator == "==":
        (wanted,) = right.values()
        return {labels: value for labels, value in left.items() if value == wanted}
    if frozenset() in left and len(left) == 1:
        left = dict.fromkeys(right, left[frozenset()])
    assert left.keys() == right.keys(), f"labels that do not match: {left} {operator} {right}"
    if operator == "-":
        return {labels: value - right[labels] for labels, value in left.items()}
    return {labels: value / right[labels] if right[labels] else math.nan for labels, value in left.items()}


def _quantiles(share: float, buckets: Vector) -> Vector:
    """The upper bound of the bucket that it lies in."""
    bounds: defaultdict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets.items():
        rest = frozenset(pair for pair in labels if pair[0] != "le")
        bounds[rest].append((float(dict(labels)["le"]), count))
    return {labels: _quantile(share, sorted(counted)) for labels, counted in bounds.items()}


def _quantile(share: float, counted: list[tuple[float, float]]) -> float:
    total = counted[-1][1]
    return next(bound for bound, count in counted if count >= share * total) if total else math.nan
