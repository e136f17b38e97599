"""Queries that keep a report for each day up to date: q15, q16, q17. Each bid gives the report anew."""

import datetime as dt
import functools
from typing import Any, NamedTuple

import msgspec

import streamactors as sa
from benchmarks.nexmark.model import Bid
from benchmarks.nexmark.streams import Row, Streams

DAY, MINUTE = 86_400_000, 60_000
LEVELS = 3


@functools.lru_cache(maxsize=16)
def _date(day: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()


def day_of(bid: Bid) -> str:
    return _date(bid.time // DAY)


def minute_of(bid: Bid) -> str:
    hour, minute = divmod(bid.time % DAY // MINUTE, 60)
    return f"{hour:02}:{minute:02}"


def level_of(bid: Bid) -> int:
    if bid.price < 10_000:
        return 0
    return 1 if bid.price < 1_000_000 else 2


# ------------------------------------------------------------------------------------------- distinct bidders, auctions
class Report(NamedTuple):
    key: Any
    minute: str
    """The last one with a bid."""
    counts: tuple[int, ...]
    """Of bids, of bidders and of auctions: in all, then at each level of the price."""


class Reporter(sa.KeyedOperator[Any, Bid, Report]):
    """Counts are kept, and of each bidder and auction the levels at which it was seen, as bits."""

    so_far = sa.ValueState(tuple[str, tuple[int, ...]], default=("", (0,) * 3 * (1 + LEVELS)))
    """The minute and the counts of the report."""
    bidders = sa.MapState(int, int)
    auctions = sa.MapState(int, int)

    def process(self, bid: Bid, ctx: sa.Context[Any, Report], /) -> None:
        minute, before = self.so_far.get()
        counts, level = list(before), level_of(bid)
        _count(counts, 0, level, seen=False, at_level=False)
        for place, (known, number) in enumerate(((self.bidders, bid.bidder), (self.auctions, bid.auction)), 1):
            levels = known.get(number, 0)
            at_level = bool(levels >> level & 1)
            if not at_level:
                known[number] = levels | 1 << level
                _count(counts, place, level, seen=bool(levels), at_level=at_level)
        report = Report(ctx.key, max(minute, minute_of(bid)), tuple(counts))
        self.so_far.set((report.minute, report.counts))
        ctx.emit(report)


def _count(counts: list[int], place: int, level: int, *, seen: bool, at_level: bool) -> None:
    first = place * (1 + LEVELS)
    counts[first] += not seen
    counts[first + 1 + level] += not at_level


def q15(house: Streams) -> sa.Stream[Row]:
    return house.bids.key_by(day_of).process("report", Reporter).map(lambda report: (report.key, *report.counts))


def q16(house: Streams) -> sa.Stream[Row]:
    reports = house.bids.key_by(lambda bid: (bid.channel, day_of(bid))).process("report", Reporter)
    return reports.map(lambda report: (*report.key, report.minute, *report.counts))


# ---------------------------------------------------------------------------------------------------------- prices
class Prices(msgspec.Struct, frozen=True, gc=False):
    levels: tuple[int, int, int]
    low: int
    high: int
    total: int

    def with_bid(self, bid: Bid) -> "Prices":
        low, middle, high = self.levels
        level = level_of(bid)
        levels = (low + (level == 0), middle + (level == 1), high + (level == 2))
        return Prices(levels, min(self.low, bid.price), max(self.high, bid.price), self.total + bid.price)

    def row(self) -> Row:
        count = sum(self.levels)
        return count, *self.levels, self.low, self.high, self.total // count, self.total


class Pricing(sa.KeyedOperator[tuple[int, str], Bid, Row]):
    prices = sa.ValueState(Prices)

    def process(self, bid: Bid, ctx: sa.Context[tuple[int, str], Row], /) -> None:
        prices = (self.prices.get() or Prices((0, 0, 0), bid.price, bid.price, 0)).with_bid(bid)
        self.prices.set(prices)
        ctx.emit((*ctx.key, *prices.row()))


def q17(house: Streams) -> sa.Stream[Row]:
    return house.bids.key_by(lambda bid: (bid.auction, day_of(bid))).process("prices", Pricing)
