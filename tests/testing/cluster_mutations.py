"""Mutants of what a job over several workers needs: delivery, channels between processes, losing workers."""

from typing import Any, Final

import pytest

from streamactors.cluster import deployed
from streamactors.cluster.channels import Inlet, RemoteChannel
from streamactors.cluster.delivery import _Numbers
from streamactors.cluster.deployed import RemoteAttempt
from streamactors.cluster.storage import WorkerSnapshots
from streamactors.cluster.wire import body_of, header_of, sealed
from streamactors.cluster.worker import Assignment, Worker
from streamactors.elements import Element
from tests.testing.mutants import DISORDER, LOST, TWICE, mutant

STUCK: Final = "nothing was read or written|100 attempts|60 times"
STORM: Final = "workers=2/3,weather=storm"
OFTEN: Final = f"{STORM},false_deaths=0,operator_failures=8,actor_crashes=8,spread=0.4"


# ------------------------------------------------------------------------------------------------------------- delivery
@mutant("pipeline aligned", "union unaligned", symptom=f"{LOST}|{TWICE}|{STUCK}|no reason", faults=OFTEN)
def messages_of_older_attempts_taken(patch: pytest.MonkeyPatch) -> None:
    original = Worker.received

    def received(self: Worker, peer: int, message: bytes) -> None:
        header, current = header_of(message), self._assignment
        if current is not None and header.epoch < current.epoch:
            message = sealed(header._replace(epoch=current.epoch), bytes(body_of(message)))
        original(self, peer, message)

    patch.setattr(Worker, "received", received)


@mutant("pipeline aligned", "union unaligned", symptom=f"{LOST}|{TWICE}|{STUCK}|no reason|left tasks", faults=STORM)
def repeated_messages_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Numbers, "add", lambda self, number: True)


# ------------------------------------------------------------------------------------------------------------- channels
@mutant("pipeline aligned", "keyed-chain unaligned", symptom=f"{LOST}|{TWICE}|{DISORDER}", faults=STORM)
def elements_put_as_they_arrive(patch: pytest.MonkeyPatch) -> None:
    def arrive(self: Inlet, number: int, element: Element, size: int = 0, ordinal: int = 0) -> None:
        self._put(element, size, ordinal)

    patch.setattr(Inlet, "arrive", arrive)


@mutant("event-time aligned", "event-time unaligned", symptom="late|judged|lost", faults="workers=2/3")
def watermark_raised_ahead_of_the_records_before_it(patch: pytest.MonkeyPatch) -> None:
    """One that still waits is replaced, though records were sent since."""
    original = RemoteChannel._put

    def put(self: RemoteChannel, content: Any, *, ordinal: int = 0, urgent: bool = False) -> Any:
        kept = self._watermark
        unsent = original(self, content, ordinal=ordinal, urgent=urgent)
        self._watermark = kept
        return unsent

    patch.setattr(RemoteChannel, "_put", put)


@mutant("pipeline aligned", "union unaligned", symptom="OverflowError", faults="workers=2/3,mailboxes=2/4")
def more_granted_than_was_taken(patch: pytest.MonkeyPatch) -> None:
    original = RemoteChannel.granted
    patch.setattr(RemoteChannel, "granted", lambda self, records, size: original(self, 2 * records, 2 * size))


@mutant(
    "pipeline unaligned",
    "keyed-chain unaligned",
    symptom=LOST,
    faults="workers=2/3,weather=gusts/storm,mailboxes=64/256,false_deaths=0,kills=8,actor_crashes=12,slow_records=20,"
    "slow_sinks=10,spread=0.5",
)
def barrier_ahead_taken_for_arrived(patch: pytest.MonkeyPatch) -> None:
    """So that what comes ahead of it, later, is no part of the checkpoint."""

    def tell_coming(self: Inlet) -> None:
        while (barrier := self._coming.pop(self._told + 1, None)) is not None:
            self._told += 1
            self._mailbox.announced.append((self._place, barrier))

    patch.setattr(Inlet, "_tell_coming", tell_coming)


# -------------------------------------------------------------------------------------------------------------- workers
@mutant(
    "pipeline aligned",
    "union unaligned",
    symptom="was not noticed|nothing was read",
    faults="workers=2/3,worker_kills=6,cuts=4",
)
def silence_not_noticed(patch: pytest.MonkeyPatch) -> None:
    original = RemoteAttempt.lost

    def lost(self: RemoteAttempt, number: int, why: str) -> None:
        if "has died" in why:
            original(self, number, why)

    patch.setattr(RemoteAttempt, "lost", lost)


@mutant("pipeline unaligned", "keyed-chain unaligned", symptom=f"{LOST}|{DISORDER}", faults="workers=2/3,kills=6")
def in_flight_data_not_shipped(patch: pytest.MonkeyPatch) -> None:
    original = deployed.part_of
    patch.setattr(deployed, "part_of", lambda spec, subtasks: (original(spec, subtasks)[0], {}))


@mutant(
    "pipeline aligned",
    "kinds unaligned",
    symptom="no reason|was published before|which is not there",
    faults="workers=2/3",
)
def same_file_names_in_all_workers(patch: pytest.MonkeyPatch) -> None:
    original = WorkerSnapshots.__init__

    def init(self: WorkerSnapshots, *args: Any, **options: Any) -> None:
        original(self, *args, **(options | {"worker": 0}))

    patch.setattr(WorkerSnapshots, "__init__", init)


@mutant(
    "pipeline aligned",
    "union unaligned",
    symptom=f"{LOST}|{TWICE}|no reason",
    faults="workers=2/3,worker_pauses=8,cuts=6",
)
def whoever_is_replaced_commits_what_it_has(patch: pytest.MonkeyPatch) -> None:
    """As it gives up its part, it commits what no checkpoint holds."""
    original = Assignment._abandon

    def abandon(self: Assignment, why: str) -> None:
        if self._part is not None:
            for subtask in self._part._slice.subtasks:
                for sink in subtask._sinks:
                    writer: Any = sink.writer
                    if writer._current is not None:
                        writer._client._broker.end(writer._current, commit=True, now=0.0)
                        writer._current = None
        original(self, why)

    patch.setattr(Assignment, "_abandon", abandon)
