"""The checkpoints, recoveries and rescales of a job as traces: pure, from what happens to it to trees of spans.

Invariants: a checkpoint, a recovery or a rescale is one tree, given when it is over. Its beginning is by the clock of
the day, and everything else measured from there, so that no change of that clock makes a span end before it begins, or
begin before the one that it is in. Sizes are bounded: the parts of the `MOST_PARTS` slowest
subtasks, as many phases, the `MOST_ERRORS` latest errors, texts of `LONGEST` characters.
"""

import heapq
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from streamactors.config import Checkpoints
from streamactors.observe.views import without_passwords
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
from streamactors.runtime.figures import SubtaskCheckpoint
from streamactors.runtime.info import CheckpointInfo
from streamactors.settings import redacted

MOST_PARTS: Final = 50
MOST_ERRORS: Final = 10
LONGEST: Final = 4096
LONGEST_TRACEBACK: Final = 16 * 1024

Attribute = str | bool | int | float
Attributes = dict[str, Attribute]
_PREFIX: Final = "streamactors."


class Recorded(msgspec.Struct, frozen=True):
    """An exception, and when."""

    at_ns: int
    error: BaseException


class Span(msgspec.Struct):
    """Times in nanoseconds since the epoch. `failed`: why, where it did not end well."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    failed: str | None = None
    errors: list[Recorded] = []
    children: list["Span"] = []


@dataclass
class _Open:
    """A trace that is not over yet."""

    name: str
    begun: Moment
    attributes: Attributes
    errors: deque[Recorded] = field(default_factory=lambda: deque(maxlen=MOST_ERRORS))
    children: list[Span] = field(default_factory=list)

    def ns(self, at: Moment) -> int:
        return self.after(at.monotonic - self.begun.monotonic)

    def after(self, seconds: float) -> int:
        return self.begun.time_ms * 1_000_000 + round(seconds * 1e9)

    def ended(self, end_ns: int, failed: str | None = None) -> Span:
        start_ns = self.after(0)
        return Span(
            self.name, start_ns, end_ns, self.attributes, _bounded(failed), list(self.errors), list(self.children)
        )


class Traces:
    """Of one job, from the moment on from which it is told what happens."""

    def __init__(self, job: str, checkpoints: Checkpoints | None) -> None:
        self._job: Attributes = {_PREFIX + "job.name": job}
        self._kind = {} if checkpoints is None else _kind(checkpoints.mode, checkpoints.alignment)
        self._checkpoints: dict[int, _Open] = {}
        self._recovery: _Open | None = None
        self._rescale: _Open | None = None
        self._phase: _Open | None = None
        """What the recovery is at, or else the rescale."""

    def on(self, event: JobEvent, at: Moment) -> list[Span]:
        """The traces that are over now."""
        match event:
            case CheckpointTriggered(checkpoint, cause, savepoint):
                self._checkpoints[checkpoint] = self._triggered(checkpoint, cause, at, savepoint=savepoint)
            case CheckpointCompleted(info):
                return self._completed(info)
            case CheckpointAbandoned(given_up):
                return self._abandoned(given_up.id, given_up.reason, given_up.subtasks, at)
            case AttemptBegun(attempt, checkpoint, uri):
                self._begin_attempt(attempt, checkpoint, uri, at)
            case AttemptRunning():
                return self._recovered("running", at)
            case AttemptFailed(attempt, error):
                return self._attempt_failed(attempt, error, at)
            case RestartScheduled(delay) if self._ongoing is not None:
                self._phase = _Open("restart delay", at, self._job | _named(delay_seconds=delay))
            case RescaleBegun(before, after) if self._rescale is None:
                self._rescale = _Open("rescale", at, self._job | _named(changes=_changes(before, after)))
            case Rescaled():
                return self._rescale_ended("rescaled", at)
            case RescaleAbandoned(_, _, error):
                return self._rescale_ended("given up", at, error)
            case JobEnded(status):
                ended = f"the job has ended: {status}"
                return [
                    *self._all_abandoned(ended, at),
                    *self._recovered(status, at),
                    *self._rescale_ended(status, at, failed=ended),
                ]
        return []

    # ----------------------------------------------------------------------------------------------------- checkpoints
    def _triggered(self, checkpoint: int, cause: str, at: Moment, *, savepoint: bool) -> _Open:
        kind = _kind("exactly-once", "aligned") if savepoint else self._kind
        told: Attributes = {"id": checkpoint, "trigger": cause}
        return _Open("savepoint" if savepoint else "checkpoint", at, self._job | kind | _of_checkpoint(told))

    def _completed(self, info: CheckpointInfo) -> list[Span]:
        trace = self._checkpoints.pop(info.id, None)
        if trace is None:
            return []  # it had begun before anybody listened
        told: Attributes = {"outcome": "completed", "uri": redacted(info.uri)}
        sizes = ("state_bytes", "uploaded_bytes", "inflight_bytes")
        trace.attributes |= _of_checkpoint(told | {size: getattr(info, size) for size in sizes})
        self._add_parts(trace, info.subtasks)
        return [trace.ended(trace.after(info.duration.total_seconds()))]

    def _abandoned(self, checkpoint: int, reason: str, parts: Iterable[SubtaskCheckpoint], at: Moment) -> list[Span]:
        trace = self._checkpoints.pop(checkpoint, None)
        if trace is None:
            return []
        trace.attributes |= _of_checkpoint({"outcome": "given up"})
        self._add_parts(trace, tuple(parts))
        return [trace.ended(trace.ns(at), without_passwords(reason))]

    def _all_abandoned(self, reason: str, at: Moment) -> list[Span]:
        return [span for checkpoint in tuple(self._checkpoints) for span in self._abandoned(checkpoint, reason, (), at)]

    def _add_parts(self, trace: _Open, parts: Iterable[SubtaskCheckpoint]) -> None:
        parts = tuple(parts)
        shown = heapq.nlargest(MOST_PARTS, parts, key=lambda part: part.seconds)
        trace.attributes |= _named(acknowledged_subtasks=len(parts), shown_subtasks=len(shown))
        trace.children += [
            Span("subtask checkpoint", trace.after(0), trace.after(part.seconds), self._job | _of_part(part))
            for part in shown
        ]

    # ------------------------------------------------------------------------------------------------------ recoveries
    def _begin_attempt(self, attempt: int, checkpoint: int | None, uri: str | None, at: Moment) -> None:
        if self._ongoing is None:
            self._recovery = _Open("start", at, dict(self._job))
        self._end_phase(at)
        restored: Attributes = {} if checkpoint is None else {_PREFIX + "restored.checkpoint.id": checkpoint}
        if uri is not None:
            restored[_PREFIX + "restored.checkpoint.uri"] = redacted(uri)
        if self._ongoing is not None:
            self._ongoing.attributes |= restored | _named(attempt=attempt)
        self._phase = _Open("restore", at, self._job | restored | _named(attempt=attempt))

    def _attempt_failed(self, attempt: int, error: BaseException, at: Moment) -> list[Span]:
        abandoned = self._all_abandoned(f"attempt {attempt} has failed", at)
        self._end_phase(at, failed=_said(error))
        if self._recovery is None:
            self._recovery = _Open("recovery", at, self._job | _named(failed_attempt=attempt))
        self._recovery.errors.append(Recorded(self._recovery.ns(at), error))
        return abandoned

    @property
    def _ongoing(self) -> _Open | None:
        return self._recovery or self._rescale

    def _end_phase(self, at: Moment, failed: str | None = None) -> None:
        phase, self._phase, trace = self._phase, None, self._ongoing
        if phase is not None and trace is not None:
            span = Span(phase.name, trace.ns(phase.begun), trace.ns(at), phase.attributes, _bounded(failed))
            trace.children = [*trace.children, span][-MOST_PARTS:]

    def _recovered(self, outcome: str, at: Moment) -> list[Span]:
        self._end_phase(at)
        recovery, self._recovery = self._recovery, None
        if recovery is None:
            return []
        recovery.attributes |= _named(outcome=outcome)
        return [recovery.ended(recovery.ns(at), None if outcome == "running" else f"the job has {outcome}")]

    def _rescale_ended(
        self, outcome: str, at: Moment, error: BaseException | None = None, failed: str | None = None
    ) -> list[Span]:
        if self._recovery is None:
            self._end_phase(at)  # its own
        rescale, self._rescale = self._rescale, None
        if rescale is None:
            return []
        rescale.attributes |= _named(outcome=outcome)
        if error is not None:
            failed = _said(error)
            rescale.errors.append(Recorded(rescale.ns(at), error))
        return [rescale.ended(rescale.ns(at), failed)]


def exception_attributes(error: BaseException) -> Attributes:
    """By the names that OpenTelemetry's conventions have. Takes a while: not for the event loop."""
    stack = without_passwords("".join(traceback.format_exception(error)))
    return {
        "exception.type": f"{type(error).__module__}.{type(error).__qualname__}",
        "exception.message": without_passwords(str(error))[:LONGEST],
        "exception.stacktrace": stack[-LONGEST_TRACEBACK:],
    }


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Such as `sum: 2 → 4, out: 2 → 4`."""
    changed = (f"{uid}: {before.get(uid)} → {now}" for uid, now in after.items() if before.get(uid) != now)
    return ", ".join(changed)[:LONGEST]


def _said(error: BaseException) -> str:
    return without_passwords(f"{type(error).__name__}: {error}")


def _kind(mode: str, alignment: str) -> Attributes:
    return _of_checkpoint({"mode": mode, "alignment": alignment})


def _of_checkpoint(attributes: Attributes) -> Attributes:
    return {f"{_PREFIX}checkpoint.{name}": value for name, value in attributes.items()}


def _of_part(part: SubtaskCheckpoint) -> Attributes:
    figures = part.figures
    return _named(
        subtask=part.subtask,
        alignment_seconds=figures.alignment,
        synchronous_seconds=figures.synchronous,
        asynchronous_seconds=figures.asynchronous,
        state_bytes=sum(part.state_bytes.values()),
        inflight_bytes=part.inflight_bytes,
    )


def _named(**attributes: Attribute) -> Attributes:
    return {_PREFIX + name: value for name, value in attributes.items()}


def _bounded(text: str | None) -> str | None:
    return None if text is None else text[:LONGEST]
