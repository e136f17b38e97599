"""Traces as pure data: what becomes of each order of events, and how large they may get."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.config import Checkpoints
from streamactors.observe.spans import LONGEST, MOST_ERRORS, MOST_PARTS, Span, Traces, exception_attributes
from streamactors.runtime.events import (
    AttemptBegun,
    AttemptFailed,
    AttemptRunning,
    CheckpointAbandoned,
    CheckpointCompleted,
    CheckpointTriggered,
    JobEnded,
    JobEvent,
    Moment,
    RescaleAbandoned,
    RescaleBegun,
    Rescaled,
    RestartScheduled,
)
from streamactors.runtime.figures import SnapshotFigures, SubtaskCheckpoint
from streamactors.runtime.info import CheckpointGivenUp, CheckpointInfo, RescaleInfo

HOUR = dt.timedelta(hours=1)
DAY_MS = 1_700_000_000_000
START_NS = DAY_MS * 1_000_000


def part(subtask: int, seconds: float) -> SubtaskCheckpoint:
    return SubtaskCheckpoint(f"sum[{subtask}]", seconds, SnapshotFigures(0.1, 0.2, 0.3), {"sum": 7, "same": 4}, 5)


def info(
    checkpoint: int, *parts: SubtaskCheckpoint, seconds: float = 2.0, uri: str = "file:///in/chk-1"
) -> CheckpointInfo:
    return CheckpointInfo(checkpoint, uri, dt.timedelta(seconds=seconds), 11, 9, 5, subtasks=parts)


def told(*events: JobEvent, job: str = "sums", checkpoints: Checkpoints | None = None) -> list[Span]:
    """One second apart."""
    traces = Traces(job, checkpoints or Checkpoints("/stored", interval=HOUR, alignment="unaligned"))
    return [
        span
        for second, event in enumerate(events)
        for span in traces.on(event, Moment(DAY_MS + 1000 * second, 50.0 + second))
    ]


def test_a_completed_checkpoint() -> None:
    (span,) = told(CheckpointTriggered(3, "interval"), CheckpointCompleted(info(3, part(0, 0.5), part(1, 1.5))))
    assert span.name == "checkpoint" and span.failed is None
    assert (span.start_ns, span.end_ns) == (START_NS, START_NS + 2_000_000_000)
    assert span.attributes == {
        "streamactors.job.name": "sums",
        "streamactors.checkpoint.id": 3,
        "streamactors.checkpoint.mode": "exactly-once",
        "streamactors.checkpoint.alignment": "unaligned",
        "streamactors.checkpoint.trigger": "interval",
        "streamactors.checkpoint.outcome": "completed",
        "streamactors.checkpoint.uri": "file:///in/chk-1",
        "streamactors.checkpoint.state_bytes": 11,
        "streamactors.checkpoint.uploaded_bytes": 9,
        "streamactors.checkpoint.inflight_bytes": 5,
        "streamactors.acknowledged_subtasks": 2,
        "streamactors.shown_subtasks": 2,
    }
    slow, fast = span.children
    assert (slow.name, slow.start_ns, slow.end_ns) == ("subtask checkpoint", START_NS, START_NS + 1_500_000_000)
    assert slow.attributes == {
        "streamactors.job.name": "sums",
        "streamactors.subtask": "sum[1]",
        "streamactors.alignment_seconds": 0.1,
        "streamactors.synchronous_seconds": 0.2,
        "streamactors.asynchronous_seconds": 0.3,
        "streamactors.state_bytes": 11,
        "streamactors.inflight_bytes": 5,
    }
    assert fast.attributes["streamactors.subtask"] == "sum[0]"


def test_a_savepoint_is_always_aligned_and_exactly_once() -> None:
    (span,) = told(
        CheckpointTriggered(3, "request", savepoint=True),
        CheckpointCompleted(info(3, uri="s3://key:secret@bucket/saved?token=secret")),
        checkpoints=Checkpoints("/stored", interval=HOUR, mode="at-least-once"),
    )
    assert span.name == "savepoint"
    assert span.attributes["streamactors.checkpoint.mode"] == "exactly-once"
    assert span.attributes["streamactors.checkpoint.alignment"] == "aligned"
    assert "secret" not in str(span.attributes)


def test_one_that_is_given_up_tells_why_and_who_had_acknowledged() -> None:
    reason = "no answer of http://me:secret@store/ " + LONGEST * "x"
    (span,) = told(
        CheckpointTriggered(3, "interval"), CheckpointAbandoned(CheckpointGivenUp(3, DAY_MS, reason, (part(0, 0.5),)))
    )
    assert span.attributes["streamactors.checkpoint.outcome"] == "given up"
    assert span.failed is not None and "secret" not in span.failed and len(span.failed) == LONGEST
    assert [child.attributes["streamactors.subtask"] for child in span.children] == ["sum[0]"]


def test_of_many_subtasks_the_slowest_are_shown() -> None:
    parts = [part(number, seconds=number / 1000) for number in range(500)]
    (span,) = told(CheckpointTriggered(1, "interval"), CheckpointCompleted(info(1, *parts)))
    assert len(span.children) == MOST_PARTS
    assert [child.attributes["streamactors.subtask"] for child in span.children[:2]] == ["sum[499]", "sum[498]"]
    assert span.attributes["streamactors.acknowledged_subtasks"] == 500
    assert span.attributes["streamactors.shown_subtasks"] == MOST_PARTS


def test_a_checkpoint_that_began_before_anybody_listened_has_no_trace() -> None:
    assert told(CheckpointCompleted(info(1)), CheckpointAbandoned(CheckpointGivenUp(2, DAY_MS, "late"))) == []


def test_a_recovery_from_the_failure_to_the_next_attempt_that_runs() -> None:
    first, second = ValueError("first"), OSError("second")
    abandoned, span = told(
        CheckpointTriggered(8, "interval"),
        AttemptFailed(1, first),
        RestartScheduled(1.0),
        AttemptBegun(2, 7, "file:///in/chk-7"),
        AttemptFailed(2, second),
        RestartScheduled(2.0),
        AttemptBegun(3, 7, "file:///in/chk-7"),
        AttemptRunning(),
    )
    assert abandoned.name == "checkpoint" and abandoned.failed == "attempt 1 has failed"
    assert span.name == "recovery" and span.failed is None
    assert (span.start_ns, span.end_ns) == (START_NS + 1_000_000_000, START_NS + 7_000_000_000)
    assert span.attributes == {
        "streamactors.job.name": "sums",
        "streamactors.failed_attempt": 1,
        "streamactors.attempt": 3,
        "streamactors.restored.checkpoint.id": 7,
        "streamactors.restored.checkpoint.uri": "file:///in/chk-7",
        "streamactors.outcome": "running",
    }
    assert [recorded.error for recorded in span.errors] == [first, second]
    phases = [(child.name, (child.start_ns - START_NS) // 10**9, (child.end_ns - START_NS) // 10**9, child.failed)
              for child in span.children]  # fmt: skip
    assert phases == [
        ("restart delay", 2, 3, None),
        ("restore", 3, 4, "OSError: second"),
        ("restart delay", 5, 6, None),
        ("restore", 6, 7, None),
    ]


def test_a_start_that_restores_is_a_trace_too() -> None:
    (span,) = told(AttemptBegun(1, 7, "file:///in/chk-7"), AttemptRunning())
    assert span.name == "start" and span.attributes["streamactors.restored.checkpoint.id"] == 7
    assert [child.name for child in span.children] == ["restore"]


def test_a_job_that_fails_for_good_ends_its_traces() -> None:
    checkpoint, recovery = told(
        AttemptFailed(1, ValueError("why")), CheckpointTriggered(1, "interval"), JobEnded("failed")
    )
    assert checkpoint.failed == "the job has ended: failed"
    assert recovery.failed == "the job has failed" and recovery.attributes["streamactors.outcome"] == "failed"


def test_a_job_that_fails_again_and_again_makes_no_endless_trace() -> None:
    again: list[JobEvent] = [AttemptFailed(1, ValueError("why")), RestartScheduled(1.0), AttemptBegun(2)]
    (span,) = told(*again * 200, JobEnded("cancelled"))
    assert len(span.errors) == MOST_ERRORS and len(span.children) == MOST_PARTS


def test_a_rescale_that_fails_is_followed_by_a_recovery() -> None:
    why = ValueError("no room")
    rescale, recovery = told(
        RescaleBegun({"in": 1, "sum": 2}, {"in": 1, "sum": 4}),
        AttemptBegun(2, 7),
        AttemptFailed(2, why),
        RescaleAbandoned({}, {}, why),
        RestartScheduled(1.0),
        AttemptBegun(3, 7),
        AttemptRunning(),
    )
    assert rescale.name == "rescale" and rescale.failed == "ValueError: no room"
    assert rescale.attributes["streamactors.changes"] == "sum: 2 → 4"
    assert rescale.attributes["streamactors.outcome"] == "given up"
    assert [(child.name, child.failed) for child in rescale.children] == [("restore", "ValueError: no room")]
    assert recovery.name == "recovery" and recovery.failed is None
    assert [child.name for child in recovery.children] == ["restart delay", "restore"]


def test_a_job_that_goes_back_from_a_rescale_has_a_trace_of_the_way_back() -> None:
    there, back = ({"sum": 2}, {"sum": 4}), ({"sum": 4}, {"sum": 2})
    first, recovery, second = told(
        RescaleBegun(*there),
        AttemptBegun(2, 7),
        AttemptRunning(),
        Rescaled(RescaleInfo(DAY_MS, HOUR, *there)),
        AttemptFailed(2, ValueError("no room")),
        RescaleBegun(*back),
        RestartScheduled(1.0),
        AttemptBegun(3, 7),
        AttemptRunning(),
        Rescaled(RescaleInfo(DAY_MS, HOUR, *back)),
    )
    assert [span.attributes["streamactors.changes"] for span in (first, second)] == ["sum: 2 → 4", "sum: 4 → 2"]
    assert [span.failed for span in (first, recovery, second)] == [None] * 3
    assert [child.name for child in recovery.children] == ["restart delay", "restore"]


def test_what_a_rescale_was_at_ends_with_it() -> None:
    begun = RescaleBegun({"sum": 2}, {"sum": 4})
    first, second = told(
        begun, AttemptBegun(2, 7), RescaleAbandoned({}, {}, ValueError("why")), begun, AttemptRunning(), JobEnded("x")
    )
    assert [child.name for child in first.children] == ["restore"] and not second.children


EVENTS: st.SearchStrategy[JobEvent] = st.one_of(
    st.builds(CheckpointTriggered, st.integers(1, 3), st.sampled_from(["interval", "request", "final"]), st.booleans()),
    st.builds(lambda id: CheckpointCompleted(info(id, part(0, 0.1))), st.integers(1, 3)),
    st.builds(lambda id: CheckpointAbandoned(CheckpointGivenUp(id, DAY_MS, "late")), st.integers(1, 3)),
    st.builds(AttemptBegun, st.integers(1, 9), st.none() | st.integers(1, 3)),
    st.just(AttemptRunning()),
    st.builds(lambda attempt: AttemptFailed(attempt, ValueError("why")), st.integers(1, 9)),
    st.builds(RestartScheduled, st.floats(0, 10)),
    st.just(RescaleBegun({"sum": 1}, {"sum": 2})),
    st.just(RescaleAbandoned({"sum": 1}, {"sum": 2}, ValueError("why"))),
    st.just(Rescaled(RescaleInfo(DAY_MS, HOUR, {"sum": 1}, {"sum": 2}))),
)


@given(st.lists(EVENTS, max_size=30), st.lists(st.integers(-(10**6), 10**6), min_size=31, max_size=31))
def test_no_order_of_events_and_no_change_of_the_clock_makes_a_span_end_before_it_begins(
    events: list[JobEvent], jumps: list[int]
) -> None:
    traces = Traces("sums", None)
    ended = [
        span
        for number, (event, jump) in enumerate(zip([*events, JobEnded("finished")], jumps, strict=False))
        for span in traces.on(event, Moment(DAY_MS + jump, 50.0 + number))
    ]
    for span in ended:
        for each in (span, *span.children):
            assert span.start_ns <= each.start_ns <= each.end_ns
    assert traces.on(JobEnded("finished"), Moment(DAY_MS, 100.0)) == [], "nothing is left open"


def test_an_exception_is_told_without_passwords() -> None:
    with pytest.raises(ValueError) as raised:
        raise ValueError("can't reach kafka://me:secret@broker:9092")
    attributes = exception_attributes(raised.value)
    assert attributes["exception.type"] == "builtins.ValueError"
    assert attributes["exception.message"] == "can't reach kafka://***@broker:9092"
    assert str(attributes["exception.stacktrace"]).startswith("Traceback (most recent call last)")
    assert "***@broker" in str(attributes["exception.stacktrace"]) and "secret@" not in str(attributes)
