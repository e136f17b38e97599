"""Counters, gauges and histograms: numbers only, exported elsewhere (`observe/`).

Reading never raises: a gauge is the user's code, and one that fails must not keep the others from being told.
"""

import logging
import math
from bisect import bisect_left
from collections.abc import Callable

log = logging.getLogger("streamactors.metrics")

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


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


class MetricGroup:
    """The metrics of one operator subtask, by name; asking twice for a name gives the same object."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._failed: set[str] = set()
        """Gauges whose failure was logged."""

    def counter(self, name: str) -> Counter:
        return self._counters.setdefault(name, Counter())

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        self._gauges[name] = read

    def histogram(self, name: str) -> Histogram:
        return self._histograms.setdefault(name, Histogram())

    def read(self) -> dict[str, float]:
        """A snapshot: counters and gauges by name, histograms as `name.count` and `name.sum`. NaN for a gauge that
        fails."""
        values = {name: counter.value for name, counter in self._counters.items()}
        values |= {name: self._measured(name, gauge) for name, gauge in self._gauges.items()}
        for name, histogram in self._histograms.items():
            values[f"{name}.count"], values[f"{name}.sum"] = histogram.count, histogram.total
        return values

    def _measured(self, name: str, gauge: Callable[[], float]) -> float:
        try:
            return gauge()
        except Exception as error:
            if name not in self._failed:  # it is read again and again
                self._failed.add(name)
                log.warning("gauge %r can't be read: %s: %s", name, type(error).__name__, error, exc_info=error)
            return math.nan
