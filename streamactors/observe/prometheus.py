"""What jobs tell of themselves, as metrics for Prometheus: pure, from the documents of the API to text.

Labels are bounded: job, operator (of what a whole actor counts, the uid of the first step in it), subtask (its index),
and the name of what an operator itself measures, of which the first `MOST_NAMES` are told. Counters begin anew with
each attempt of a job, as with a restarted process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from streamactors.observe import model
from streamactors.observe.reading import Reading

V = TypeVar("V")

MOST_NAMES: Final = 100
LONGEST_NAME: Final = 100
_BY_JOB: Final = ("job",)
_BY_OPERATOR: Final = ("job", "operator")
_BY_SUBTASK: Final = ("job", "operator", "subtask")
_BY_NAME: Final = (*_BY_SUBTASK, "name")


Sample = tuple[tuple[str, ...], float]
"""The values of the labels, and the value."""


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Reading], Iterable[Sample]]

    @property
    def counts(self) -> bool:
        """Whether it only goes up."""
        return self.name.endswith("_total")

    def metric(self, readings: Sequence[Reading]) -> Metric:
        kind = CounterMetricFamily if self.counts else GaugeMetricFamily
        family = kind(self.name, self.help, labels=self.labels)
        for reading in readings:
            for labels, value in self.samples(reading):
                family.add_metric(labels, value)
        return family


def exposition(readings: Sequence[Reading], accept: str = "") -> tuple[bytes, str]:
    """The text and its content type. Takes a while for hundreds of subtasks: not for the event loop."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(readings))
    return encode(registry), content_type


class _Collected(Collector):
    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            yield family.metric(self._readings)
        yield _histograms(self._readings)

    def describe(self) -> list[Metric]:
        return []


# -------------------------------------------------------------------------------------------------------------- samples
def _of_job(read: Callable[[Reading], float | None]) -> Callable[[Reading], Iterator[Sample]]:
    def samples(reading: Reading) -> Iterator[Sample]:
        value = read(reading)
        if value is not None:
            yield (reading.status.name,), value

    return samples


def _of_last(read: Callable[[model.Checkpoint], float]) -> Callable[[Reading], Iterator[Sample]]:
    return _of_job(lambda reading: None if (last := reading.status.last_checkpoint) is None else read(last))


def _of_actor(read: Callable[[model.Subtask], float]) -> Callable[[Reading], Iterator[Sample]]:
    def samples(reading: Reading) -> Iterator[Sample]:
        for subtask in reading.status.subtasks:
            yield (reading.status.name, subtask.vertex, str(subtask.index)), read(subtask)

    return samples


def _of_node(read: Callable[[model.Node], float | None]) -> Callable[[Reading], Iterator[Sample]]:
    def samples(reading: Reading) -> Iterator[Sample]:
        for subtask in reading.status.subtasks:
            for uid, node in subtask.nodes.items():
                value = read(node)
                if value is not None:
                    yield (reading.status.name, uid, str(subtask.index)), value

    return samples


def _of_part(read: Callable[[model.SubtaskCheckpoint], float]) -> Callable[[Reading], Iterator[Sample]]:
    def samples(reading: Reading) -> Iterator[Sample]:
        for part in () if reading.last is None else reading.last.subtasks:
            operator, _, index = part.subtask.rpartition("[")
            yield (reading.status.name, operator, index.removesuffix("]")), read(part)

    return samples


def _state_bytes(reading: Reading) -> Iterator[Sample]:
    for part in () if reading.last is None else reading.last.subtasks:
        index = part.subtask.rpartition("[")[2].removesuffix("]")
        for uid, size in part.operators.items():
            yield (reading.status.name, uid, index), size


def _skews(reading: Reading) -> Iterator[Sample]:
    for operator in reading.status.operators:
        if operator.watermark_ms is not None:
            yield (reading.status.name, operator.uid), operator.skew_ms / 1000


def _group_skews(reading: Reading) -> Iterator[Sample]:
    for operator in () if reading.state is None else reading.state.operators:
        if operator.skew is not None:
            yield (reading.status.name, operator.uid), operator.skew


def _statuses(reading: Reading) -> Iterator[Sample]:
    for status in get_args(model.Status):
        yield (reading.status.name, status), float(reading.status.status == status)


def _own(read: Callable[[model.Node], Mapping[str, float | None]]) -> Callable[[Reading], Iterator[Sample]]:
    def samples(reading: Reading) -> Iterator[Sample]:
        for labels, node in _nodes(reading):
            for name, value in _first(read(node)).items():
                if value is not None:
                    yield (*labels, name), value

    return samples


def _nodes(reading: Reading) -> Iterator[tuple[tuple[str, str, str], model.Node]]:
    for subtask in reading.status.subtasks:
        for uid, node in subtask.nodes.items():
            yield (reading.status.name, uid, str(subtask.index)), node


def _first(named: Mapping[str, V]) -> dict[str, V]:
    return {name[:LONGEST_NAME]: named[name] for name in sorted(named)[:MOST_NAMES]}


def _histograms(readings: Sequence[Reading]) -> Metric:
    family = HistogramMetricFamily(
        "streamactors_operator_histogram", "What an operator itself observes, by name.", labels=_BY_NAME
    )
    for reading in readings:
        for labels, node in _nodes(reading):
            for name, histogram in _first(node.histograms).items():
                family.add_metric((*labels, name), _buckets(histogram), sum_value=histogram.sum)
    return family


