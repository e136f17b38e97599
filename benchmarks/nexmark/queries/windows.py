"""Queries over windows of time: q5, q7, q8, q11, q12."""

import datetime as dt
import functools
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import streamactors as sa
from benchmarks.nexmark.model import Bid
from benchmarks.nexmark.streams import Row, Streams

T = TypeVar("T")
TEN_SECONDS: Final = dt.timedelta(seconds=10)
TWO_SECONDS: Final = dt.timedelta(seconds=2)
END: Final = 2**63 - 1
"""What the watermark comes to when there is no more data."""


class Highest(sa.Aggregate[T, list[T], list[T]]):
    """All the values with the largest `fn(value)`."""

    accumulator = list[Any]

    def __init__(self, fn: Callable[[T], int]) -> None:
        self._fn = fn

    def create(self) -> list[T]:
        return []

    def add(self, accumulator: list[T], value: T) -> list[T]:
        return self.merge(accumulator, [value])

    def merge(self, left: list[T], right: list[T]) -> list[T]:
        if not left or not right:
            return left or right
        ahead = self._fn(left[0]) - self._fn(right[0])
        if ahead == 0:
            return [*left, *right]
        return left if ahead > 0 else right

    def result(self, accumulator: list[T]) -> list[T]:
        return accumulator.copy()


def _count_of(counted: sa.Windowed[int, int]) -> int:
    return counted.value


def _price_of(bid: Bid) -> int:
    return bid.price


def q5(house: Streams) -> sa.Stream[Row]:
    """The counts of one window all have the time of its end, and so they are alone in two seconds."""
    windows = house.bids.key_by(lambda bid: bid.auction).window("counts", sa.Sliding(TEN_SECONDS, TWO_SECONDS))
    counts = windows.aggregate(sa.Count()).key_by(lambda counted: counted.end)
    most = counts.window("most", sa.Tumbling(TWO_SECONDS)).aggregate(Highest(_count_of))
    return most.flat_map(lambda found: [(counted.start, counted.key, counted.value) for counted in found.value])


def q7(house: Streams) -> sa.Stream[Row]:
    """First of each bidder, in parallel; then of these."""
    windows = house.bids.key_by(lambda bid: bid.bidder).window("highest-of-bidder", sa.Tumbling(TEN_SECONDS))
    of_bidders = windows.aggregate(Highest(_price_of)).flat_map(lambda found: found.value)
    highest = of_bidders.window_all("highest", sa.Tumbling(TEN_SECONDS)).aggregate(Highest(_price_of))
    return highest.flat_map(lambda found: [_whole(bid) for bid in found.value])


def _whole(bid: Bid) -> Row:
    return bid.auction, bid.bidder, bid.price, bid.time, bid.extra


def q8(house: Streams) -> sa.Stream[Row]:
    """A seller of several auctions counts once."""
    sellers = house.auctions.key_by(lambda auction: auction.seller).window("sellers", sa.Tumbling(TEN_SECONDS))
    once = sellers.aggregate(sa.Count()).key_by(lambda counted: counted.key)
    persons = house.persons.key_by(lambda person: person.id)
    joined = persons.window_join("new-sellers", once, sa.Tumbling(TEN_SECONDS))
    return joined.map(lambda pair: (pair[0].id, pair[0].name, pair[1].start))


def q11(house: Streams) -> sa.Stream[Row]:
    sessions = house.bids.key_by(lambda bid: bid.bidder).window("sessions", sa.Session(TEN_SECONDS))
    return sessions.aggregate(sa.Count()).map(lambda found: (found.key, found.value, found.start, found.end))


class CountByClock(sa.KeyedOperator[int, Bid, Row]):
    """Counts in windows of `size` milliseconds of the clock on the wall. The last ones end with the data."""

    count = sa.ValueState(int, default=0)
    end = sa.ValueState(int, default=0)

    def __init__(self, size: int = 10_000) -> None:
        self._size = size

    def process(self, bid: Bid, ctx: sa.Context[int, Row], /) -> None:
        count = self.count.get()
        if count == 0:
            self._begin(ctx)
        self.count.set(count + 1)

    def _begin(self, ctx: sa.Context[int, Row]) -> None:
        now = time.time_ns() // 1_000_000
        end = now - now % self._size + self._size
        self.end.set(end)
        ctx.timers.processing(end)
        ctx.timers.event(END)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Row], /) -> None:
        end = self.end.get()
        ctx.emit((ctx.key, self.count.get(), end - self._size, end))
        ctx.timers.delete(end, domain="processing")
        ctx.timers.delete(END)
        self.count.clear()
        self.end.clear()


def q12(house: Streams, size: int = 10_000) -> sa.Stream[Row]:
    operator = functools.partial(CountByClock, size)
    return house.bids.key_by(lambda bid: bid.bidder).process("counts", operator)
