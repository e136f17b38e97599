"""The mailbox: bounds, order, fairness, blocking, the priority lane, and no notification of room ever lost."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamactors.actors.mailbox import Ahead, Mailbox


class AnyUse(RuleBasedStateMachine):
    """Against plain lists: one per channel."""

    @initialize(channels=st.integers(1, 3), capacity=st.integers(1, 12), byte_capacity=st.sampled_from([4, 10_000]))
    def begin(self, channels: int, capacity: int, byte_capacity: int) -> None:
        self.mailbox: Mailbox[int] = Mailbox(channels, capacity, byte_capacity)
        self.quota = max(1, capacity // channels)
        self.items: list[list[tuple[int, int, int]]] = [[] for _ in range(channels)]
        self.blocked: set[int] = set()
        self.waiting: set[int] = set()
        self.next = 0
        self.since: list[int] = [0] * channels

    def pick(self, which: int) -> int:
        return which % len(self.items)

    def queued(self, channel: int) -> int:
        return sum(weight for _, weight, _ in self.items[channel])

    @rule(which=st.integers(0, 2), share=st.floats(0, 1), size=st.integers(0, 6))
    def put(self, which: int, share: float, size: int) -> None:
        channel = self.pick(which)
        room = self.mailbox.room(channel)
        over = sum(size for _, _, size in self.items[channel]) >= self.mailbox.byte_quota
        assert room == (0 if over else self.quota - self.queued(channel))
        weight = round(share * room)
        self.next += 1
        self.mailbox.put(channel, self.next, weight, size)
        self.items[channel].append((self.next, weight, size))

    @rule(which=st.integers(0, 2))
    def put_too_much(self, which: int) -> None:
        channel = self.pick(which)
        with pytest.raises(OverflowError, match=f"channel {channel}"):
            self.mailbox.put(channel, 0, self.quota - self.queued(channel) + 1)

    @precondition(lambda self: any(self.items))
    @rule(which=st.integers(0, 2))
    def wait_for_room(self, which: int) -> None:
        """As an output does: only while there is too little, so that something is queued."""
        channel = self.pick(which)
        if self.items[channel] and self.mailbox.room(channel) < self.quota - self.quota // 2:
            self.waiting.add(channel)
            self.mailbox.notify_room(channel, lambda: self.waiting.discard(channel))

    @rule()
    def take(self) -> None:
        taken = self.mailbox.take()
        ready = {channel for channel, items in enumerate(self.items) if items and channel not in self.blocked}
        if taken is None:
            assert not ready
            return
        channel, item = taken
        assert channel in ready
        assert item == self.items[channel].pop(0)[0]
        for other in ready - {channel}:
            self.since[other] += 1
            assert self.since[other] < len(self.items), f"channel {other} is starved"
        self.since[channel] = 0
        if self.queued(channel) <= self.quota // 2:
            assert channel not in self.waiting, "a sender was not told of the room"

    @rule(which=st.integers(0, 2))
    def block(self, which: int) -> None:
        channel = self.pick(which)
        self.mailbox.block(channel)
        self.blocked.add(channel)
        self.since[channel] = 0

    @rule()
    def unblock(self) -> None:
        self.mailbox.unblock_all()
        self.blocked.clear()
        self.since = [0] * len(self.items)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "mailbox"):
            return
        assert self.mailbox.queued == sum(map(self.queued, range(len(self.items))))
        assert self.mailbox.blocked == sorted(self.blocked)
        assert all(self.queued(channel) <= self.quota for channel in range(len(self.items)))

    @invariant()
    def who_waits_for_room_waits_for_something(self) -> None:
        if hasattr(self, "mailbox"):
            assert all(self.items[channel] for channel in self.waiting)


TestAnyUse = AnyUse.TestCase


def test_channels_are_served_in_turn() -> None:
    mailbox: Mailbox[str] = Mailbox(2, 8)
    for name in "abc":
        mailbox.put(0, name, 1)
    mailbox.put(1, "x", 1)
    taken = [mailbox.take() for _ in range(5)]
    assert taken == [(0, "a"), (1, "x"), (0, "b"), (0, "c"), None]


def test_a_blocked_channel_holds_nobody_else_up() -> None:
    mailbox: Mailbox[str] = Mailbox(2, 8)
    mailbox.put(0, "a", 1)
    mailbox.put(1, "x", 1)
    mailbox.block(0)
    assert mailbox.take() == (1, "x")
    assert mailbox.take() is None
    mailbox.unblock_all()
    assert mailbox.take() == (0, "a")


def test_barriers_need_no_room() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 1)
    mailbox.put(0, "record", 1)
    mailbox.put(0, "barrier", 0)
    assert mailbox.room(0) == 0
    assert [mailbox.take(), mailbox.take()] == [(0, "record"), (0, "barrier")]


def test_the_control_lane_is_neither_bounded_nor_blocked() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 1)
    mailbox.block(0)
    for number in range(100):
        mailbox.send_control(number)
    assert list(mailbox.control) == list(range(100))


async def test_whatever_arrives_sets_the_signal() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 2)
    mailbox.put(0, "a", 1)
    await mailbox.signal.wait()
    mailbox.send_control("stop")
    await mailbox.signal.wait()
    mailbox.block(0)
    mailbox.unblock_all()
    await mailbox.signal.wait()


def test_an_item_may_be_told_of_before_it_is_put_and_is_taken_in_its_turn() -> None:
    mailbox: Mailbox[str] = Mailbox(2, 10)
    mailbox.announce(1, "late")
    mailbox.put(1, "first", 1)
    mailbox.put(1, "late", 0, announce=True)
    (place, ahead), then = mailbox.announced
    assert isinstance(ahead, Ahead) and (place, ahead.item) == then == (1, "late")
    assert [mailbox.take(), mailbox.take(), mailbox.take()] == [(1, "first"), (1, "late"), None]


async def test_being_told_of_an_item_wakes_the_receiver() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 10)
    mailbox.announce(0, "late")
    await mailbox.signal.wait()