def _buckets(histogram: model.Histogram) -> list[tuple[str, float]]:
    """Cumulative, with the bound above all."""
    total, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


# ------------------------------------------------------------------------------------------------------------- families
FAMILIES: Final = (
    _Family("streamactors_job_status", "1 for the status that the job has.", ("job", "status"), _statuses),
    _Family(
        "streamactors_job_uptime_seconds",
        "Since the job was started.",
        _BY_JOB,
        _of_job(lambda r: r.status.uptime_seconds),
    ),
    _Family(
        "streamactors_job_restarts_total", "Attempts after the first.", _BY_JOB, _of_job(lambda r: r.status.restarts)
    ),
    _Family(
        "streamactors_records_in_total", "Records that a step took.", _BY_SUBTASK, _of_node(lambda n: n.records_in)
    ),
    _Family(
        "streamactors_records_out_total", "Records that a step gave.", _BY_SUBTASK, _of_node(lambda n: n.records_out)
    ),
    _Family("streamactors_busy_seconds_total", "Time at work.", _BY_SUBTASK, _of_actor(lambda s: s.busy_seconds)),
    _Family(
        "streamactors_idle_seconds_total", "Time waiting for input.", _BY_SUBTASK, _of_actor(lambda s: s.idle_seconds)
    ),
    _Family(
        "streamactors_backpressured_seconds_total",
        "Time waiting for room further on.",
        _BY_SUBTASK,
        _of_actor(lambda s: s.backpressured_seconds),
    ),
    _Family(
        "streamactors_mailbox_records", "Records that wait in the mailbox.", _BY_SUBTASK, _of_actor(lambda s: s.queued)
    ),
    _Family(
        "streamactors_mailbox_capacity_records",
        "Records that fit into it.",
        _BY_SUBTASK,
        _of_actor(lambda s: s.capacity),
    ),
    _Family(
        "streamactors_unsent_records",
        "Records that found no room further on.",
        _BY_SUBTASK,
        _of_actor(lambda s: s.unsent),
    ),
    _Family(
        "streamactors_blocked_channels",
        "Input channels that an aligned barrier holds back.",
        _BY_SUBTASK,
        _of_actor(lambda s: len(s.blocked)),
    ),
    _Family(
        "streamactors_watermark_timestamp_seconds",
        "How far event time has come.",
        _BY_SUBTASK,
        _of_node(lambda n: None if n.watermark_ms is None or n.idle else n.watermark_ms / 1000),
    ),
    _Family("streamactors_watermark_skew_seconds", "The furthest subtask before the last.", _BY_OPERATOR, _skews),
    _Family(
        "streamactors_state_entries",
        "Keys in the states of a step.",
        _BY_SUBTASK,
        _of_node(lambda n: sum(n.entries.values())),
    ),
    _Family("streamactors_state_bytes", "Stored by the last checkpoint.", _BY_SUBTASK, _state_bytes),
    _Family(
        "streamactors_state_key_group_skew_ratio",
        "The largest key group over the mean, as stored by the last checkpoint.",
        _BY_OPERATOR,
        _group_skews,
    ),
    _Family(
        "streamactors_checkpoints_completed_total",
        "Savepoints too.",
        _BY_JOB,
        _of_job(lambda r: r.checkpoints.completed),
    ),
    _Family(
        "streamactors_checkpoints_failed_total", "Those given up.", _BY_JOB, _of_job(lambda r: r.checkpoints.failed)
    ),
    _Family("streamactors_checkpoints_in_progress", "Now.", _BY_JOB, _of_job(lambda r: len(r.checkpoints.under_way))),
    _Family(
        "streamactors_last_checkpoint_timestamp_seconds",
        "When it was complete.",
        _BY_JOB,
        _of_last(lambda c: c.time_ms / 1000),
    ),
    _Family(
        "streamactors_last_checkpoint_duration_seconds", "Trigger to manifest.", _BY_JOB, _of_last(lambda c: c.seconds)
    ),
    _Family(
        "streamactors_last_checkpoint_state_bytes", "All that it refers to.", _BY_JOB, _of_last(lambda c: c.state_bytes)
    ),
    _Family(
        "streamactors_last_checkpoint_uploaded_bytes",
        "What was written.",
        _BY_JOB,
        _of_last(lambda c: c.uploaded_bytes),
    ),
    _Family(
        "streamactors_last_checkpoint_inflight_bytes",
        "Records overtaken.",
        _BY_JOB,
        _of_last(lambda c: c.inflight_bytes),
    ),
    _Family(
        "streamactors_last_checkpoint_alignment_seconds",
        "From the first barrier to the last.",
        _BY_SUBTASK,
        _of_part(lambda p: p.alignment_seconds),
    ),
    _Family(
        "streamactors_last_checkpoint_synchronous_seconds",
        "While nothing else ran in the subtask.",
        _BY_SUBTASK,
        _of_part(lambda p: p.synchronous_seconds),
    ),
    _Family(
        "streamactors_last_checkpoint_asynchronous_seconds",
        "Until all was durable.",
        _BY_SUBTASK,
        _of_part(lambda p: p.asynchronous_seconds),
    ),
    _Family(
        "streamactors_operator_counter_total",
        "What an operator itself counts, by name.",
        _BY_NAME,
        _own(lambda n: n.counters),
    ),
    _Family(
        "streamactors_operator_gauge", "What an operator itself measures, by name.", _BY_NAME, _own(lambda n: n.gauges)
    ),
)
