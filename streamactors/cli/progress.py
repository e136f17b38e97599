"""What a running job tells of itself, from moment to moment. Pure: metrics in, numbers out."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamactors.diagnosis import in_bytes
from streamactors.runtime.info import CheckpointInfo, CheckpointUnderWay, Restoring
from streamactors.runtime.progress import input_progress

ENDED = ("finished", "failed", "cancelled")


class OperatorProgress(msgspec.Struct, frozen=True):
    """One operator over all its subtasks. Counts are of the running attempt. `queued` of `capacity` records wait in its
    mailboxes; capacity is 0 where it has none: in a source, and behind another operator of the same chain."""

    uid: str
    records_in: int
    records_out: int
    in_per_second: float
    out_per_second: float
    queued: int
    capacity: int


class CheckpointProgress(msgspec.Struct, frozen=True):
    """The last complete one; `age` in seconds since it was first seen here."""

    id: int
    seconds: float
    bytes: int
    age: float


class Snapshotting(msgspec.Struct, frozen=True):
    """A checkpoint under way: `done` of `subtasks` have acknowledged it, `seconds` since it was triggered."""

    id: int
    seconds: float
    done: int
    subtasks: int


class Restored(msgspec.Struct, frozen=True):
    """Of a checkpoint that is being restored, in bytes."""

    done: int
    total: int


class InputRead(msgspec.Struct, frozen=True):
    """What a source has read of an input whose end it knows: `done` of `total`."""

    uid: str
    done: int
    total: int
    unit: str


class Progress(msgspec.Struct, frozen=True):
    flow: str
    status: str
    restarts: int
    checkpoint: CheckpointProgress | None
    operators: tuple[OperatorProgress, ...]
    under_way: Snapshotting | None = None
    restored: Restored | None = None
    inputs: tuple[InputRead, ...] = ()


class ProgressMeter:
    """Makes rates of counts. `uids` in the order of the flow."""

    def __init__(self, flow: str, uids: list[str]) -> None:
        self._flow = flow
        self._uids = uids
        self._before: dict[str, tuple[int, int]] = {}
        self._measured_at: float | None = None
        self._checkpoint: tuple[int, float] | None = None
        self._operators: tuple[OperatorProgress, ...] = ()
        self._inputs: tuple[InputRead, ...] = ()

    def measure(
        self,
        metrics: Mapping[str, Any],
        now: float,
        under_way: Sequence[CheckpointUnderWay] = (),
        restoring: Restoring | None = None,
    ) -> Progress:
        """`metrics` as from `JobHandle.metrics()`; `now` in seconds. Between attempts it repeats the last counts; at
        the end it has none rather than old ones."""
        if metrics["subtasks"]:
            elapsed = 0.0 if self._measured_at is None else now - self._measured_at
            counts = _by_operator(metrics["subtasks"])
            self._operators = tuple(self._operator(uid, counts[uid], elapsed) for uid in self._uids if uid in counts)
            self._inputs = self._read(metrics["subtasks"])
            self._measured_at = now
        elif metrics["status"] in ENDED:
            self._operators, self._inputs = (), ()
        checkpoint = self._checkpointed(metrics["last_checkpoint"], now)
        return Progress(
            self._flow,
            metrics["status"],
            metrics["restarts"],
            checkpoint,
            self._operators,
            _oldest(under_way, len(metrics["subtasks"])),
            None if restoring is None else Restored(restoring.done, restoring.total),
            self._inputs,
        )

    def _read(self, subtasks: Mapping[str, Any]) -> tuple[InputRead, ...]:
        told = input_progress(subtasks.values())
        read = [(uid, told[uid]) for uid in self._uids if uid in told]
        return tuple(InputRead(uid, one.done, one.total, one.unit) for uid, one in read if one.total)

    def _operator(self, uid: str, counts: "_Counts", elapsed: float) -> OperatorProgress:
        before = self._before.get(uid, (0, 0))
        self._before[uid] = counts.records_in, counts.records_out
        rates = [
            # A new attempt counts from zero.
            (now - past if now >= past else now) / elapsed if elapsed else 0.0
            for now, past in zip(self._before[uid], before, strict=True)
        ]
        return OperatorProgress(
            uid, counts.records_in, counts.records_out, rates[0], rates[1], counts.queued, counts.capacity
        )

    def _checkpointed(self, info: CheckpointInfo | None, now: float) -> CheckpointProgress | None:
        if info is None:
            return None
        if self._checkpoint is None or self._checkpoint[0] != info.id:
            self._checkpoint = info.id, now
        age = now - self._checkpoint[1]
        return CheckpointProgress(info.id, info.duration.total_seconds(), info.state_bytes, age)


def _oldest(under_way: Sequence[CheckpointUnderWay], subtasks: int) -> Snapshotting | None:
    if not under_way:
        return None
    oldest = under_way[0]
    return Snapshotting(oldest.id, oldest.seconds, len(oldest.acknowledged), subtasks)


class _Counts:
    def __init__(self) -> None:
        self.records_in = self.records_out = self.queued = self.capacity = 0


def _by_operator(subtasks: Mapping[str, Any]) -> dict[str, _Counts]:
    found: dict[str, _Counts] = {}
    for subtask in subtasks.values():
        for place, (uid, node) in enumerate(subtask["nodes"].items()):
            counts = found.setdefault(uid, _Counts())
            counts.records_in += node["records_in"]
            counts.records_out += node["records_out"]
            if place == 0:  # the others of a chain get their records without a mailbox
                counts.queued += subtask["queued"]
                counts.capacity += subtask["capacity"]
    return found


def as_line(progress: Progress) -> str:
    """For a log."""
    told = [", ".join(map(read_of, progress.inputs)), ", ".join(map(_rates, progress.operators))]
    return "; ".join([f"{progress.flow}: {progress.status}, {as_words(progress)}", *filter(None, told)])


def read_of(read: InputRead) -> str:
    amount = in_bytes if read.unit == "bytes" else "{:,}".format
    return f"{read.uid} {100 * read.done // read.total}% read ({amount(read.done)} of {amount(read.total)})"


def _rates(operator: OperatorProgress) -> str:
    rates = []
    if operator.records_in or operator.capacity:
        rates.append(f"{operator.in_per_second:,.0f}/s in")
    if operator.records_out or not rates:
        rates.append(f"{operator.out_per_second:,.0f}/s out")
    mailbox = f" (mailbox {fill(operator)})" if operator.capacity else ""
    return f"{operator.uid} {' '.join(rates)}{mailbox}"


def as_words(progress: Progress) -> str:
    """The last checkpoint, and restarts if there were any."""
    words = ["no checkpoint"]
    if (restored := progress.restored) is not None:
        words = [f"restoring, {in_bytes(restored.done)} of {in_bytes(restored.total)}"]
    elif (last := progress.checkpoint) is not None:
        words = [f"checkpoint {last.id} ({last.seconds:.3f} s, {in_bytes(last.bytes)}, {last.age:.0f} s ago)"]
    if progress.restarts:
        words.append(f"{progress.restarts} restart{'s' if progress.restarts > 1 else ''}")
    return ", ".join(words)


def fill(operator: OperatorProgress) -> str:
    return f"{operator.queued / operator.capacity:.0%}" if operator.capacity else "-"
