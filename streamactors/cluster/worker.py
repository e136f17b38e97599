"""One worker process: it holds a part of one attempt at a time, and does what the job's coordinator tells it.

Invariants. A message of an older epoch changes nothing. A new epoch's part is put together once nothing of the one
before is left. A part ends when its coordinator says so, or has not been heard for too long: from then on nothing of it
writes, commits or sends.
"""

import asyncio
import dataclasses
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from streamactors.checkpoint.storage.contract import Files
from streamactors.clock import SYSTEM, Clock, uninterrupted
from streamactors.cluster.delivery import Delivery
from streamactors.cluster.failures import plain_text, to_send
from streamactors.cluster.line import Line
from streamactors.cluster.messages import (
    CONTROLS,
    FROM_WORKER,
    TO_WORKER,
    Asked,
    Beat,
    Broken,
    End,
    Ended,
    Go,
    Others,
    Post,
    Prepare,
    Prepared,
    Reused,
    Settle,
    Settled,
    Slowest,
    Tapping,
    Told,
    Unprepared,
    Untapping,
    Vitals,
)
from streamactors.cluster.onlookers import Onlookers
from streamactors.cluster.part import Part, Ways
from streamactors.cluster.storage import ReuseQuestions
from streamactors.cluster.watch import Watch
from streamactors.cluster.wire import CONTROL, COORDINATOR, DATA, Epoch, Header, Wire, header_of
from streamactors.cluster.workers import Times
from streamactors.errors import ConnectionLost, UnserialisableValue
from streamactors.graph.physical import SubtaskId
from streamactors.runtime.assembly import AttemptSpec
from streamactors.runtime.messages import Control, Failed, Report, SnapshotDeclined, SnapshotStored, Start
from streamactors.time.alignment import AlignmentGroups

log = logging.getLogger("streamactors.worker")

Unship = Callable[[bytes], Any]
"""Makes an object again of what the deployment has made of it where the job is."""


class Worker:
    """Lives over attempts. `files` replaces what the checkpoint storage is reached by."""

    def __init__(
        self,
        number: int,
        wire: Wire,
        *,
        unship: Unship,
        clock: Clock = SYSTEM,
        files: Files | None = None,
        times: Times | None = None,
    ) -> None:
        self.number = number
        self.wire = wire
        self.unship = unship
        self.clock = clock
        self.files = files
        self.times = times or Times()
        self._assignment: Assignment | None = None
        self._closed = False

    def received(self, peer: int, message: bytes) -> None:
        """Every message that another process hands over. Raises ConnectionLost where it can't be taken (yet)."""
        header = header_of(message)
        if self._closed:
            raise ConnectionLost(f"worker {self.number} has ended")
        if self._begins(header):
            self._assignment = Assignment(self, header.epoch, self._assignment)
        if self._assignment is None:
            raise ConnectionLost(f"worker {self.number} knows of no attempt yet, least of all of {header.epoch}")
        self._assignment.received(peer, header, message)

    def _begins(self, header: Header) -> bool:
        """Whether it is the first message of a later attempt."""
        first = header.plane == CONTROL and header.sender == COORDINATOR and header.number == 1
        return first and (self._assignment is None or header.epoch > self._assignment.epoch)

    async def close(self) -> None:
        """Nothing of it is left."""
        self._closed = True
        if self._assignment is not None:
            await self._assignment.end()


