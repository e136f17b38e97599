"""Control messages: once and in order, however the network is; and who is taken for lost, and when."""

import asyncio
from typing import Any

import pytest

from streamactors.clock import SYSTEM, Clock
from streamactors.cluster.delivery import Delivery
from streamactors.cluster.line import MOST_BYTES, Line
from streamactors.cluster.messages import CONTROLS, TO_WORKER, Others, Prepare, Settle, Told
from streamactors.cluster.watch import Watch
from streamactors.cluster.wire import CONTROL, COORDINATOR, Epoch
from streamactors.cluster.workers import Times
from streamactors.elements import Barrier
from streamactors.runtime.messages import CheckpointAborted, TriggerBarrier
from streamactors.testing.network import FAIR, STORM, MadeUpNetwork, Weather
from tests.cluster.virtual import virtually

EPOCH = Epoch(1, 1)


class Ends:
    """A line from the coordinator to worker 0, and what has come of it there."""

    def __init__(self, clock: Clock, weather: Weather = FAIR, seed: int = 0) -> None:
        self.network = MadeUpNetwork(seed, weather)
        self.lost: list[tuple[int, BaseException]] = []
        wire = self.network.wire(COORDINATOR)
        sending = Delivery(CONTROL, EPOCH, COORDINATOR, wire, clock, self._lost)
        self.line = Line(sending, 0, TO_WORKER)
        self.received: list[Any] = []
        self.bundles: list[int] = []
        """The size of each message that was accepted."""
        self._accepting = Delivery(CONTROL, EPOCH, 0, self.network.wire(0), clock, self._lost)
        self.network.attach(0, self._take)

    def _lost(self, peer: int, error: BaseException) -> None:
        self.lost.append((peer, error))

    def _take(self, peer: int, message: bytes) -> None:
        body = self._accepting.accept(peer, message)
        if body is not None:
            self.bundles.append(len(body))
            self.received += TO_WORKER.read(body)


@pytest.mark.parametrize("seed", range(10))
def test_once_and_in_order_in_a_storm(seed: int) -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock, STORM, seed)
        for number in range(100):
            ends.line.give(Settle(number))
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        await ends.line.flush()
        assert not ends.lost
        assert ends.received == [Settle(number) for number in range(100)]
        await asyncio.sleep(1)  # what was repeated, or lost and comes late

    virtually(seed, main)


def test_what_is_given_while_a_call_is_under_way_goes_together() -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock)
        for number in range(50):
            ends.line.give(Settle(number))
        await ends.line.flush()
        assert len(ends.received) == 50 and len(ends.bundles) == 1

    virtually(0, main)


def test_a_message_is_bounded() -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock)
        for _ in range(9):
            ends.line.give(Prepare(bytes(MOST_BYTES // 4), b"", None))
        await ends.line.flush()
        assert len(ends.received) == 9 and len(ends.bundles) == 3

    virtually(0, main)


def test_what_waits_may_be_added_to_and_changed() -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock)
        told, others = Told(CONTROLS.post(CheckpointAborted(7)), [1]), Others({"a": 1})
        ends.line.give(told)
        waiting = ends.line.last
        assert waiting is told
        told.subtasks.append(2)
        ends.line.give(others)
        others.groups = {"a": 2}
        assert ends.line.holds(others)
        assert ends.line.last is not told
        await ends.line.flush()
        assert not ends.line.holds(others) and ends.line.idle
        first, second = ends.received
        assert first.subtasks == [1, 2] and CONTROLS.open(first.post) == CheckpointAborted(7)
        assert second == Others({"a": 2})

    virtually(0, main)


def test_whoever_waits_is_not_kept_by_what_others_give_later() -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock)
        ends.line.give(Settle(1))
        flushed = asyncio.create_task(ends.line.flush())
        number = 1
        while not flushed.done():
            number += 1
            ends.line.give(Settle(number))
            await asyncio.sleep(0)
        assert ends.received[0] == Settle(1) and not ends.line.idle
        await ends.line.flush()
        assert ends.received[-1] == Settle(number)

    virtually(0, main)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_given_as_the_last_message_was_taken_goes_too(seed: int) -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock)
        ends.line.give(Settle(1))
        await ends.line.flush()
        ends.line.give(Settle(2))
        await asyncio.sleep(1)
        assert ends.received == [Settle(1), Settle(2)]

    virtually(seed, main)


