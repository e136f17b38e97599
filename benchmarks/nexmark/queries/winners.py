"""Queries over the bids that won: q4, q6, q9. They have one core: an auction closes when event time has come to its
end, with the highest bid that came in time."""

import msgspec

import streamactors as sa
from benchmarks.nexmark.model import Auction, Bid, Event
from benchmarks.nexmark.streams import Row, Streams, is_auction, is_person

RECENT = 10
"""Auctions that count for a seller's average."""
CLOSE, FORGET = "close", "forget"


class Won(msgspec.Struct, frozen=True, gc=False):
    auction: Auction
    bid: Bid


class Auctioneer(sa.KeyedOperator[int, Event, Won]):
    """Keeps an open auction and its best bid, and nothing of one that has closed. A bid that comes before its auction
    is kept for as long as that may still come: until event time has come to the bid's own."""

    auction = sa.ValueState(Auction)
    best = sa.ValueState(Bid)
    early = sa.ListState(Bid)

    def process(self, event: Event, ctx: sa.Context[int, Won], /) -> None:
        if isinstance(event, Auction):
            self._opened(event, ctx)
        elif isinstance(event, Bid):
            self._bid(event, ctx)

    def _opened(self, auction: Auction, ctx: sa.Context[int, Won]) -> None:
        self.auction.set(auction)
        ctx.timers.event(auction.expires, CLOSE)
        for bid in self.early:
            self._offer(auction, bid)
        self.early.clear()

    def _bid(self, bid: Bid, ctx: sa.Context[int, Won]) -> None:
        auction = self.auction.get()
        if auction is not None:
            self._offer(auction, bid)
        else:
            if not len(self.early):
                ctx.timers.event(bid.time, FORGET)
            self.early.append(bid)

    def _offer(self, auction: Auction, bid: Bid) -> None:
        best = self.best.get()
        if auction.time <= bid.time <= auction.expires and (best is None or rank(bid) < rank(best)):
            self.best.set(bid)

    def on_timer(self, timer: sa.Timer, ctx: sa.Context[int, Won], /) -> None:
        if timer.name == FORGET:
            self._forget(ctx)
        elif (auction := self.auction.get()) is not None:
            if (best := self.best.get()) is not None:
                ctx.emit(Won(auction, best))
            self.auction.clear()
            self.best.clear()

    def _forget(self, ctx: sa.Context[int, Won]) -> None:
        left = [bid for bid in self.early if bid.time > ctx.watermark]
        self.early.clear()
        if left:
            self.early.extend(left)
            ctx.timers.event(max(bid.time for bid in left), FORGET)


def rank(bid: Bid) -> tuple[int, int, int, str]:
    """The smallest wins: the highest price, and of equal ones the earliest."""
    return -bid.price, bid.time, bid.bidder, bid.extra


def winners(house: Streams) -> sa.Stream[Won]:
    events = house.events.filter(lambda event: not is_person(event))
    return events.key_by(_auction_of).process("auctioneer", Auctioneer)


def _auction_of(event: Event) -> int:
    return event.id if is_auction(event) else event.auction  # type: ignore[union-attr]


def q9(house: Streams) -> sa.Stream[Row]:
    return winners(house).map(_sold)


def _sold(won: Won) -> Row:
    auction, bid = won.auction, won.bid
    return (
        *(auction.id, auction.item, auction.reserve, auction.time, auction.expires, auction.seller, auction.category),
        *(bid.bidder, bid.price, bid.time, bid.extra),
    )


class AverageOfAll(sa.KeyedOperator[int, Won, Row]):
    total = sa.ValueState(int, default=0)
    count = sa.ValueState(int, default=0)

    def process(self, won: Won, ctx: sa.Context[int, Row], /) -> None:
        total, count = self.total.get() + won.bid.price, self.count.get() + 1
        self.total.set(total)
        self.count.set(count)
        ctx.emit((ctx.key, total // count))


def q4(house: Streams) -> sa.Stream[Row]:
    return winners(house).key_by(lambda won: won.auction.category).process("average", AverageOfAll)


class AverageOfRecent(sa.KeyedOperator[int, Won, Row]):
    """Of the auctions that closed last, by their own time: they may come in another order."""

    recent = sa.ValueState(list[tuple[int, int, int]], default_factory=list)
    """When it closed, its id, and what it brought."""

    def process(self, won: Won, ctx: sa.Context[int, Row], /) -> None:
        closed = (won.auction.expires, won.auction.id, won.bid.price)
        recent = sorted([*self.recent.get(), closed])[-RECENT:]
        self.recent.set(recent)
        ctx.emit((ctx.key, sum(price for *_, price in recent) // len(recent)))


def q6(house: Streams) -> sa.Stream[Row]:
    return winners(house).key_by(lambda won: won.auction.seller).process("average", AverageOfRecent)