class Assignment:
    """What one worker does in one attempt: from the first message until `end`. `before`: its last one."""

    def __init__(self, worker: Worker, epoch: Epoch, before: "Assignment | None") -> None:
        self.epoch = epoch
        self._worker = worker
        self._before = before
        self._name = f"worker {worker.number}, {epoch}"
        clock, times = worker.clock, worker.times
        self._delivery = Delivery(
            CONTROL, epoch, worker.number, worker.wire, clock, self._lost_coordinator, times.lost_at_start_after
        )
        self._line = Line(self._delivery, COORDINATOR, FROM_WORKER)
        self._watch = Watch(
            [COORDINATOR],
            clock,
            times,
            beat=lambda _: self._beat(),
            on_silent=lambda _, silent: self._abandon(f"nothing has been heard of the coordinator for {silent:.1f} s"),
            forgiving=False,  # its coordinator has waited for it no longer than that
        )
        self._watch.start(self._name)
        self._alignment = AlignmentGroups(self._alignment_changed)
        self._slowest = Slowest({})
        self._onlookers = Onlookers(self._line, self._send)
        self._questions = ReuseQuestions(self._line.give)
        self._part: Part | None = None
        self._figures_failed = False
        """And that was logged."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Task[None] | None = None

    def _run(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(Failed(None, error))

    # ------------------------------------------------------------------------------------------------------- messages
    def received(self, peer: int, header: Header, message: bytes) -> None:
        if header.plane == DATA and header.epoch == self.epoch:
            self._take_data(peer, message)
            return
        body = self._delivery.accept(peer, message)
        if header.epoch == self.epoch:
            self._watch.heard(peer)
        if body is not None and self._ending is None:
            self._obey_all(body)

    def _obey_all(self, body: memoryview) -> None:
        """It is accepted, and does not come again: if one of its messages can't be obeyed, nor can those behind it."""
        try:
            for told in TO_WORKER.read(body):
                self._obey(told)
        except Exception as error:
            self._report(Failed(None, error))

    def _take_data(self, peer: int, message: bytes) -> None:
        if self._ending is not None:
            return
        if self._part is None:
            raise ConnectionLost(f"worker {self._worker.number} is not ready for {self.epoch}")
        self._part.exchange.received(peer, message)

    def _obey(self, message: Any) -> None:
        match message:
            case Prepare():
                self._run(self._prepare(message), "preparing")
            case Go():
                self._in_part.start()
            case Told(post, subtasks):
                control = CONTROLS.open(post)
                if isinstance(control, Start):
                    self._now_running()
                for number in subtasks:
                    self._send(self._in_part.subtask(number), control)
            case Asked() | Tapping() | Untapping():
                self._onlookers.obey(message, self._in_part.subtask(message.subtask))
            case Settle(checkpoint):
                self._run(self._settle(checkpoint), f"giving up checkpoint {checkpoint}")
            case Reused():
                self._questions.answered(message)
            case Others(groups):
                self._alignment.told_elsewhere(groups)
            case End():
                self._begin_to_end()
            case Beat():
                return

    def _now_running(self) -> None:
        self._watch.running()
        self._delivery.give_up = self._worker.times.lost_after

    @property
    def _in_part(self) -> Part:
        assert self._part is not None, "told before it was prepared"
        return self._part

    def _send(self, subtask: SubtaskId, control: Control) -> None:
        self._in_part.send(subtask, control)

    # ------------------------------------------------------------------------------------------------------ deploying
    async def _prepare(self, message: Prepare) -> None:
        if self._before is not None:
            await self._before.end()
            self._before = None
        try:
            self._part = await self._assembled(message)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._line.give(Unprepared(to_send(error)))
            return
        self._line.give(Prepared())

    async def _assembled(self, message: Prepare) -> Part:
        shared, placement = await self._unshipped(message.common)
        restores, backlogs = await self._unshipped(message.own)
        spec: AttemptSpec = dataclasses.replace(shared, restores=restores, backlogs=backlogs)
        ways = Ways(self._report, self._questions, self._lost_peer, self._alignment, self._check_alive)
        return await Part.assembled(self._worker, self.epoch, spec, placement, message.restored, ways)

    async def _unshipped(self, data: bytes) -> Any:
        """In a thread: it imports the user's modules, which may take long, and the signs of life go on."""
        return await uninterrupted(self._worker.clock.run_blocking(self._worker.unship, data))

    # ------------------------------------------------------------------------------------------------------- reporting
    def _report(self, report: Report) -> None:
        self._onlookers.push()
        if isinstance(report, Failed):
            self._line.give(Broken(report.subtask, to_send(report.error)))
            return
        if isinstance(report, SnapshotDeclined):
            report = msgspec.structs.replace(report, reason=plain_text(report.reason))
        try:
            self._line.give(FROM_WORKER.post(report))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            assert isinstance(report, SnapshotStored)
            self._report(Failed(report.subtask, _not_plain(report, error)))

    async def _settle(self, checkpoint: int) -> None:
        await self._in_part.storage.settle(checkpoint)
        self._line.give(Settled(checkpoint))

    def _alignment_changed(self) -> None:
        self._slowest.groups = self._alignment.slowest_here()
        if not self._line.holds(self._slowest):
            self._line.give(self._slowest)

    def _beat(self) -> None:
        if self._line.idle:
            self._tell_vitals()

    def _tell_vitals(self) -> None:
        self._line.give(self._vitals())

    def _vitals(self) -> Post:
        """A sign of life, whatever becomes of the figures that user code gives."""
        try:
            vitals = Vitals() if self._part is None else self._part.vitals()
            return FROM_WORKER.post(vitals, _as_number)
        except Exception as error:
            if not self._figures_failed:
                self._figures_failed = True
                log.warning("%s: its figures can't be told: %s", self._name, error, exc_info=error)
            return FROM_WORKER.post(Vitals())

    # ------------------------------------------------------------------------------------------------------------- end
    def _lost_coordinator(self, peer: int, error: BaseException) -> None:
        self._abandon(str(error))

    def _lost_peer(self, peer: int, error: BaseException) -> None:
        self._report(Failed(None, error))

    def _check_alive(self) -> None:
        """Raises ConnectionLost. The watch looks only now and then; and when this process goes on after it has stood
        still, others may be faster than it."""
        silent = self._watch.silent(COORDINATOR)
        if self._ending is not None or silent > self._watch.lost_after:
            raise ConnectionLost(
                f"{self._name}: it has ended, or nothing has been heard of the coordinator for {silent:.1f} s: another "
                "process may have taken its place"
            )

    def _abandon(self, why: str) -> None:
        if self._ending is None:
            log.error("%s: this part of the job is given up: %s", self._name, why)
            self._begin_to_end()

    def _begin_to_end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end(), name=f"{self._name}: end")

    async def end(self) -> None:
        """Until nothing is left."""
        self._begin_to_end()
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        """The coordinator is told at the end, as far as it can be reached."""
        try:
            await self._stop_tasks()
            if self._part is not None:
                await self._part.close()
        except Exception as error:
            log.exception("%s: it did not end in peace: %s", self._name, error)
        await self._onlookers.close()
        await self._watch.stop()
        self._tell_vitals()
        self._line.give(Ended())
        await self._line.flush()
        await self._line.close()

    async def _stop_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._before is not None:
            await self._before.end()


def _not_plain(report: SnapshotStored, error: Exception) -> UnserialisableValue:
    uid = next((node.uid for node in report.state.nodes if not _is_plain(node)), report.subtask.vertex)
    return UnserialisableValue(
        f"checkpoint {report.checkpoint} can't be written: operator {uid!r} has a position, a pending transaction or a "
        f"schema that is not plain msgpack data ({error}). Make it of None, bool, int, float, str, bytes, lists and "
        "dicts."
    )


def _is_plain(value: object) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


def _as_number(gauge: Any) -> float:
    """Whatever the user's gauges give, such as numbers of numpy."""
    try:
        return float(gauge)
    except (TypeError, ValueError, OverflowError):
        return math.nan