def test_once_its_peer_is_lost_it_goes_nowhere() -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock)
        ends.network.detach(0)
        ends.line.give(Settle(1))
        await ends.line.flush()
        assert [peer for peer, _ in ends.lost] == [0]
        ends.network.attach(0, ends._take)
        ends.line.give(Settle(2))
        assert ends.line.idle and ends.line.last is None
        await ends.line.flush()
        assert ends.received == []

    virtually(0, main)


def test_closing_leaves_no_task() -> None:
    async def main(clock: Clock) -> None:
        ends = Ends(clock)
        ends.network.detach(0)
        ends.line.give(Settle(1))
        await asyncio.sleep(0.1)
        await ends.line.close()
        assert not ends.lost

    virtually(0, main)


async def test_whoever_closes_may_be_cancelled() -> None:
    ends = Ends(SYSTEM)
    ends.network.detach(0)
    ends.line.give(Settle(1))
    await asyncio.sleep(0)
    closing = asyncio.create_task(ends.line.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


def test_a_barrier_goes_as_it_is() -> None:
    barrier = Barrier(3, target="file:///there", overtakes_at=5)
    assert CONTROLS.open(CONTROLS.post(TriggerBarrier(barrier))) == TriggerBarrier(barrier)


# --------------------------------------------------------------------------------------------------------------- watch
class Watched:
    def __init__(self, clock: Clock, *, forgiving: bool = True) -> None:
        self.beats: list[int] = []
        self.silent: list[tuple[int, float]] = []
        self.watch = Watch(
            [0, 1],
            clock,
            Times(heartbeat=1.0, lost_after=10.0),
            beat=self.beats.append,
            on_silent=lambda peer, seconds: self.silent.append((peer, seconds)),
            forgiving=forgiving,
        )
        self.watch.start("test")


def test_who_is_silent_for_too_long_is_told_of_once() -> None:
    async def main(clock: Clock) -> None:
        watched = Watched(clock)
        for _ in range(30):
            await clock.sleep(1)
            watched.watch.heard(0)
        await watched.watch.stop()
        [(peer, seconds)] = watched.silent
        assert peer == 1 and 10 < seconds < 12
        assert watched.beats.count(0) >= 29 and watched.beats.count(1) <= 11

    virtually(0, main)


class _Pausing:
    """A clock that jumps, as that of a process does which was stopped."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.jump = 0.0
        self.sleep = clock.sleep

    def monotonic(self) -> float:
        return self._clock.monotonic() + self.jump


@pytest.mark.parametrize("forgiving", [True, False])
def test_a_pause_of_its_own(forgiving: bool) -> None:
    """A worker that was stopped is given up already, and finds out at once; a coordinator finds nobody guilty."""

    async def main(clock: Clock) -> None:
        pausing: Any = _Pausing(clock)
        watched = Watched(pausing, forgiving=forgiving)
        await clock.sleep(1.5)
        pausing.jump = 60.0
        await clock.sleep(1)
        assert [peer for peer, _ in watched.silent] == ([] if forgiving else [0, 1])
        watched.watch.heard(0)
        await clock.sleep(12)
        assert 1 in [peer for peer, _ in watched.silent], "who is silent after it is"
        await watched.watch.stop()

    virtually(0, main)


@pytest.mark.parametrize("forgiving", [True, False])
def test_what_has_waited_while_it_was_stopped_is_no_sign_of_life_to_a_worker(forgiving: bool) -> None:
    """It may be as old as the pause is long: the coordinator may have replaced it meanwhile."""

    async def main(clock: Clock) -> None:
        pausing: Any = _Pausing(clock)
        watched = Watched(pausing, forgiving=forgiving)
        await clock.sleep(1.5)
        pausing.jump = 60.0
        for peer in (0, 1):
            watched.watch.heard(peer)
            assert (watched.watch.silent(peer) < watched.watch.lost_after) is forgiving
        await clock.sleep(1)
        assert [peer for peer, _ in watched.silent] == ([] if forgiving else [0, 1])
        await watched.watch.stop()

    virtually(0, main)
