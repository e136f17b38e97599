"""Queries that keep the last or the best bids of a key: q18, q19. Each change gives them anew."""

import streamactors as sa
from benchmarks.nexmark.model import Bid
from benchmarks.nexmark.streams import Row, Streams

BEST = 10


def q18(house: Streams) -> sa.Stream[Row]:
    return house.bids.key_by(lambda bid: (bid.bidder, bid.auction)).reduce("last", later).map(_whole)


def later(one: Bid, other: Bid) -> Bid:
    """Of two at one moment the higher one, so that it makes no difference which came first."""
    return max(one, other, key=lambda bid: (bid.time, bid.price, bid.extra))


def _whole(bid: Bid) -> Row:
    return bid.auction, bid.bidder, bid.price, bid.channel, bid.url, bid.time, bid.extra


def q19(house: Streams) -> sa.Stream[Row]:
    """A row is an auction with its whole ranking."""
    return house.bids.key_by(lambda bid: bid.auction).top_n("best", BEST, _rank).map(_ranked)


def _rank(bid: Bid) -> tuple[int, int, int, str]:
    return bid.price, -bid.time, -bid.bidder, bid.extra


def _ranked(best: list[Bid]) -> Row:
    rows = [(bid.auction, bid.bidder, bid.price, bid.time, bid.extra, place) for place, bid in enumerate(best, 1)]
    return best[0].auction, rows
