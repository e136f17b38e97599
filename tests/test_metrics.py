"""Numbers by name."""

import math

import pytest

from streamactors.metrics import BUCKETS, Histogram, MetricGroup


def test_a_name_is_one_metric() -> None:
    group, level = MetricGroup(), 3.0
    group.counter("done").inc()
    group.counter("done").inc(2)
    group.gauge("level", lambda: level)
    group.histogram("seconds").observe(0.02)
    group.histogram("seconds").observe(0.03)
    assert group.read() == {"done": 3, "level": 3.0, "seconds.count": 2, "seconds.sum": pytest.approx(0.05)}


def test_a_gauge_that_fails_is_no_number_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    group = MetricGroup()
    group.gauge("broken", lambda: 1 / 0)
    group.gauge("level", lambda: 3.0)
    for _ in range(2):
        values = group.read()
        assert math.isnan(values["broken"]) and values["level"] == 3.0
    assert [record.getMessage() for record in caplog.records] == [
        "metric 'broken' can't be read: ZeroDivisionError: division by zero"
    ]


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram()
    for value in (0.0, BUCKETS[0], BUCKETS[0] + 1e-9, BUCKETS[-1], BUCKETS[-1] + 1):
        histogram.observe(value)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-2], histogram.counts[-1]) == (2, 1, 1, 1)
    assert sum(histogram.counts) == histogram.count == 5
