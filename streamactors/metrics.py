"""Counters, gauges and histograms: numbers only, exported elsewhere (`observe/`).

Reading never raises: a gauge is the user's code, and one that fails must not keep the others from being told.
"""

import logging
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

log = logging.getLogger("streamactors.metrics")

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

EXACT: Final = 2**53
"""Below it, an int is told as it is."""


class Counter:
    """Only goes up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, by: float = 1) -> None:
        self.value += by


class Histogram:
    """Counts observations in the fixed `BUCKETS` (seconds, by convention)."""

    __slots__ = ("count", "counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.count += 1
        self.total += value


@dataclass(frozen=True, slots=True)
class Readings:
    """Of one group at one moment. `histograms`: how many observations were in each of the `BUCKETS` and above, and
    their sum. A gauge that fails is NaN."""

    counters: dict[str, float]
    gauges: dict[str, float]
    histograms: dict[str, tuple[tuple[int, ...], float]]

    def flat(self) -> dict[str, float]:
        """Counters and gauges by name, histograms as `name.count` and `name.sum`."""
        values = self.counters | self.gauges
        for name, (counts, total) in self.histograms.items():
            values[f"{name}.count"], values[f"{name}.sum"] = sum(counts), total
        return values


class MetricGroup:
    """The metrics of one operator subtask, by name; asking twice for a name gives the same object."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._failed: set[str] = set()
        """Those whose failure was logged."""

    def counter(self, name: str) -> Counter:
        return self._counters.setdefault(name, Counter())

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        self._gauges[name] = read

    def histogram(self, name: str) -> Histogram:
        return self._histograms.setdefault(name, Histogram())

    def read(self) -> dict[str, float]:
        """See `Readings.flat`."""
        return self.tell().flat()

    def tell(self) -> Readings:
        return Readings(
            {name: self._number(name, counter.value) for name, counter in self._counters.items()},
            {name: self._measured(name, gauge) for name, gauge in self._gauges.items()},
            {
                name: (tuple(histogram.counts), self._number(name, histogram.total))
                for name, histogram in self._histograms.items()
            },
        )

    def _measured(self, name: str, gauge: Callable[[], float]) -> float:
        try:
            return self._number(name, gauge())
        except Exception as error:
            return self._unreadable(name, error)

    def _number(self, name: str, value: Any) -> float:
        """Whatever stands for a number, such as one of numpy or a Decimal."""
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < EXACT):
            return value
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError) as error:
            return self._unreadable(name, error)

    def _unreadable(self, name: str, error: Exception) -> float:
        if name not in self._failed:  # it is read again and again
            self._failed.add(name)
            log.warning("metric %r can't be read: %s: %s", name, type(error).__name__, error, exc_info=error)
        return math.nan
