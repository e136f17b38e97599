"""The coordinator's decisions: its four invariants under anything that may happen, and directed cases."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamactors.checkpoint import coordinator as c
from streamactors.checkpoint.coordinator import CheckpointCoordinator, Settings

SUBTASKS = ("source", "middle", "sink")
COMMITTERS = ("sink",)


def make(committers: tuple[str, ...] = COMMITTERS, **settings: Any) -> CheckpointCoordinator[str]:
    defaults: dict[str, Any] = {"interval": 10.0, "timeout": 60.0}
    return CheckpointCoordinator(Settings(**(defaults | settings)), SUBTASKS, committers, first_id=1)


def triggered(actions: list[c.Action]) -> list[int]:
    return [action.barrier.checkpoint for action in actions if isinstance(action, c.Trigger)]


def kinds(actions: list[c.Action]) -> list[type]:
    return [type(action) for action in actions]


def acknowledge(coordinator: CheckpointCoordinator[str], checkpoint: int, now: float) -> list[c.Action]:
    actions: list[c.Action] = []
    for subtask in SUBTASKS:
        actions += coordinator.on(c.Acknowledged(subtask, checkpoint, f"{subtask}@{checkpoint}"), now)
    return actions


def complete(coordinator: CheckpointCoordinator[str], checkpoint: int, now: float) -> list[c.Action]:
    acknowledge(coordinator, checkpoint, now)
    return coordinator.on(c.ManifestWritten(checkpoint), now)


# ----------------------------------------------------------------------------------------------------------- triggering
def test_nothing_starts_before_every_subtask_runs() -> None:
    coordinator = make()
    assert coordinator.on(c.Requested(1), 100) == []
    assert coordinator.deadline() is None
    assert triggered(coordinator.on(c.Started(), 100)) == [1]


def test_the_first_one_starts_an_interval_after_the_start() -> None:
    coordinator = make()
    coordinator.on(c.Started(), 5)
    assert coordinator.deadline() == 15
    assert coordinator.on(c.Tick(), 14.9) == []
    assert triggered(coordinator.on(c.Tick(), 15)) == [1]


def test_min_pause_counts_from_the_end_of_the_last() -> None:
    coordinator = make(min_pause=7)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    complete(coordinator, 1, 18)
    assert coordinator.deadline() == 25
    assert triggered(coordinator.on(c.Tick(), 24.9)) == []
    assert triggered(coordinator.on(c.Tick(), 25)) == [2]


def test_no_more_than_max_concurrent() -> None:
    coordinator = make(max_concurrent=2)
    coordinator.on(c.Started(), 0)
    assert [triggered(coordinator.on(c.Tick(), now)) for now in (10, 20, 30)] == [[1], [2], []]
    assert coordinator.in_flight == (1, 2)
    assert triggered(complete(coordinator, 1, 31)) == [3]


def test_without_an_interval_only_requests_start_one() -> None:
    coordinator = make(interval=None)
    coordinator.on(c.Started(), 0)
    assert coordinator.deadline() is None
    assert coordinator.on(c.Tick(), 1e9) == []
    assert triggered(coordinator.on(c.Requested(1), 1e9)) == [1]


def test_one_checkpoint_serves_all_requests_that_wait() -> None:
    coordinator = make(interval=None)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Requested(1), 0)
    for ticket in (2, 3):
        assert coordinator.on(c.Requested(ticket), 1) == []
    actions = complete(coordinator, 1, 2)
    assert [action.tickets for action in actions if isinstance(action, c.Notify)] == [(1,)]
    assert triggered(actions) == [2]
    assert [action.tickets for action in complete(coordinator, 2, 3) if isinstance(action, c.Notify)] == [(2, 3)]


# ----------------------------------------------------------------------------------------------------------- completion
def test_it_tells_why_a_checkpoint_was_triggered() -> None:
    coordinator = make(max_concurrent=3)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    coordinator.on(c.Requested(1), 11)
    assert [coordinator.cause(checkpoint) for checkpoint in coordinator.in_flight] == ["interval", "request"]
    complete(coordinator, 2, 12)
    coordinator.on(c.SourcesStopped(c.NOBODY, resumable=True), 13)
    assert [coordinator.cause(checkpoint) for checkpoint in coordinator.in_flight] == ["rescale"]
    coordinator.on(c.Declined("middle", 3, "no"), 14)
    complete(coordinator, 4, 15)
    end(coordinator, 16)
    assert [coordinator.cause(checkpoint) for checkpoint in coordinator.in_flight] == ["final"]


def test_the_one_that_follows_a_savepoint_is_told_as_such() -> None:
    coordinator = make(interval=None)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Requested(1, "a"), 0)
    assert coordinator.cause(1) == "request"
    complete(coordinator, 1, 1)
    assert coordinator.cause(2) == "follow-up"
    coordinator.on(c.Requested(2, "b"), 1)
    complete(coordinator, 2, 2)
    coordinator.on(c.Requested(3), 2)
    complete(coordinator, 3, 3)
    assert coordinator.cause(4) == "request", "somebody waits for it, whatever it follows"


def test_the_order_from_acknowledgements_to_the_receipt() -> None:
    coordinator = make()
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    [write] = acknowledge(coordinator, 1, 11)
    assert isinstance(write, c.WriteManifest) and set(write.states) == set(SUBTASKS) and not write.final
    notify, retire = coordinator.on(c.ManifestWritten(1), 12)
    assert notify == c.Notify(1, commit=True) and retire == c.Retire(())
    assert coordinator.on(c.Committed("sink", 1), 13) == [c.WriteReceipt(1)]
    assert coordinator.on(c.ReceiptWritten(1), 14) == []


def test_a_later_checkpoint_gives_up_the_earlier_ones_and_commits_for_them() -> None:
    coordinator = make(max_concurrent=3)
    coordinator.on(c.Started(), 0)
    for now in (10, 20, 30):
        coordinator.on(c.Tick(), now)
    actions = complete(coordinator, 2, 31)
    assert [action.checkpoint for action in actions if isinstance(action, c.Abort)] == [1]
    assert coordinator.in_flight == (3,)
    assert coordinator.on(c.Acknowledged("source", 1, "late"), 32) == []


def test_who_asked_for_a_subsumed_checkpoint_is_given_the_one_that_subsumes_it() -> None:
    """It holds all that the earlier one would have."""
    coordinator = make(max_concurrent=3)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Requested(1), 0)
    coordinator.on(c.Requested(2), 1)
    abort, notify, *_ = complete(coordinator, 2, 2)
    assert abort == c.Abort(1, "subsumed by checkpoint 2, which completed first")
    assert notify == c.Notify(2, commit=True, tickets=(1, 2))


def test_one_manifest_at_a_time() -> None:
    coordinator = make(max_concurrent=2)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    coordinator.on(c.Tick(), 20)
    assert kinds(acknowledge(coordinator, 1, 21)) == [c.WriteManifest]
    assert acknowledge(coordinator, 2, 21) == []
    assert c.WriteManifest in kinds(coordinator.on(c.ManifestWritten(1), 22))


def test_a_savepoint_is_alone_and_does_not_commit() -> None:
    coordinator = make(max_concurrent=3)
    coordinator.on(c.Started(), 0)
    [trigger] = coordinator.on(c.Requested(1, "file:///savepoint"), 1)
    assert isinstance(trigger, c.Trigger) and trigger.barrier.savepoint
    assert coordinator.on(c.Tick(), 50) == [] and coordinator.on(c.Requested(2), 50) == []
    actions = complete(coordinator, 1, 51)
    assert c.Notify(1, commit=False, tickets=(1,)) in actions
    assert triggered(actions) == [2]


def test_a_commit_covers_earlier_checkpoints() -> None:
    coordinator = make(max_concurrent=2)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    complete(coordinator, 1, 11)
    coordinator.on(c.Tick(), 20)
    complete(coordinator, 2, 21)
    assert coordinator.on(c.Committed("sink", 2), 22) == [c.WriteReceipt(1), c.WriteReceipt(2)]


# -------------------------------------------------------------------------------------------------------------- failure
def test_failures_are_tolerated_in_a_row() -> None:
    coordinator = make(tolerable_failures=2, interval=None)
    coordinator.on(c.Started(), 0)
    for number in (1, 2, 3, 4, 5):
        coordinator.on(c.Requested(number), number)
        if number == 3:
            complete(coordinator, number, number)
        else:
            actions = coordinator.on(c.Declined("middle", number, "no"), number)
            assert kinds(actions) == [c.Abort]
    coordinator.on(c.Requested(6), 6)
    actions = coordinator.on(c.ManifestFailed(6, "disk full"), 6)
    assert kinds(actions) == [c.Abort, c.FailAttempt] and "disk full" in actions[1].reason  # type: ignore[union-attr]
    assert coordinator.on(c.Requested(7), 7) == [] and coordinator.deadline() is None


def test_a_savepoint_that_succeeds_forgives_no_failure() -> None:
    """It lets no transaction go, so that they pile up from failure to failure."""
    coordinator = make(tolerable_failures=1, interval=None)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Requested(1), 0)
    coordinator.on(c.Declined("middle", 1, "no"), 0)
    coordinator.on(c.Requested(2, "a"), 1)
    complete(coordinator, 2, 1)
    actions = coordinator.on(c.Declined("middle", 3, "no"), 2)
    assert kinds(actions) == [c.Abort, c.FailAttempt]


def test_a_time_out_names_who_is_missing_and_answers_the_request() -> None:
    coordinator = make(tolerable_failures=1, interval=None)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Requested(1), 1)
    coordinator.on(c.Acknowledged("source", 1, None), 2)
    assert coordinator.deadline() == 61
    [abort] = coordinator.on(c.Tick(), 61)
    assert isinstance(abort, c.Abort) and abort.tickets == (1,)
    assert "within 60 s by middle, sink" in abort.reason


def test_a_manifest_that_is_being_written_does_not_time_out() -> None:
    coordinator = make()
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    acknowledge(coordinator, 1, 11)
    assert coordinator.on(c.Tick(), 1000) == []
    assert coordinator.deadline() is None


# -------------------------------------------------------------------------------------------------------- the end of it
def end(coordinator: CheckpointCoordinator[str], now: float) -> list[c.Action]:
    return [action for subtask in SUBTASKS for action in coordinator.on(c.DataEnded(subtask), now)]


def test_a_final_checkpoint_follows_the_end_of_data_and_is_committed_before_the_finish() -> None:
    coordinator = make()
    coordinator.on(c.Started(), 0)
    assert triggered(end(coordinator, 1)) == [1]
    [write] = acknowledge(coordinator, 1, 2)
    assert isinstance(write, c.WriteManifest) and write.final
    assert c.Finish not in kinds(coordinator.on(c.ManifestWritten(1), 3))
    assert c.Finish not in kinds(coordinator.on(c.Committed("sink", 1), 4))
    assert coordinator.on(c.ReceiptWritten(1), 5) == [c.Finish()]


def test_a_late_receipt_of_an_earlier_checkpoint_finishes_nothing() -> None:
    coordinator = make()
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    complete(coordinator, 1, 11)
    assert coordinator.on(c.Committed("sink", 1), 12) == [c.WriteReceipt(1)]
    end(coordinator, 13)
    complete(coordinator, 2, 14)
    assert coordinator.on(c.ReceiptWritten(1), 15) == []
    coordinator.on(c.Committed("sink", 2), 16)
    assert coordinator.on(c.ReceiptWritten(2), 17) == [c.Finish()]


def test_without_transactions_the_final_manifest_is_the_end() -> None:
    coordinator = make(committers=())
    coordinator.on(c.Started(), 0)
    end(coordinator, 1)
    assert kinds(complete(coordinator, 1, 2)) == [c.Notify, c.Retire, c.Finish]


def test_the_final_checkpoint_waits_for_those_in_flight_without_spinning() -> None:
    coordinator = make(max_concurrent=3)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Tick(), 10)
    assert end(coordinator, 11) == []
    assert coordinator.deadline() == 70, "nothing but the time-out may wake the job, or it would spin"
    assert triggered(complete(coordinator, 1, 12)) == [2]


def test_stop_takes_its_checkpoint_without_an_end_of_data() -> None:
    coordinator = make()
    coordinator.on(c.Started(), 0)
    assert triggered(coordinator.on(c.SourcesStopped(9), 1)) == [1]
    assert c.Notify(1, commit=True, tickets=(9,)) in complete(coordinator, 1, 2)


def test_drain_waits_for_the_end_of_data() -> None:
    coordinator = make()
    coordinator.on(c.Started(), 0)
    assert coordinator.on(c.SourcesStopped(9, drain=True), 1) == []
    assert triggered(end(coordinator, 2)) == [1]
    assert c.Notify(1, commit=True, tickets=(9,)) in complete(coordinator, 1, 2)


def test_a_stop_whose_checkpoint_fails_fails_the_attempt_however_tolerant() -> None:
    coordinator = make(tolerable_failures=100)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.SourcesStopped(9), 1)
    assert kinds(coordinator.on(c.Declined("middle", 1, "no"), 2)) == [c.Abort, c.FailAttempt]


def test_a_stop_that_may_fail_lets_the_sources_read_on() -> None:
    coordinator = make(interval=None)
    coordinator.on(c.Started(), 0)
    assert triggered(coordinator.on(c.SourcesStopped(c.NOBODY, resumable=True), 1)) == [1]
    actions = coordinator.on(c.Declined("middle", 1, "no"), 2)
    assert kinds(actions) == [c.Abort, c.Resume, c.Trigger], "what the sinks have prepared is committed"
    assert not actions[2].barrier.savepoint  # type: ignore[union-attr]
    [write] = acknowledge(coordinator, 2, 3)
    assert isinstance(write, c.WriteManifest) and not write.final
    coordinator.on(c.ManifestWritten(2), 3)
    assert triggered(coordinator.on(c.SourcesStopped(c.NOBODY, resumable=True), 4)) == [3]
    assert c.Notify(3, commit=True, tickets=(c.NOBODY,)) in complete(coordinator, 3, 5)


def test_between_two_that_fail_a_checkpoint_commits() -> None:
    coordinator = make(interval=None, max_concurrent=2, tolerable_failures=1)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.SourcesStopped(c.NOBODY, resumable=True), 1)
    assert triggered(coordinator.on(c.Declined("middle", 1, "no"), 2)) == [2]
    assert triggered(coordinator.on(c.Declined("middle", 2, "no"), 3)) == []
    coordinator.on(c.Requested(1, "file:///s"), 3)
    coordinator.on(c.SourcesStopped(c.NOBODY, resumable=True), 3)
    coordinator.on(c.Declined("middle", 3, "no"), 4)  # the savepoint
    [write] = acknowledge(coordinator, 4, 5)
    assert isinstance(write, c.WriteManifest) and not write.final
    assert triggered(coordinator.on(c.ManifestWritten(4), 6)) == [5]
    [write] = acknowledge(coordinator, 5, 7)
    assert isinstance(write, c.WriteManifest) and write.final


def test_a_failed_final_checkpoint_is_tried_again() -> None:
    coordinator = make(tolerable_failures=1)
    coordinator.on(c.Started(), 0)
    end(coordinator, 1)
    actions = coordinator.on(c.Declined("middle", 1, "no"), 2)
    assert kinds(actions) == [c.Abort, c.Trigger]
    [write] = acknowledge(coordinator, 2, 3)
    assert isinstance(write, c.WriteManifest) and write.final


# -------------------------------------------------------------------------------------------------------- anything goes
class AnythingThatMayHappen(RuleBasedStateMachine):
    """Plays the job and its subtasks: acknowledges, declines, fails, commits and ends in any order, also late."""

    @initialize(
        concurrent=st.integers(1, 3), tolerable=st.integers(0, 3), pause=st.sampled_from([0.0, 3.0]),
        interval=st.sampled_from([None, 5.0]), committers=st.sampled_from([COMMITTERS, (), ("middle", "sink")]),
    )  # fmt: skip
    def begin(
        self, concurrent: int, tolerable: int, pause: float, interval: float | None, committers: tuple[str, ...]
    ) -> None:
        self.coordinator = make(
            committers, max_concurrent=concurrent, tolerable_failures=tolerable, min_pause=pause, interval=interval,
            timeout=20.0,
        )  # fmt: skip
        self.concurrent, self.tolerable, self.committers = concurrent, tolerable, committers
        self.now = 0.0
        self.barriers: dict[int, bool] = {}
        self.acks: dict[int, set[str]] = {}
        self.ended_checkpoints: set[int] = set()
        self.writing: int | None = None
        self.final: set[int] = set()
        self.manifests: list[int] = []
        self.commit_wanted: list[int] = []
        self.committed: dict[int, set[str]] = {}
        self.receipts: set[int] = set()
        self.receipts_due: list[int] = []
        self.finished = self.failed = self.stopped = self.handing_over = False
        self.ended: set[str] = set()
        self.tickets: set[int] = set()
        self.answered: set[int] = set()
        self.failures = 0
        self.feed(c.Started())

    def feed(self, event: c.Event) -> None:
        for action in self.coordinator.on(event, self.now):
            self.do(action)

    def do(self, action: c.Action) -> None:
        assert not self.finished
        match action:
            case c.Trigger(barrier):
                number = barrier.checkpoint
                assert not self.failed and number > max(self.barriers, default=0)
                in_flight = set(self.barriers) - self.ended_checkpoints
                assert len(in_flight) < self.concurrent
                assert not any(self.barriers[n] for n in in_flight), "started while a savepoint is in flight"
                self.barriers[number] = barrier.savepoint
                self.acks[number] = set()
            case c.WriteManifest(barrier, states, final):
                number = barrier.checkpoint
                assert self.writing is None, "two manifests at a time"
                assert self.acks[number] == set(SUBTASKS) == set(states)
                assert number not in self.ended_checkpoints
                if not barrier.savepoint:
                    assert number > max((n for n in self.manifests if not self.barriers[n]), default=0)
                self.writing = number
                if final:
                    assert self.stopped or self.ended == set(SUBTASKS)
                    self.final.add(number)
            case c.Notify(number, commit, tickets):
                assert number in self.manifests
                assert commit == (not self.barriers[number] or number in self.final)
                if commit:
                    self.commit_wanted.append(number)
                    self.committed[number] = set()
                    if not self.barriers[number]:
                        assert not [n for n in self.barriers if n < number and n not in self.ended_checkpoints]
                self.answer(tickets)
            case c.Abort(number, _, tickets):
                assert number not in self.ended_checkpoints and number != self.writing
                self.ended_checkpoints.add(number)
                self.answer(tickets)
            case c.WriteReceipt(number):
                assert self.committed[number] == set(self.committers)
                self.receipts_due.append(number)
            case c.Retire(in_flight):
                assert set(in_flight) == set(self.barriers) - self.ended_checkpoints
            case c.FailAttempt():
                self.failed = True
            case c.Resume():
                assert self.handing_over, "nobody has stopped reading for a while"
                self.stopped = self.handing_over = False
            case c.Finish():
                last = self.manifests[-1]
                assert last in self.final
                assert not self.committers or last in self.receipts
                self.finished = True

    def answer(self, tickets: tuple[int, ...]) -> None:
        tickets = tuple(ticket for ticket in tickets if ticket != c.NOBODY)
        assert not set(tickets) & self.answered, "answered twice"
        assert set(tickets) <= self.tickets
        self.answered |= set(tickets)

    def alive(self) -> bool:
        return not self.finished and not self.failed

    @precondition(alive)
    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(c.Tick())

    @precondition(alive)
    @rule(savepoint=st.integers(0, 4))
    def request(self, savepoint: int) -> None:
        ticket = len(self.tickets) + 1
        self.tickets.add(ticket)
        self.feed(c.Requested(ticket, "file:///s" if savepoint == 0 else None))

    @precondition(lambda self: self.alive() and self.barriers)
    @rule(subtask=st.sampled_from(SUBTASKS), which=st.integers(0, 5))
    def acknowledge(self, subtask: str, which: int) -> None:
        """Also late ones, and repetitions."""
        number = sorted(self.barriers)[-1 - which % len(self.barriers)]
        self.acks[number].add(subtask)
        self.feed(c.Acknowledged(subtask, number, None))

    @precondition(lambda self: self.alive() and set(self.barriers) - self.ended_checkpoints)
    @rule(which=st.integers(0, 5))
    def acknowledge_all(self, which: int) -> None:
        in_flight = sorted(set(self.barriers) - self.ended_checkpoints)
        number = in_flight[which % len(in_flight)]
        for subtask in SUBTASKS:
            self.acks[number].add(subtask)
            self.feed(c.Acknowledged(subtask, number, None))

    @precondition(lambda self: self.alive() and self.barriers)
    @rule(subtask=st.sampled_from(SUBTASKS), which=st.integers(0, 9))
    def decline(self, subtask: str, which: int) -> None:
        number = sorted(self.barriers)[-1 - which % len(self.barriers)]
        if subtask not in self.acks[number]:
            self.feed(c.Declined(subtask, number, "cannot"))

    @precondition(lambda self: self.alive() and self.writing is not None)
    @rule(fails=st.integers(0, 5))
    def manifest(self, fails: int) -> None:
        number, self.writing = self.writing, None
        assert number is not None
        if fails == 0:
            self.feed(c.ManifestFailed(number, "disk full"))
        else:
            self.manifests.append(number)
            self.ended_checkpoints.add(number)
            self.feed(c.ManifestWritten(number))

    @precondition(lambda self: self.alive() and self.commit_wanted)
    @rule(which=st.integers(0, 5))
    def commit(self, which: int) -> None:
        number = self.commit_wanted[which % len(self.commit_wanted)]
        for subtask in self.committers:
            for covered in self.committed:
                if covered <= number:
                    self.committed[covered].add(subtask)
            self.feed(c.Committed(subtask, number))

    @precondition(lambda self: self.alive() and self.receipts_due)
    @rule()
    def receipt(self) -> None:
        number = self.receipts_due.pop(0)
        self.receipts.add(number)
        self.feed(c.ReceiptWritten(number))

    @precondition(alive)
    @rule(subtask=st.sampled_from(SUBTASKS))
    def data_ends(self, subtask: str) -> None:
        self.ended.add(subtask)
        self.feed(c.DataEnded(subtask))

    @precondition(lambda self: self.alive() and not self.stopped)
    @rule(drain=st.booleans())
    def stop(self, drain: bool) -> None:
        ticket = len(self.tickets) + 1
        self.tickets.add(ticket)
        self.stopped = not drain
        self.feed(c.SourcesStopped(ticket, drain=drain))

    @precondition(lambda self: self.alive() and not self.stopped)
    @rule()
    def hand_over(self) -> None:
        self.stopped = self.handing_over = True
        self.feed(c.SourcesStopped(c.NOBODY, resumable=True))

    @precondition(lambda self: not self.alive())
    @rule()
    def it_is_over(self) -> None:
        assert self.finished or self.failed

    @invariant()
    def a_wake_up_is_never_in_vain(self) -> None:
        """Else the job would spin."""
        if not hasattr(self, "coordinator") or not self.alive():
            return
        deadline = self.coordinator.deadline()
        if deadline is not None and deadline <= self.now:
            before = (len(self.barriers), len(self.ended_checkpoints))
            self.feed(c.Tick())
            assert (len(self.barriers), len(self.ended_checkpoints)) != before or self.failed, "spins"

    @invariant()
    def no_more_is_prepared_than_sinks_have_ids_for(self) -> None:
        """A barrier is a transaction, which is let go once a checkpoint that commits is complete. See
        connectors/kafka: its pool of ids, of which two are for what is open."""
        if hasattr(self, "coordinator") and self.committers and not self.failed:
            commits = max((n for n in self.manifests if not self.barriers[n]), default=0)
            assert len([n for n in self.barriers if n > commits]) <= 2 * (self.concurrent + self.tolerable + 1)


TestAnythingThatMayHappen = AnythingThatMayHappen.TestCase


def targets(actions: list[c.Action]) -> list[str | None]:
    return [action.barrier.target for action in actions if isinstance(action, c.Trigger)]


def test_savepoints_asked_for_at_once_have_a_checkpoint_that_commits_in_between() -> None:
    coordinator = make(interval=None)
    coordinator.on(c.Started(), 0)
    assert targets(coordinator.on(c.Requested(1, "a"), 0)) == ["a"]
    coordinator.on(c.Requested(2, "b"), 0)
    acknowledge(coordinator, 1, 1)
    assert targets(coordinator.on(c.ManifestWritten(1), 1)) == [None], "else what only savepoints list piles up"


def test_a_savepoint_that_failed_is_followed_by_a_checkpoint_too() -> None:
    """Its sinks have prepared a transaction each; failures of savepoints are not counted, so there may be many."""
    coordinator = make(interval=None)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Requested(1, "a"), 0)
    actions = coordinator.on(c.Declined("middle", 1, "disk full"), 1)
    assert targets(actions) == [None]


def test_a_savepoint_asked_for_before_the_end_is_taken_before_the_final_checkpoint() -> None:
    coordinator = make(interval=None)
    coordinator.on(c.Started(), 0)
    coordinator.on(c.Requested(1), 0)
    coordinator.on(c.Requested(2, "a"), 0)
    for subtask in SUBTASKS:
        coordinator.on(c.DataEnded(subtask), 1)
    acknowledge(coordinator, 1, 1)
    assert targets(coordinator.on(c.ManifestWritten(1), 1)) == ["a"]
    acknowledge(coordinator, 2, 2)
    actions = coordinator.on(c.ManifestWritten(2), 2)
    assert targets(actions) == [None] and coordinator._final == 3
